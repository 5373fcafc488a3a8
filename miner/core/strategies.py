"""How an anchor prefers its candidates: which belong to the strategy, and in which order.

Pure NumPy. Shape legend: E = entries of a pool (see :class:`~miner.core.pool.Pool`),
D = dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.ordering import segment_order
from miner.core.pool import MiningTask, Pool
from miner.core.ragged import rank_in_runs
from miner.core.rng import Stream, draw_bits, draw_gumbel

__all__ = ["Preference", "identity_groups", "prefer"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Preference:
    """A strategy's judgement of a pool.

    Attributes:
        in_band_E: [E] bool, what the strategy wants; the rest is for underfill only.
        keys_E: [E] float64 or int64, ascending preference within an anchor and within or outside
            the band; equal keys leave the nearest first.
    """

    in_band_E: npt.NDArray[np.bool_]
    keys_E: npt.NDArray[np.float64] | I64


def prefer(task: MiningTask, pool: Pool) -> Preference:
    """Judge a pool that has passed the guards, by ``config.strategy``.

    - ``hardest``: everything, nearest first.
    - ``semi_hard``: hardness strictly between ``-margin`` and 0, hardest first. Outside, what lies
      nearest to the band comes first.
    - ``rank_window``: identities are ranked by their nearest remaining row; those of rank
      ``window_start`` up to, not including, ``window_stop``, in random order, the rows of each
      nearest first. Outside, ranks nearest to the window come first.
    - ``distance_weighted``: candidates up to ``distance_limit`` away, drawn without replacement
      with weights ``1 / q(d)``, where ``q`` is the density of distances ``d = sqrt(2 - 2 s_an)``
      between random points of the sphere; distances below ``distance_cutoff`` weigh like it.
    - ``simans``: everything, drawn without replacement with weights
      ``exp(-a (s_an - s_ap - b)^2)``: neither too hard nor too easy.
    - ``curriculum``: hardness within ``margin`` of the round's target, nearest to it first.

    Guarantee: the order of an anchor's candidates depends on that anchor's candidates only; a
    random draw only on (seed, round, anchor, candidate).

    Cost: O(E log E) time.
    Source: Schroff et al., FaceNet (2015), for semi-hard negatives; Xiong et al., ANCE (2021), for
        windows of global ranks; Wu et al., Sampling matters in deep embedding learning (2017), for
        distance weights; Zhou et al., SimANS (2022); Harwood et al., Smart mining (2017), for a
        hardness that moves with the training.
    """
    return _STRATEGIES[task.config.strategy](task, pool)


def identity_groups(pool: Pool) -> tuple[I64, I64]:
    """Entries put together by (anchor, identity), each run nearest first; kin are one identity.

    Args:
        pool: By anchor; in any order within one.

    Returns:
        [E] int64 entries in that order, and for each its position within its run.

    Example:
        >>> anchors, ids = np.array([0, 0, 0, 1]), np.array([5, 4, 5, 5], np.int32)
        >>> nothing = np.zeros(4, np.float32)
        >>> both = identity_groups(Pool(anchors, np.arange(4), ids, ids, nothing))
        >>> [part.tolist() for part in both]
        [[1, 0, 2, 3], [0, 0, 1, 0]]
    """
    order_E = segment_order(pool.anchors_E, pool.kin_E)
    return order_E, rank_in_runs(pool.anchors_E << 32 | pool.kin_E[order_E])


def _hardness(task: MiningTask, pool: Pool) -> npt.NDArray[np.float32]:
    """[E] float32, ``s_an - s_ap``."""
    return pool.similarities_E - task.anchors.similarities_ap_A[pool.anchors_E]


def _hardest(_: MiningTask, pool: Pool) -> Preference:
    return Preference(np.ones(len(pool.rows_E), np.bool_), np.zeros(len(pool.rows_E)))


def _semi_hard(task: MiningTask, pool: Pool) -> Preference:
    hardness_E = _hardness(task, pool)
    in_band_E = (hardness_E < 0) & (hardness_E > -task.config.margin)
    outside_E = np.where(hardness_E >= 0, hardness_E, -task.config.margin - hardness_E)
    return Preference(in_band_E, np.where(in_band_E, 0.0, outside_E.astype(np.float64)))


def _rank_window(task: MiningTask, pool: Pool) -> Preference:
    first_E, rank_E = _identity_ranks(pool)
    start, stop = task.config.window_start, task.config.window_stop
    in_band_E = (rank_E >= start) & (rank_E < stop)
    keys_E = np.where(rank_E < start, start - rank_E, rank_E - (stop - 1))
    # One draw for an identity, by its nearest row; its other rows go with it.
    leads = np.flatnonzero(in_band_E & (first_E == np.arange(len(first_E))))
    anchors, rows = task.anchors.ids_A[pool.anchors_E[leads]], pool.rows_E[leads]
    keys_E[leads] = draw_bits(task.keys.key(Stream.WINDOW), anchors, rows) >> 11
    return Preference(in_band_E, keys_E[first_E])


def _distance_weighted(task: MiningTask, pool: Pool) -> Preference:
    config, dim = task.config, task.embeddings_ND.shape[1]
    squared_E = np.maximum(2.0 - 2.0 * pool.similarities_E.astype(np.float64), 0.0)
    in_band_E = squared_E <= config.distance_limit**2
    # Up to 4 - 1e-9: opposite points would weigh infinitely much.
    clamped_E = np.clip(squared_E, config.distance_cutoff**2, 4.0 - 1e-9)
    log_density_E = 0.5 * (dim - 2) * np.log(clamped_E) + 0.5 * (dim - 3) * np.log1p(
        -0.25 * clamped_E
    )
    return Preference(in_band_E, _drawn(task, pool, in_band_E, -log_density_E, squared_E))


def _simans(task: MiningTask, pool: Pool) -> Preference:
    everything_E = np.ones(len(pool.rows_E), np.bool_)
    off_E = _hardness(task, pool).astype(np.float64) - task.config.simans_offset
    log_weights_E = -task.config.simans_sharpness * off_E**2
    return Preference(everything_E, _drawn(task, pool, everything_E, log_weights_E, log_weights_E))


def _drawn(
    task: MiningTask,
    pool: Pool,
    in_band_E: npt.NDArray[np.bool_],
    log_weights_E: npt.NDArray[np.float64],
    outside_E: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Keys that put the band in random order by weight, and the rest in the order of outside."""
    keys_E = outside_E.copy()
    anchors, rows = task.anchors.ids_A[pool.anchors_E[in_band_E]], pool.rows_E[in_band_E]
    noise = draw_gumbel(task.keys.key(Stream.GUMBEL), anchors, rows)
    keys_E[in_band_E] = -(log_weights_E[in_band_E] + noise)
    return keys_E


def _curriculum(task: MiningTask, pool: Pool) -> Preference:
    off_E = np.abs(_hardness(task, pool) - np.float32(task.target_hardness))
    return Preference(off_E <= task.config.margin, off_E.astype(np.float64))


def _identity_ranks(pool: Pool) -> tuple[I64, I64]:
    """For each entry the nearest entry of its identity, and that identity's rank for the anchor."""
    order_E, position_E = identity_groups(pool)
    first_E = np.empty(len(order_E), np.int64)
    first_E[order_E] = order_E[np.arange(len(order_E)) - position_E]
    leads_E = first_E == np.arange(len(first_E))
    count_E = np.cumsum(leads_E) - 1
    # Entries stand by anchor: ranks start again at the first entry of each one.
    starts = np.flatnonzero(np.diff(pool.anchors_E, prepend=-1))
    before_E = np.repeat(count_E[starts], np.diff(starts, append=len(first_E)))
    return first_E, count_E[first_E] - before_E


_STRATEGIES: dict[str, Callable[[MiningTask, Pool], Preference]] = {
    "hardest": _hardest,
    "semi_hard": _semi_hard,
    "rank_window": _rank_window,
    "distance_weighted": _distance_weighted,
    "simans": _simans,
    "curriculum": _curriculum,
}
