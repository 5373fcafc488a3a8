"""A similarity that few more than K entries of a query reach, found without sorting.

Shape legend: B = queries, G = entries, W = stripes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled
from miner.index.quickselect import bring_greatest

__all__ = ["marks_of"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

STRIPES_PER_ENTRY = 4


@compiled
def marks_of(scores_BG: F32, owners_B: I32, owners_G: I32, num_entries: int, marks_B: F32) -> None:
    """Similarities that so many rows of other identities reach, but hardly more; -inf if none.

    The greatest but so many of the maxima of disjoint stripes.
    """
    num_rows = scores_BG.shape[1]
    depth = max(1, num_rows // (STRIPES_PER_ENTRY * num_entries))
    width = num_rows // depth
    maxima_W = np.empty(width, np.float32)
    for anchor in range(len(scores_BG)):
        marks_B[anchor] = -np.inf
        if width < num_entries:
            continue
        maxima_W[:] = -np.inf
        for begin in range(0, depth * width, width):
            for at in range(width):
                is_own = owners_G[begin + at] == owners_B[anchor]
                score = np.float32(-np.inf) if is_own else scores_BG[anchor, begin + at]
                maxima_W[at] = max(maxima_W[at], score)
        marks_B[anchor] = bring_greatest(maxima_W, num_entries)
