"""The best candidates of several searches over parts of the rows.

It knows neither rows nor identities. Shape legend: A = anchors, K = candidates kept of each, W = of
a part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, read_only

__all__ = ["merge_into"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def merge_into(
    similarities_AK: F32, row_ids_AK: I64, more_similarities_AW: F32, more_row_ids_AW: I64
) -> None:
    """Put the best K of both in the place of the first, equal ones by row id.

    Guarantee: the parts of a whole, merged in any order into -1 and -inf, give what sorting all of
    their entries by similarity, descending, then row id gives, to the bit. No row may be in two
    parts.

    Args:
        similarities_AK: [A, K] best first, equal ones by row id, -inf after the last; changed.
        row_ids_AK: [A, K] int64 of the same, -1 after the last; changed.
        more_similarities_AW: [A, W] in the same order.
        more_row_ids_AW: [A, W] of the same.

    Cost: A K comparisons.
    """
    more = read_only(more_similarities_AW), read_only(more_row_ids_AW)
    _merge(similarities_AK, row_ids_AK, *more)


@compiled
def _merge(
    similarities_AK: F32, row_ids_AK: I64, more_similarities_AW: F32, more_row_ids_AW: I64
) -> None:
    num_kept, num_more = similarities_AK.shape[1], more_similarities_AW.shape[1]
    held_K, held_ids_K = np.empty(num_kept, np.float32), np.empty(num_kept, np.int64)
    for anchor in range(len(similarities_AK)):
        held_K[:], held_ids_K[:] = similarities_AK[anchor], row_ids_AK[anchor]
        more_W, more_ids_W = more_similarities_AW[anchor], more_row_ids_AW[anchor]
        held = more = 0
        for place in range(num_kept):
            takes_more = more < num_more and more_ids_W[more] >= 0
            if takes_more and held_ids_K[held] >= 0:
                takes_more = more_W[more] > held_K[held] or (
                    more_W[more] == held_K[held] and more_ids_W[more] < held_ids_K[held]
                )
            if takes_more:
                similarities_AK[anchor, place] = more_W[more]
                row_ids_AK[anchor, place] = more_ids_W[more]
                more += 1
            else:
                similarities_AK[anchor, place] = held_K[held]
                row_ids_AK[anchor, place] = held_ids_K[held]
                held += 1
