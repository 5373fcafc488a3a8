"""What each anchor would propose to, in its order: guards and strategy applied, block by block.

Pure NumPy. Shape legend: A = anchors, K = candidates per anchor, M = negatives per anchor,
P = proposals of all anchors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.core.compose import compose
from miner.core.guards import apply_guards
from miner.core.ordering import segment_order
from miner.core.pool import MiningTask, Pool, read_pool
from miner.core.strategies import identity_groups, prefer
from miner.types import Tier

__all__ = ["OUTSIDE_STRATEGY", "Proposals", "collect_proposals"]

_BLOCK_ENTRIES = 1 << 19
OUTSIDE_STRATEGY = "outside_strategy"
"""The name under which candidates are counted that pass all guards but not the strategy."""

I64 = npt.NDArray[np.int64]
Ints = npt.NDArray[np.signedinteger[Any]]
_Columns = tuple[Ints, npt.NDArray[np.int32], npt.NDArray[np.float32], Ints, npt.NDArray[np.bool_]]
"""The columns of :class:`Proposals` after the offsets, for one block."""


@dataclass(frozen=True, slots=True)
class Proposals:
    """Ordered lists of candidates, one per anchor, in CSR form.

    Attributes:
        offsets_A1: [A+1] int64; anchor ``a`` owns proposals ``offsets_A1[a]:offsets_A1[a + 1]``.
        rows_P: [P] row ids, each anchor's most preferred first; int32 where the catalog allows.
        identities_P: [P] int32.
        similarities_P: [P] float32.
        steps_P: [P] int16 or int32, how far on the same anchor's next proposal to the same identity
            is; 0 if there is none. Identities that count as one are the same.
        leads_P: [P] bool, whether it is the anchor's first proposal to its identity.
    """

    offsets_A1: I64
    rows_P: Ints
    identities_P: npt.NDArray[np.int32]
    similarities_P: npt.NDArray[np.float32]
    steps_P: Ints
    leads_P: npt.NDArray[np.bool_]


def collect_proposals(
    task: MiningTask, anchors_a: I64, tier: Tier, held_AM: npt.NDArray[np.int32]
) -> tuple[Proposals, Counter[str]]:
    """The lists of the anchors at ``anchors_a``; those of all other anchors are empty.

    Args:
        task: The round's input.
        anchors_a: [a] int64 ascending positions among the anchors.
        tier: ``STRATEGY`` for what the strategy wants, ``RELAXED`` for what only the guards allow.
        held_AM: [A, M] int32 identities that anchors hold already, by the lowest of their kin, -1
            where none; left out.

    Returns:
        The proposals, in the order of strategy and composition, and how many candidates each guard
        and the strategy removed.

    Cost: O(a K log K) time; beside the result about 2**19 candidates are held at a time.
    """
    counts: Counter[str] = Counter()
    blocks: list[_Columns] = []
    counts_A = np.zeros(len(task.anchors.ids_A), np.int64)
    num_candidates = max(1, task.candidates.row_ids_AK.shape[1])
    rows = max(1, _BLOCK_ENTRIES // num_candidates)
    for begin in range(0, len(anchors_a), rows):
        pool = read_pool(task, anchors_a[begin : begin + rows])
        pool, dropped = apply_guards(task, pool)
        pool, num_outside = _in_order(task, pool, tier, held_AM)
        counts.update(dropped)
        counts[OUTSIDE_STRATEGY] += num_outside
        np.add.at(counts_A, pool.anchors_E, 1)
        blocks.append(_with_links(task, pool))
    offsets_A1 = np.concatenate(([0], np.cumsum(counts_A))).astype(np.int64)
    columns = [list(column) for column in zip(*blocks, strict=True)]
    del blocks
    # Each column's blocks are let go as soon as they are joined.
    return Proposals(offsets_A1, *(np.concatenate(columns.pop(0)) for _ in range(5))), counts


def _in_order(
    task: MiningTask, pool: Pool, tier: Tier, held_AM: npt.NDArray[np.int32]
) -> tuple[Pool, int]:
    """The wanted entries by anchor and preference, and how many lie outside the strategy."""
    preference = prefer(task, pool)
    wanted_E = preference.in_band_E if tier is Tier.STRATEGY else ~preference.in_band_E
    if len(pool.rows_E) and (held_AM[pool.anchors_E[0] : pool.anchors_E[-1] + 1] >= 0).any():
        wanted_E = wanted_E & ~(held_AM[pool.anchors_E] == pool.kin_E[:, None]).any(1)
    num_outside = len(wanted_E) - int(np.count_nonzero(preference.in_band_E))
    pool, keys_E = pool.take(wanted_E), preference.keys_E[wanted_E]
    if keys_E.any():
        pool = pool.take(segment_order(pool.anchors_E, keys_E))
    if tier is Tier.STRATEGY and task.config.composition != "star":
        pool = compose(task, pool)
    if task.config.is_without_bounds:
        pool = pool.take(_enough_without_caps(pool, task.config.negatives_per_group))
    return pool, num_outside


def _enough_without_caps(pool: Pool, num_negatives: int) -> npt.NDArray[np.bool_]:
    """No proposal is refused without caps: an anchor needs its first M identities only."""
    order_E, position_E = identity_groups(pool)
    leads_E = np.zeros(len(order_E), np.bool_)
    leads_E[order_E] = position_E == 0
    count_E = np.cumsum(leads_E)
    before_E = np.where(leads_E, count_E - 1, count_E)
    run_starts = np.flatnonzero(np.diff(pool.anchors_E, prepend=-1))
    base_E = np.repeat(before_E[run_starts], np.diff(run_starts, append=len(leads_E)))
    enough_E: npt.NDArray[np.bool_] = leads_E & (count_E - base_E <= num_negatives)
    return enough_E


def _with_links(task: MiningTask, pool: Pool) -> _Columns:
    """A block's columns, with links between the proposals of one anchor to one identity.

    All lists together are the largest thing in a selection: numbers take the least they need.
    """
    order_E, position_E = identity_groups(pool)
    num_candidates, num_rows = task.candidates.row_ids_AK.shape[1], task.identities.num_rows
    steps_E: Ints = np.zeros(len(order_E), np.int32)
    follows = np.flatnonzero(position_E)
    steps_E[order_E[follows - 1]] = order_E[follows] - order_E[follows - 1]
    leads_E = np.zeros(len(order_E), np.bool_)
    leads_E[order_E] = position_E == 0
    if num_candidates < 1 << 15:
        steps_E = steps_E.astype(np.int16)
    rows_E: Ints = pool.rows_E.astype(np.int32) if num_rows < 1 << 31 else pool.rows_E
    return rows_E, pool.identities_E, pool.similarities_E, steps_E, leads_E
