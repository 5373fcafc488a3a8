"""How an anchor prefers its candidates: which belong to the strategy, and in which order.

Pure NumPy. Shape legend: E = entries of a pool (see :class:`~miner.core.pool.Pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.ordering import stable_order
from miner.core.pool import MiningTask, Pool
from miner.core.ragged import rank_in_runs
from miner.core.rng import Stream, draw_bits

__all__ = ["Preference", "identity_groups", "prefer"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Preference:
    """A strategy's judgement of a pool.

    Attributes:
        in_band_E: [E] bool, what the strategy wants; the rest is for underfill only.
        keys_E: [E] float64, ascending preference within an anchor and within or outside the band;
            equal keys leave the nearest first.
    """

    in_band_E: npt.NDArray[np.bool_]
    keys_E: npt.NDArray[np.float64]


def prefer(task: MiningTask, pool: Pool) -> Preference:
    """Judge a pool that has passed the guards, by ``config.strategy``.

    - ``hardest``: everything, nearest first.
    - ``semi_hard``: hardness strictly between ``-margin`` and 0, hardest first. Outside, what lies
      nearest to the band comes first.
    - ``rank_window``: identities are ranked by their nearest remaining row; those of rank
      ``window_start`` up to, not including, ``window_stop``, in random order, the rows of each
      nearest first. Outside, ranks nearest to the window come first.

    Guarantee: the order of an anchor's candidates depends on that anchor's candidates only.

    Cost: O(E log E) time.
    Source: Schroff et al., FaceNet (2015), for semi-hard negatives.
    """
    return _STRATEGIES[task.config.strategy](task, pool)


def identity_groups(pool: Pool) -> tuple[I64, I64]:
    """Entries put together by (anchor, identity), each run nearest first.

    Returns:
        [E] int64 entries in that order, and for each its position within its run.

    Example:
        >>> anchors, ids = np.array([0, 0, 0, 1]), np.array([5, 4, 5, 5], np.int32)
        >>> nothing = np.zeros(4, np.float32)
        >>> both = identity_groups(Pool(anchors, np.arange(4), ids, nothing, nothing))
        >>> [part.tolist() for part in both]
        [[1, 0, 2, 3], [0, 0, 1, 0]]
    """
    if not len(pool.anchors_E):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    num_identities = int(pool.identities_E.max()) + 1
    pair_E = (pool.anchors_E - pool.anchors_E[0]) * num_identities + pool.identities_E
    order_E = stable_order(pair_E)
    return order_E, rank_in_runs(pair_E[order_E])


def _hardest(_: MiningTask, pool: Pool) -> Preference:
    return Preference(np.ones(len(pool.rows_E), np.bool_), np.zeros(len(pool.rows_E)))


def _semi_hard(task: MiningTask, pool: Pool) -> Preference:
    hardness_E = pool.hardness_E
    in_band_E = (hardness_E < 0) & (hardness_E > -task.config.margin)
    outside_E = np.where(hardness_E >= 0, hardness_E, -task.config.margin - hardness_E)
    return Preference(in_band_E, np.where(in_band_E, 0.0, outside_E.astype(np.float64)))


def _rank_window(task: MiningTask, pool: Pool) -> Preference:
    first_E, rank_E = _identity_ranks(pool)
    start, stop = task.config.window_start, task.config.window_stop
    in_band_E = (rank_E >= start) & (rank_E < stop)
    keys_E = np.where(rank_E < start, start - rank_E, rank_E - (stop - 1)).astype(np.float64)
    anchors, rows = pool.anchors_E[in_band_E], pool.rows_E[first_E[in_band_E]]
    bits = draw_bits(task.keys.key(Stream.WINDOW), task.anchors.ids_A[anchors], rows)
    keys_E[in_band_E] = bits >> 11
    return Preference(in_band_E, keys_E)


def _identity_ranks(pool: Pool) -> tuple[I64, I64]:
    """For each entry the nearest entry of its identity, and that identity's rank for the anchor."""
    order_E, position_E = identity_groups(pool)
    first_E = np.empty(len(order_E), np.int64)
    first_E[order_E] = order_E[np.arange(len(order_E)) - position_E]
    leads_E = first_E == np.arange(len(first_E))
    count_E = np.cumsum(leads_E) - 1
    # Entries stand by anchor: ranks start again at the first entry of each one.
    start_E = np.arange(len(first_E)) - rank_in_runs(pool.anchors_E)
    return first_E, count_E[first_E] - count_E[start_E]


_STRATEGIES: dict[str, Callable[[MiningTask, Pool], Preference]] = {
    "hardest": _hardest,
    "semi_hard": _semi_hard,
    "rank_window": _rank_window,
}
