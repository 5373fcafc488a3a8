"""How the identities of a group lie to each other: the order of an anchor's list, rearranged.

Pure NumPy. Shape legend: E = entries of a pool, a = anchors of a block, W = identities of each
that are rearranged, D = dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.core.ordering import segment_order
from miner.core.pool import MiningTask, Pool
from miner.core.strategies import identity_groups

__all__ = ["compose"]

_BLOCK_FLOATS = 1 << 22

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def compose(task: MiningTask, pool: Pool) -> Pool:
    """Put the identities of each anchor's list in the order of ``config.composition``.

    The first ``composition_width`` identities of a list are rearranged, each by the first of its
    rows; the most preferred one stays first. With ``s`` the similarity of two such rows, next
    comes, among those left,

    - ``chain``: the one most similar to the one before;
    - ``community``: the one most similar, on average, to all before it;
    - ``diverse``: the one whose most similar identity before it is least similar.

    Guarantee: the same entries, those of an identity together and in their order; ties keep the
    strategy's order. An anchor's order depends on its own list only.

    Args:
        task: The round's input; ``config.composition`` is not ``star``.
        pool: In the order of the strategy.

    Cost: O(a W^2 D) time for a anchors; some 50 MB at a time.
    Source: Gonzalez (1985), farthest-first traversal, for ``diverse``. Batches of look-alike
        identities: Smirnov et al., Doppelganger mining (2017), of which a chain is one reading;
        Wang et al., Triplet networks with 100K identities (2017), clusters of them, another.
    """
    if not len(pool.rows_E):
        return pool
    order_E, position_E = identity_groups(pool)
    leads = np.sort(order_E[position_E == 0])
    anchors, counts = np.unique(pool.anchors_E[leads], return_counts=True)
    begins = np.cumsum(counts) - counts
    lead_of_E = np.empty(len(order_E), np.int64)
    lead_of_E[order_E] = order_E[np.arange(len(order_E)) - position_E]
    width = min(task.config.composition_width, int(counts.max()))
    rank_E = np.arange(len(lead_of_E), dtype=np.int64)  # of a lead; others have their lead's
    block = max(1, _BLOCK_FLOATS // (width * max(width, task.embeddings_ND.shape[1])))
    for start in range(0, len(anchors), block):
        part = slice(start, start + block)
        inside_aW = np.arange(width) < counts[part, None]
        places_aW = begins[part, None] + np.where(inside_aW, np.arange(width), 0)
        entries_aW = leads[places_aW]
        vectors_aWD = task.embeddings_ND[pool.rows_E[entries_aW]]
        similarities_aWW = vectors_aWD @ vectors_aWD.transpose(0, 2, 1)
        order_aW = _greedy(similarities_aWW, inside_aW, _GAINS[task.config.composition])
        # The identity that comes w-th takes the place of the w-th in the strategy's order.
        moved_aW = np.take_along_axis(entries_aW, order_aW, axis=1)
        rank_E[moved_aW[inside_aW]] = entries_aW[inside_aW]
    return pool.take(segment_order(pool.anchors_E, rank_E[lead_of_E]))


Gain = Callable[[F32, F32, int], F32]
"""Of the gains so far, the similarities to the one just chosen, and how many were chosen before."""

_GAINS: dict[str, Gain] = {
    "chain": lambda _, latest_aW, __: latest_aW,
    "community": lambda gains_aW, latest_aW, _: gains_aW + latest_aW,  # sums order as means do
    "diverse": lambda gains_aW, latest_aW, n: np.minimum(gains_aW, -latest_aW) if n else -latest_aW,
}


def _greedy(similarities_aWW: F32, inside_aW: npt.NDArray[np.bool_], gain: Gain) -> I64:
    """[a, W] positions in the order in which they are chosen; those outside come last."""
    num_anchors, width = inside_aW.shape
    order_aW = np.zeros((num_anchors, width), np.int64)
    left_aW = inside_aW.copy()
    rows_a = np.arange(num_anchors)
    gains_aW = np.zeros((num_anchors, width), np.float32)
    left_aW[:, 0] = False
    for n in range(width - 1):
        gains_aW = gain(gains_aW, similarities_aWW[rows_a, order_aW[:, n]], n)
        chosen_a = np.argmax(np.where(left_aW, gains_aW, -np.inf), axis=1)
        order_aW[:, n + 1] = np.where(n + 1 < inside_aW.sum(1), chosen_a, n + 1)
        left_aW[rows_a, order_aW[:, n + 1]] = False
    return order_aW
