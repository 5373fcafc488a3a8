"""A round's groups out of its candidates, or at random: guards, strategy, assignment, filling.

Pure: no clock, log, file or network. Shape legend: N = rows of the catalog, D = dimensions,
A = anchors, K = candidates per anchor, M = negatives per anchor, T = triplets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from miner.core.anchors import choose_anchors
from miner.core.assign import Caps, assign
from miner.core.config import SelectionConfig
from miner.core.deal import Dealer
from miner.core.groups import Negatives
from miner.core.ledger import Ledger, Selection
from miner.core.pairs import IdentityPairs
from miner.core.pool import Anchors, MiningTask, check_candidates
from miner.core.positives import choose_positives, guard_similarities, random_positives
from miner.core.proposals import collect_proposals
from miner.core.quarantine import inspect_identities
from miner.core.report import Notes
from miner.core.rng import RoundSeed
from miner.core.shortfalls import IDENTITIES, explain_shortfalls
from miner.core.similarities import pair_similarities
from miner.errors import SelectionError
from miner.types import Candidates, IdentityTable, Tier

__all__ = ["Guidance", "random_groups", "select_groups"]

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Guidance:
    """What a selection takes over from earlier rounds.

    Attributes:
        suspects: Pairs of identities to test for label noise whether or not they stand out.
        target_hardness: Of strategy ``curriculum``; None for the start of its schedule.
        still_violating: What the target was steered by, for the report.
    """

    suspects: IdentityPairs
    target_hardness: float | None = None
    still_violating: float | None = None


def select_groups(  # noqa: PLR0913 - what the result is a function of
    candidates: Candidates,
    embeddings_ND: F32,
    identities: IdentityTable,
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
    guidance: Guidance | None = None,
) -> Selection:
    """Choose positives and negatives for the anchors of ``candidates``, and fill groups up.

    Guarantee: a pure function of its arguments; the order of the anchors has no effect, not even on
    the order of the groups. No negative shares its anchor's identity, the negatives of an anchor
    have distinct identities, guards hold for the tiers STRATEGY and RELAXED, caps hold exactly over
    all tiers. Within a tier negatives are assigned as :func:`~miner.core.assign.assign` says; a
    later tier takes nothing from an earlier one. With strategy ``random`` this is
    :func:`random_groups`, and the candidates are not looked at.

    Pairs of identities that :func:`~miner.core.quarantine.inspect_identities` lists are in the
    report, and under policy ``exclude`` those that they connect count as one in every tier, but
    for caps and floors: they are not each other's negatives, nor together those of one anchor.

    Floors come first: negatives are assigned as if each sample, then each identity, could be used
    no more often than its floor says; what anchors still need is assigned up to the caps. So who
    stays below its floor is not wanted by any anchor that has room for it.

    Each of an anchor's M negatives is with probability ``random_fraction`` not mined but a random
    other identity.

    An anchor that the strategy leaves with fewer than M negatives is short. By ``config.underfill``

    - ``drop``: its group is dropped;
    - ``relax``: it takes candidates that pass the guards but lie outside the strategy, nearest to
      it first, and its group is kept if it has one negative;
    - ``random``: after that it takes random other identities, past all guards but its own identity.

    Args:
        candidates: [A, K] nearest rows of other identities.
        embeddings_ND: [N, D] float32 L2-normalised, those that were searched; may be a memory map.
        identities: The catalog's identities.
        config: Everything about the selection.
        seed: The round log's seed.
        round_id: The round.
        guidance: What earlier rounds left; None: nothing.

    Raises:
        SelectionError: If the candidates do not fit the catalog, a similarity is not finite, an
            anchor has no positive, or no group can be made; says which rule removed how many.

    Cost: O(A K log K) time. Memory beside the candidates: without caps and floors half as much
        again, with them up to twice as much, since every anchor's whole list is kept.
    Source: the tiers of underfill are ours; what they assign, that of the parts.
    """
    if config.strategy == "random":
        return random_groups(identities, config, seed=seed, round_id=round_id)
    _require_fit(candidates, embeddings_ND, identities)
    keys = RoundSeed(seed, round_id)
    anchors = _anchors(candidates, embeddings_ND, identities, config, keys)
    nothing = IdentityPairs.none(identities.num_identities)
    task = MiningTask(candidates, embeddings_ND, identities, config, keys, anchors, nothing.kin())
    task, notes = _guided(task, guidance or Guidance(nothing))
    ledger = Ledger(anchors, identities, config, keys, task.kin_I)
    notes.dropped = _mine(task, ledger, Tier.STRATEGY, ledger.floors_and_caps())
    if config.underfill != "drop":
        _mine(task, ledger, Tier.RELAXED, [ledger.caps()])
    lacking_A = ledger.demands()
    _deal(ledger, embeddings_ND)
    notes.shortfalls = explain_shortfalls(task, ledger, lacking_A)
    return ledger.close(notes)


def random_groups(  # noqa: PLR0913 - what the result is a function of
    identities: IdentityTable,
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
    suspects: IdentityPairs | None = None,
    losses_I: F32 | None = None,
) -> Selection:
    """Groups of random positives and random other identities; needs no embeddings.

    Guarantee: anchors, caps, shape and purity as in :func:`select_groups`; identities are used as
    negatives as evenly as :meth:`~miner.core.deal.Dealer.deal` says. Similarities are NaN and every
    tier is RANDOM. With ``config.underfill`` other than ``drop``, a group is kept if it has one
    negative. No embedding, no quarantine: only ``suspects``, which earlier rounds have listed,
    count as one. ``losses_I`` steers quotas as in :func:`~miner.core.anchors.choose_anchors`.

    Raises:
        SelectionError: If no identity has two samples, or caps or a single identity leave no group.

    Cost: O(A M log A + N log N) time, O(A M + N) memory.
    """
    ids_A = np.sort(
        choose_anchors(identities, config, seed=seed, round_id=round_id, losses_I=losses_I)
    )
    positives_A = random_positives(identities, ids_A, seed=seed, round_id=round_id)
    unknown_A = np.full(len(ids_A), np.nan, np.float32)
    places_A = np.arange(len(ids_A))
    anchors = Anchors(
        ids_A, identities.identity_ids_N[ids_A], positives_A, unknown_A, unknown_A, places_A
    )
    known = suspects or IdentityPairs.none(identities.num_identities)
    ledger = Ledger(anchors, identities, config, RoundSeed(seed, round_id), known.kin())
    ledger.random_slots_A[:] = config.negatives_per_group
    _deal(ledger, None)
    num_short = int(np.count_nonzero(ledger.count_missing()))
    return ledger.close(Notes(shortfalls={IDENTITIES: num_short} if num_short else {}))


def _anchors(
    candidates: Candidates,
    embeddings_ND: F32,
    identities: IdentityTable,
    config: SelectionConfig,
    keys: RoundSeed,
) -> Anchors:
    """The anchors in ascending order, with their positives."""
    places_A = np.argsort(candidates.anchor_ids_A, kind="stable")
    ids_A = candidates.anchor_ids_A[places_A]
    positives_A, s_ap_A = choose_positives(
        embeddings_ND, identities, ids_A, config, seed=keys.seed, round_id=keys.round_id
    )
    guard_s_ap_A, rule = s_ap_A, config.guard_positive
    if rule != "chosen" and (config.absolute_margin, config.relative_margin) != (None, None):
        guard_s_ap_A = guard_similarities(embeddings_ND, identities, ids_A, rule)
    identities_A = identities.identity_ids_N[ids_A]
    return Anchors(ids_A, identities_A, positives_A, s_ap_A, guard_s_ap_A, places_A)


def _guided(task: MiningTask, guidance: Guidance) -> tuple[MiningTask, Notes]:
    """What is known before the first candidate is judged: who counts as one, what is aimed at."""
    notes, config = Notes(), task.config
    if config.quarantine.policy != "off":
        s_ap_A = np.empty_like(task.anchors.similarities_ap_A)
        s_ap_A[task.anchors.places_A] = task.anchors.similarities_ap_A
        notes.quarantine = inspect_identities(
            task.candidates,
            s_ap_A,
            task.embeddings_ND,
            task.identities,
            config=config.quarantine,
            known=guidance.suspects,
            seed=task.keys.seed,
        )
        if config.quarantine.policy == "exclude":
            listed = notes.quarantine.suspicion
            num_identities = task.identities.num_identities
            pairs = IdentityPairs.of(listed.left_Q, listed.right_Q, num_identities)
            task = replace(task, kin_I=pairs.kin())
    if config.strategy == "curriculum":
        target = guidance.target_hardness
        notes.target_hardness = config.curriculum.start if target is None else target
        notes.still_violating = guidance.still_violating
        task = replace(task, target_hardness=notes.target_hardness)
    return task, notes


def _mine(task: MiningTask, ledger: Ledger, tier: Tier, bounds: Iterable[Caps]) -> Counter[str]:
    """Assign candidates to the anchors that need some, up to one bound after the other.

    Returns what guards and strategy removed for the first bound, of all these anchors' candidates.
    """
    proposals, removed = None, Counter[str]()
    for caps in bounds:
        demands_A = ledger.demands()
        needy = np.flatnonzero(demands_A)
        if not len(needy):
            break
        if task.config.composition != "star":
            proposals = None  # a list is composed of what its anchor does not hold
        if proposals is None:
            proposals, dropped = collect_proposals(task, needy, tier, ledger.held_AM)
            removed = removed or dropped
        else:
            proposals.close(ledger.held_AM, task.kin_I)
        accepted = assign(proposals, demands_A, task.anchors.similarities_ap_A, caps)
        ledger.give(
            Negatives(
                anchors_T=np.searchsorted(proposals.offsets_A1, accepted, side="right") - 1,
                rows_T=proposals.rows_P[accepted].astype(np.int64),
                similarities_T=proposals.similarities_P[accepted],
                tiers_T=np.full(len(accepted), tier, np.uint8),
            )
        )
    return removed


def _deal(ledger: Ledger, embeddings_ND: F32 | None) -> None:
    """Give random identities to the slots that are for them, or to all that are empty."""
    fill_all = ledger.config.underfill == "random"
    needs_A = ledger.count_missing() if fill_all else ledger.random_slots_A
    if not needs_A.any():
        return
    dealer = Dealer(ledger.identities, ledger.config, ledger.keys, ledger.anchors, ledger.kin_I)
    anchors_T, rows_T = dealer.deal(ledger.held_AM, needs_A, ledger.uses_N)
    anchor_ids_T = ledger.anchors.ids_A[anchors_T]
    if embeddings_ND is None:
        similarities_T = np.full(len(rows_T), np.nan, np.float32)
    else:
        similarities_T = pair_similarities(embeddings_ND, anchor_ids_T, rows_T)
        broken = rows_T[~np.isfinite(similarities_T)]
        if len(broken):
            raise SelectionError(
                f"{len(broken)} random negatives have a similarity of NaN or infinity: rows "
                f"{broken[:5].tolist()}; their embeddings are broken"
            )
    tiers_T = np.full(len(rows_T), Tier.RANDOM, np.uint8)
    ledger.give(Negatives(anchors_T, rows_T, similarities_T, tiers_T))


def _require_fit(candidates: Candidates, embeddings_ND: F32, identities: IdentityTable) -> None:
    num_anchors, num_rows = len(candidates.anchor_ids_A), identities.num_rows
    shape = candidates.row_ids_AK.shape
    if len(shape) != 2 or shape[0] != num_anchors or shape != candidates.similarities_AK.shape:
        raise SelectionError(
            f"{num_anchors} anchors do not fit candidates of shape {shape} with similarities of "
            f"shape {candidates.similarities_AK.shape}"
        )
    if embeddings_ND.ndim != 2 or len(embeddings_ND) != num_rows:
        raise SelectionError(
            f"embeddings of shape {embeddings_ND.shape} do not fit a catalog of {num_rows} rows; "
            "use the snapshot of this catalog"
        )
    check_candidates(candidates, num_rows)
    if not num_anchors:
        raise SelectionError("there are no anchors, so no group can be made; choose anchors first")
    ids_A = candidates.anchor_ids_A
    outside = ids_A[(ids_A < 0) | (ids_A >= num_rows)]
    if len(outside):
        raise SelectionError(
            f"{len(outside)} anchors lie outside the {num_rows} rows of the catalog: rows "
            f"{outside[:5].tolist()}; the candidates belong to another catalog"
        )
