"""The best K entries of each query, while matrices of similarities go by.

    push ... push -> full -> cut back to K, the mark rises -> push ... -> ids

It knows neither rows nor identities. Shape legend: B = queries, K = entries kept, W = entries held,
P = queries of one matrix, G = columns of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled
from miner.index.quickselect import bring_greatest
from miner.index.scan import find_above

__all__ = ["LEAST", "Reservoir", "capacity_for"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

LEAST = np.float32(-2.0)
"""Below every product of rows of length 1: the mark of a query of which nothing is known.

An entry is one key: its similarity above LEAST, whose bits order as it does, then its id.
"""
_FOUND = 4096
"""Entries that exceed their marks are put in so many at a time."""
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Reservoir:
    """Keeps K entries of each query at least, and no entry that cannot be among the best K.

    Entries are held as they come and cut back only when there is no more room, and one that stays
    below its query's mark costs a fraction of a nanosecond.

    Attributes:
        marks_B: A similarity that K entries of each query reach or will reach; may be raised to
            another such one.
    """

    def __init__(self, owners_B: I32, num_entries: int) -> None:
        """Start empty.

        Args:
            owners_B: [B] int32 of each query, who must not own an entry that is taken.
            num_entries: K.
        """
        self.marks_B = np.full(len(owners_B), LEAST)
        self._owners_B = owners_B
        self._num_entries = num_entries
        self._filled_B = np.zeros(len(owners_B), np.int64)
        self._keys_BW = np.empty((len(owners_B), capacity_for(num_entries)), np.uint64)

    def push(self, scores_PG: F32, queries_P: I32, ids_G: I64, owners_G: I32) -> None:
        """Take what exceeds the marks.

        Args:
            scores_PG: [P, G] float32, C-contiguous similarities.
            queries_P: [P] int32 distinct numbers of queries.
            ids_G: [G] int64 distinct ids below 2**32; an id is pushed once for a query.
            owners_G: [G] int32 of the same.
        """
        _push(
            scores_PG,
            queries_P,
            ids_G,
            owners_G,
            self._owners_B,
            self._keys_BW,
            self._filled_B,
            self.marks_B,
            self._num_entries,
        )

    def ids(self) -> I64:
        """[B, K] ids of each query's best, in no order; -1 if there are fewer.

        Nothing can be pushed afterwards.
        """
        ids_BK = np.empty((len(self._keys_BW), self._num_entries), np.int64)
        _take_ids(self._keys_BW, self._filled_B, ids_BK)
        return ids_BK


def capacity_for(num_entries: int) -> int:
    """Entries held of a query of which so many are kept, W; 8 bytes each."""
    return 2 * num_entries + 32


@compiled
def _push(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    scores_PG: F32,
    queries_P: I32,
    ids_G: I64,
    owners_G: I32,
    owners_B: I32,
    keys_BW: U64,
    filled_B: I64,
    marks_B: F32,
    num_entries: int,
) -> None:
    """Collect what is above its mark, and put it in some thousands at a time.

    So the reads of reservoirs, which lie all over the memory, do not wait for one another.
    """
    found = np.empty(_FOUND + scores_PG.shape[1] + 1, np.int64)
    num_found = 0
    for place in range(len(queries_P)):
        mark = marks_B[queries_P[place]]
        num_found = find_above(scores_PG[place], mark, place << 32, found, num_found)
        if num_found < _FOUND and place + 1 < len(queries_P):
            continue
        for at in found[:num_found]:
            source, column = at >> 32, at & 0xFFFFFFFF
            query, score = queries_P[source], scores_PG[source, column]
            if owners_G[column] == owners_B[query] or score <= marks_B[query]:
                continue  # the mark may have risen since
            above = np.float32(score - LEAST).view(np.uint32)
            keys_BW[query, filled_B[query]] = np.uint64(above) << _HALF | np.uint64(ids_G[column])
            filled_B[query] += 1
            if filled_B[query] == keys_BW.shape[1]:
                least = np.uint32(bring_greatest(keys_BW[query], num_entries) >> _HALF)
                marks_B[query] = least.view(np.float32) + LEAST
                filled_B[query] = num_entries
        num_found = 0


@compiled
def _take_ids(keys_BW: U64, filled_B: I64, ids_BK: I64) -> None:
    num_entries = ids_BK.shape[1]
    for query in range(len(keys_BW)):
        filled = filled_B[query]
        if filled > num_entries:
            bring_greatest(keys_BW[query, :filled], num_entries)
        for at in range(num_entries):
            ids_BK[query, at] = np.int64(keys_BW[query, at] & _LOW) if at < filled else -1
