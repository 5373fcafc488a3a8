"""What a round's selection did, in figures for its manifest. Plain numbers only.

Shape legend: T = triplets, I = identities, N = rows, n = counters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.guards import GUARD_NAMES
from miner.core.parallel import cut
from miner.core.proposals import OUTSIDE_STRATEGY
from miner.core.quarantine import Quarantine
from miner.types import Groups, IdentityTable, Tier

__all__ = [
    "Exposure",
    "Notes",
    "QuarantineReport",
    "SelectionReport",
    "SuspectPair",
    "describe_selection",
    "gini",
]

I64 = npt.NDArray[np.int64]

_HARDNESS_EDGES = np.round(np.linspace(-1.0, 1.0, 41), 2)
_BLOCK = 1 << 18
"""Groups or triplets looked at together."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """How unevenly things are used in a round, as anchors or negatives: 0 uses count too.

    Attributes:
        min, median, max: Uses of one of them.
        gini: 0 if all are used alike, towards 1 if a few have all the use.
        unused: The share that is never used.
    """

    min: int
    median: float
    max: int
    gini: float
    unused: float


@dataclass(frozen=True, slots=True)
class SuspectPair:
    """Two identities that look like one; see :class:`~miner.core.suspicion.Suspicion`."""

    identities: list[int]
    num_samples: list[int]
    mixing: float
    num_copies: int
    num_mutual: int
    similarity: float
    p_value: float


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """What was done about label noise between identities.

    Attributes:
        policy: ``off``, ``report`` or ``exclude``.
        num_tested: Pairs that were looked at.
        confusion_rate: Share of anchors whose nearest row is of another identity.
        pairs: Those listed, strongest evidence first.
    """

    policy: str
    num_tested: int
    confusion_rate: float | None
    pairs: list[SuspectPair]


@dataclass(slots=True)
class Notes:
    """What selection found out on its way; what is not noted did not happen.

    Attributes:
        dropped: Candidates removed, by guard and by ``outside_strategy``.
        shortfalls: Short anchors by the reason.
        quarantine: The inspection of identities.
        target_hardness: Of a curriculum.
        still_violating: Share of the last round's triplets that still violate the margin.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    shortfalls: dict[str, int] = field(default_factory=dict)
    quarantine: Quarantine | None = None
    target_hardness: float | None = None
    still_violating: float | None = None


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """Figures of one round; ``dataclasses.asdict`` of it is JSON. None where there is no embedding.

    Attributes:
        num_anchors: Anchors that the round was asked for.
        num_groups: Groups made; the other anchors had too few negatives.
        num_triplets: Triplets in the groups.
        tiers: Triplets by strategy, relaxed and random.
        dropped: Candidates removed, by guard and by ``outside_strategy``, each counted once.
        anchors_short: Anchors that found fewer negatives than a full group has.
        negatives_missing: How many negatives those lack together.
        shortfalls: The short anchors by the first reason that explains them: too few identities
            among their ``candidates``, after the ``guards``, within the ``strategy``, or ``caps``.
        floors_unmet: How many identities and samples are below each configured floor; for groups
            to anchor, of the identities with samples enough.
        anchor_exposure: Groups anchored, over the identities with at least two samples.
        identity_exposure: Use of identities as mined negatives, over all identities.
        sample_exposure: Use of rows as mined negatives, over all rows.
        hardness_edges: Edges of the bins of ``s_an - s_ap``; values beyond count in the outer ones.
        hardness_counts: Triplets per bin.
        mean_similarity_ap: Mean of ``s_ap`` over triplets.
        mean_similarity_an: Mean of ``s_an`` over triplets.
        violating_fraction: Share of triplets with ``s_an > s_ap - margin``.
        target_hardness: Of this round, under strategy ``curriculum``.
        still_violating: Share of the last round's triplets that violate the margin under this
            round's embeddings, where a curriculum is steered by it.
        quarantine: Pairs of identities that look like one.
        num_losses: Identities whose reported loss weighed in with their share of anchors.
    """

    num_anchors: int
    num_groups: int
    num_triplets: int
    tiers: list[int]
    dropped: dict[str, int]
    anchors_short: int
    negatives_missing: int
    shortfalls: dict[str, int]
    floors_unmet: dict[str, int]
    anchor_exposure: Exposure
    identity_exposure: Exposure
    sample_exposure: Exposure
    hardness_edges: list[float]
    hardness_counts: list[int]
    mean_similarity_ap: float | None
    mean_similarity_an: float | None
    violating_fraction: float | None
    target_hardness: float | None
    still_violating: float | None
    quarantine: QuarantineReport
    num_losses: int = 0


def describe_selection(
    groups: Groups,
    missing_A: npt.NDArray[np.int64],
    identities: IdentityTable,
    config: SelectionConfig,
    notes: Notes,
) -> SelectionReport:
    """The figures of ``groups``.

    Args:
        groups: The round.
        missing_A: [A] int64, negatives that each anchor lacked in the end.
        identities: The catalog's identities.
        config: For the margin and the floors.
        notes: What the selection found out.

    Cost: O(T + N log N) time.
    """
    uses_N = np.zeros(identities.num_rows, np.int64)
    for part in cut(groups.num_groups, _BLOCK):
        _, _, negatives_t = groups.between(part.start, part.stop).triplet_rows()
        uses_N += np.bincount(negatives_t, minlength=identities.num_rows)
    uses_I = np.bincount(
        identities.identity_ids_N, weights=uses_N, minlength=identities.num_identities
    ).astype(np.int64)
    hardness = _Hardness.of(groups, config.margin)
    anchored_I = np.bincount(
        identities.identity_ids_N[groups.row_ids_R[groups.row_offsets_G1[:-1]]],
        minlength=identities.num_identities,
    )
    enough_I = identities.sizes_I >= max(2, config.min_groups_per_identity)
    return SelectionReport(
        num_anchors=len(missing_A),
        num_groups=groups.num_groups,
        num_triplets=groups.num_triplets,
        tiers=np.bincount(groups.tiers_T, minlength=len(Tier)).tolist(),
        dropped={name: notes.dropped[name] for name in (*GUARD_NAMES, OUTSIDE_STRATEGY)},
        anchors_short=int(np.count_nonzero(missing_A)),
        negatives_missing=int(missing_A.sum()),
        shortfalls=notes.shortfalls,
        floors_unmet=_count_unmet(config, anchored_I[enough_I], uses_I, uses_N),
        anchor_exposure=_expose(anchored_I[identities.sizes_I >= 2]),
        identity_exposure=_expose(uses_I),
        sample_exposure=_expose(uses_N),
        hardness_edges=_HARDNESS_EDGES.tolist(),
        hardness_counts=hardness.counts,
        mean_similarity_ap=hardness.mean_ap,
        mean_similarity_an=hardness.mean_an,
        violating_fraction=hardness.violating,
        target_hardness=notes.target_hardness,
        still_violating=notes.still_violating,
        quarantine=_describe_quarantine(config, notes.quarantine),
    )


@dataclass(frozen=True, slots=True)
class _Hardness:
    """What similarities say of all triplets; no mean where one is unknown."""

    counts: list[int]
    mean_ap: float | None = None
    mean_an: float | None = None
    violating: float | None = None

    @classmethod
    def of(cls, groups: Groups, margin: float) -> _Hardness:
        num_triplets = groups.num_triplets
        counts, sums = np.zeros(len(_HARDNESS_EDGES) - 1, np.int64), np.zeros(3)
        for part in cut(num_triplets, _BLOCK):
            s_ap_t = groups.similarities_ap_T[part].astype(np.float64)
            s_an_t = groups.similarities_an_T[part].astype(np.float64)
            sums += s_ap_t.sum(), s_an_t.sum(), np.count_nonzero(s_an_t > s_ap_t - margin)
            if not np.isfinite(sums).all():
                return cls([0] * len(counts))
            counts += np.histogram(np.clip(s_an_t - s_ap_t, -1.0, 1.0), _HARDNESS_EDGES)[0]
        return cls(counts.tolist(), *(sums / num_triplets).tolist())


def _count_unmet(
    config: SelectionConfig, anchored_I: I64, uses_I: I64, uses_N: I64
) -> dict[str, int]:
    floors = {
        "min_groups_per_identity": anchored_I,
        "min_uses_per_identity": uses_I,
        "min_uses_per_sample": uses_N,
    }
    return {
        name: int(np.count_nonzero(uses_n < getattr(config, name)))
        for name, uses_n in floors.items()
        if getattr(config, name)
    }


def _describe_quarantine(config: SelectionConfig, found: Quarantine | None) -> QuarantineReport:
    policy = config.quarantine.policy
    if found is None:
        return QuarantineReport(policy, 0, None, [])
    listed = found.suspicion
    pairs = zip(
        np.stack((listed.left_Q, listed.right_Q), 1).tolist(),
        np.stack((listed.num_left_Q, listed.num_right_Q), 1).tolist(),
        listed.mixing_Q.round(4).tolist(),
        listed.num_copies_Q.tolist(),
        listed.num_mutual_Q.tolist(),
        listed.similarity_Q.round(6).tolist(),
        listed.p_value_Q.tolist(),
        strict=True,
    )
    return QuarantineReport(
        policy=policy,
        num_tested=found.num_tested,
        confusion_rate=found.confusion_rate,
        pairs=[SuspectPair(*pair) for pair in pairs],
    )


def gini(uses_n: npt.NDArray[np.int64]) -> float:
    """The Gini coefficient of some counts: half their mean absolute difference over their mean.

    Source: Gini (1912); the sorted form of Dorfman (1979).

    Example:
        >>> [round(gini(np.array(uses)), 3) for uses in ([2, 2, 2], [0, 0, 9], [0, 0])]
        [0.0, 0.667, 0.0]
    """
    total = int(uses_n.sum())
    if total == 0:
        return 0.0
    weights_n = 2 * np.arange(1, len(uses_n) + 1) - len(uses_n) - 1
    return float((weights_n * np.sort(uses_n)).sum() / (len(uses_n) * total))


def _expose(uses_n: npt.NDArray[np.int64]) -> Exposure:
    return Exposure(
        min=int(uses_n.min()),
        median=float(np.median(uses_n)),
        max=int(uses_n.max()),
        gini=gini(uses_n),
        unused=float((uses_n == 0).mean()),
    )
