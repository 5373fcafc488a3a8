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
from miner.core.parallel import cut, do_blocks, map_blocks
from miner.core.pool import MiningTask, Pool, read_pool
from miner.core.ragged import rank_in_runs
from miner.core.strategies import identity_groups, prefer
from miner.types import Tier

__all__ = ["OUTSIDE_STRATEGY", "Proposals", "collect_proposals"]

_BLOCK_ENTRIES = 1 << 17
_BLOCK_ANCHORS = 1 << 11
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
        leads_P: [P] bool, whether it is the anchor's first proposal to its identity, and not
            closed.
    """

    offsets_A1: I64
    rows_P: Ints
    identities_P: npt.NDArray[np.int32]
    similarities_P: npt.NDArray[np.float32]
    steps_P: Ints
    leads_P: npt.NDArray[np.bool_]

    def close(self, held_AM: npt.NDArray[np.int32], kin_I: npt.NDArray[np.int32]) -> None:
        """Let no anchor propose to an identity that it holds; as :func:`collect_proposals` would.

        Args:
            held_AM: [A, M] int32 identities that anchors hold by now, as there.
            kin_I: [I] int32, the lowest of the identities that count as one with this one.
        """

        def work(part: slice) -> None:
            offsets_a1 = self.offsets_A1[part.start : part.stop + 1]
            entries = slice(offsets_a1[0], offsets_a1[-1])
            kin_E, counts_a = kin_I[self.identities_P[entries]], np.diff(offsets_a1)
            for held_a in held_AM[part].T:
                self.leads_P[entries] &= kin_E != np.repeat(held_a, counts_a)

        do_blocks(work, cut(len(held_AM), _BLOCK_ANCHORS))


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

    Cost: O(a K log K) time; beside the result about 2**17 candidates are held in each thread.
    """
    counts_A = np.zeros(len(task.anchors.ids_A), np.int64)

    def work(part: slice) -> tuple[_Columns, dict[str, int]]:
        pool = read_pool(task, anchors_a[part])
        pool, dropped = apply_guards(task, pool)
        pool, dropped[OUTSIDE_STRATEGY] = _in_order(task, pool, tier, held_AM)
        np.add.at(counts_A, pool.anchors_E, 1)  # those of this block only
        return _with_links(task, pool), dropped

    width = max(1, task.candidates.row_ids_AK.shape[1])
    counts: Counter[str] = Counter()
    columns: list[npt.NDArray[Any]] = []
    end = 0
    for block, dropped in map_blocks(work, cut(len(anchors_a), max(1, _BLOCK_ENTRIES // width))):
        counts.update(dropped)
        # Room for every candidate: what is never written to takes no memory.
        columns = columns or [np.empty(len(anchors_a) * width, part.dtype) for part in block]
        begin, end = end, end + len(block[0])
        for column, part in zip(columns, block, strict=True):
            column[begin:end] = part
    offsets_A1 = np.concatenate(([0], np.cumsum(counts_A))).astype(np.int64)
    return Proposals(offsets_A1, *(column[:end] for column in columns)), counts


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
    if task.config.is_without_bounds:  # no proposal is refused, so none follows to an identity
        firsts = _most_preferred(pool, keys_E)
        pool, keys_E = pool.take(firsts), keys_E[firsts]
    if keys_E.any():
        pool = pool.take(segment_order(pool.anchors_E, keys_E))
    if tier is Tier.STRATEGY and task.config.composition != "star":
        pool = compose(task, pool)
    if task.config.is_without_bounds:
        pool = pool.take(rank_in_runs(pool.anchors_E) < task.config.negatives_per_group)
    return pool, num_outside


def _most_preferred(pool: Pool, keys_E: npt.NDArray[np.float64] | I64) -> I64:
    """[n] int64 ascending, of each anchor and identity the entry that comes first in a list."""
    order_E, position_E = identity_groups(pool)
    if not keys_E.any():
        return np.sort(order_E[position_E == 0])
    starts = np.flatnonzero(position_E == 0)
    lengths = np.diff(starts, append=len(order_E))
    keys_E = keys_E[order_E]
    best = np.flatnonzero(keys_E == np.repeat(np.minimum.reduceat(keys_E, starts), lengths))
    nearest = np.diff((best - position_E[best]), prepend=-1) != 0  # the first best one of its run
    return np.sort(order_E[best[nearest]])


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
