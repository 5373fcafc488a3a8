"""One round from embeddings: anchors, search, further candidates, selection.

Pure but for the search that it is given; what earlier rounds left comes in as a value.

    choose anchors -> search -> (earlier negatives, neighbours of positives) -> select

Shape legend: N = rows of the catalog, D = dimensions, A = anchors, I = identities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from miner.core.anchors import choose_anchors
from miner.core.config import SelectionConfig
from miner.core.ledger import Selection
from miner.core.pairs import IdentityPairs
from miner.core.positives import choose_positives
from miner.core.select import Guidance, random_groups, select_groups
from miner.core.steering import next_target, scheduled_target, violating_fraction
from miner.core.widen import momentum_rows, widen_candidates
from miner.types import Candidates, Groups, IdentityTable

__all__ = ["History", "Search", "mine_round"]

Search = Callable[[npt.NDArray[np.int64], int], Candidates]
"""Takes row ids [A] and K; gives each row's K nearest rows of other identities."""


@dataclass(frozen=True, slots=True)
class History:
    """What a round inherits; a first round inherits nothing.

    Attributes:
        model_step: Optimizer step of the weights behind the embeddings.
        earlier: Rounds of the same catalog that were mined, newest first.
        target_hardness: Of the newest of them, under strategy ``curriculum``.
        suspects: Pairs of identities that it had in quarantine.
        losses_I: [I] float32, how hard each identity is for the model by now; NaN where unknown.
    """

    model_step: int = 0
    earlier: tuple[Groups, ...] = ()
    target_hardness: float | None = None
    suspects: tuple[tuple[int, int], ...] = ()
    losses_I: npt.NDArray[np.float32] | None = None


def mine_round(  # noqa: PLR0913 - what the result is a function of
    search: Search,
    embeddings_ND: npt.NDArray[np.float32],
    identities: IdentityTable,
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
    history: History | None = None,
) -> Selection:
    """Mine one round.

    Guarantee: a pure function of its arguments, as far as ``search`` is one: the same groups
    whatever the number of workers or the order of their work. With strategy ``random`` neither
    ``search`` nor ``embeddings_ND`` is looked at.

    Args:
        search: Over ``embeddings_ND``; called once, or twice with ``config.look_ahead``.
        embeddings_ND: [N, D] float32 L2-normalised; may be a memory map.
        identities: The catalog's identities.
        config: Everything about the selection.
        seed: The round log's seed; the same for all rounds.
        round_id: Counted from 1.
        history: What earlier rounds left; None: nothing.

    Raises:
        SelectionError: As :func:`~miner.core.select.select_groups`.
    """
    history = history or History()
    if config.strategy == "random":
        suspects = _known(history, identities) if config.quarantine.policy == "exclude" else None
        selection = random_groups(
            identities,
            config,
            seed=seed,
            round_id=round_id,
            suspects=suspects,
            losses_I=history.losses_I,
        )
        return _with_losses(selection, history)
    anchor_ids_A = choose_anchors(
        identities, config, seed=seed, round_id=round_id, losses_I=history.losses_I
    )
    candidates = search(anchor_ids_A, config.num_candidates)
    further = []
    if config.momentum_rounds:
        earlier = history.earlier[: config.momentum_rounds]
        further.append(momentum_rows(earlier, anchor_ids_A, identities))
    if config.look_ahead:
        positives_A, _ = choose_positives(
            embeddings_ND, identities, anchor_ids_A, config, seed=seed, round_id=round_id
        )
        further.append(search(positives_A, config.look_ahead).row_ids_AK)
    if further:
        more_AX = np.concatenate(further, axis=1)
        candidates = widen_candidates(candidates, more_AX, embeddings_ND, identities)
    guidance = _guide(config, embeddings_ND, identities, history)
    selection = select_groups(
        candidates,
        embeddings_ND,
        identities,
        config,
        seed=seed,
        round_id=round_id,
        guidance=guidance,
    )
    return _with_losses(selection, history)


def _with_losses(selection: Selection, history: History) -> Selection:
    """The same, whose report says how many losses weighed in."""
    if history.losses_I is None:
        return selection
    num_losses = int(np.count_nonzero(~np.isnan(history.losses_I)))
    return replace(selection, report=replace(selection.report, num_losses=num_losses))


def _guide(
    config: SelectionConfig,
    embeddings_ND: npt.NDArray[np.float32],
    identities: IdentityTable,
    history: History,
) -> Guidance:
    known = _known(history, identities)
    if config.strategy != "curriculum":
        return Guidance(known)
    if config.curriculum.violating_fraction is None:
        return Guidance(known, scheduled_target(config.curriculum, history.model_step))
    violating = None
    if history.earlier:
        violating = violating_fraction(history.earlier[0], embeddings_ND, config.margin)
    if violating is None:
        return Guidance(known, config.curriculum.start)
    target = next_target(config.curriculum, history.target_hardness, violating)
    return Guidance(known, target, violating)


def _known(history: History, identities: IdentityTable) -> IdentityPairs:
    suspects = np.array(history.suspects, np.int64).reshape(-1, 2)
    return IdentityPairs.of(suspects[:, 0], suspects[:, 1], identities.num_identities)
