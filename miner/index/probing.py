"""Which lists each anchor probes, by its similarity to their centroids; and back.

Shape legend: B = anchors joined at a time, L = lists, S = lists near an anchor's own, P = pairs of
an anchor and a list that it probes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled
from miner.index.quickselect import bring_greatest

__all__ = ["choose_lists", "turn_round"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@compiled
def choose_lists(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    scores_BS: F32, lists_S: I32, num_probes: int, num_near: int, first: int, probes: I32
) -> int:
    """Write down (anchor, list) for the lists that each anchor probes, by anchor.

    These are the ``num_probes`` most similar of lists ``lists_S``, more of them where they are
    equally similar, but for the first ``num_near``.

    Args:
        scores_BS: Similarities to the centroids of these lists.
        lists_S: Lists near that of the anchors, nearest first.
        num_probes: At least 1 and at most S.
        num_near: Of these lists, probed already.
        first: The number of the first anchor.
        probes: [more than B S, 2] written to.

    Returns:
        How many were written.
    """
    written = 0
    scratch_S = np.empty_like(scores_BS[0])
    for anchor in range(len(scores_BS)):
        scores_S = scores_BS[anchor]
        scratch_S[:] = scores_S
        mark = bring_greatest(scratch_S, num_probes)
        for near in range(num_near, len(lists_S)):
            probes[written, 0] = first + anchor
            probes[written, 1] = lists_S[near]
            written += scores_S[near] >= mark
    return written


@compiled
def turn_round(probes: I32, anchors_P: I32, ends_L: I64) -> None:
    """Sort (anchor, list) by list: the anchors into ``anchors_P``, where they end in ``ends_L``."""
    ends_L[:] = 0
    for place in range(len(probes)):
        ends_L[probes[place, 1]] += 1
    begin = 0
    for list_id in range(len(ends_L)):
        begin, ends_L[list_id] = begin + ends_L[list_id], begin
    for place in range(len(probes)):
        list_id = probes[place, 1]
        anchors_P[ends_L[list_id]] = probes[place, 0]
        ends_L[list_id] += 1
