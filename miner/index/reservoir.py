"""The best K entries of each query, while matrices of similarities go by.

    push ... push -> full -> cut back to K, the mark rises -> push ... -> entries

It knows neither rows nor identities. Shape legend: B = queries, K = entries kept, W = entries held,
P = queries of one matrix, G = columns of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST", "Reservoir", "capacity_for"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

LEAST = np.float32(-2.0)
"""Below every product of rows of length 1: the mark of a query of which nothing is known.

An entry is one key: its similarity above LEAST, whose bits order as it does, then its id.
"""
ROOM = 64
"""Before a matrix is taken there is room for so many of its entries; few queries have more."""


class Reservoir:
    """Keeps K entries of each query at least, and no entry that cannot be among the best K.

    Entries are held as they come and cut back only when there is no more room, so that an entry
    costs a few operations on arrays, and one that stays below its query's mark a comparison.

    Attributes:
        marks_B: A similarity that K entries of each query reach or will reach.
    """

    def __init__(self, marks_B: F32, num_entries: int) -> None:
        """Start empty.

        Args:
            marks_B: A similarity that ``num_entries`` of each query's entries will exceed; LEAST
                where none is known.
            num_entries: K.
        """
        self.marks_B = np.maximum(marks_B, LEAST)
        self._num_entries = num_entries
        self._filled_B = np.zeros(len(marks_B), np.int64)
        self._keys_BW = np.zeros((len(marks_B), capacity_for(num_entries)), np.uint64)

    def make_room(self, queries_P: I64) -> None:
        """Cut back those of some queries that are nearly full; their marks rise."""
        is_full_P = self._filled_B[queries_P] > self._keys_BW.shape[1] - ROOM
        self._cut(queries_P[is_full_P])

    def push(self, excess_PG: F32, queries_P: I64, ids_G: I64) -> None:
        """Take what exceeds the marks.

        Args:
            excess_PG: [P, G] float32, C-contiguous: similarities less the queries' marks, so that
                what is taken is above 0; -inf for what must not be taken.
            queries_P: Distinct numbers of queries.
            ids_G: Distinct ids below 2**32; an id is pushed once for a query.
        """
        num_columns = excess_PG.shape[1]
        places = np.flatnonzero(excess_PG > 0)
        if not len(places):
            return
        query = places // num_columns
        counts_P = np.bincount(query, minlength=len(queries_P))
        filled_P = self._filled_B[queries_P]
        capacity = self._keys_BW.shape[1]
        is_tight_P = filled_P + counts_P > capacity
        if is_tight_P.any():
            self._push_tight(excess_PG[is_tight_P], queries_P[is_tight_P], ids_G)
            fits = ~is_tight_P[query]
            places, query = places[fits], query[fits]
            counts_P[is_tight_P] = 0
        begins_P = queries_P * capacity + filled_P - (np.cumsum(counts_P) - counts_P)
        above = excess_PG.reshape(-1).take(places)
        above += (self.marks_B[queries_P] - LEAST).take(query)
        keys = above.view(np.uint32).astype(np.uint64) << _HALF
        keys |= ids_G.take(places - query * num_columns).view(np.uint64)
        self._keys_BW.reshape(-1)[begins_P.take(query) + np.arange(len(places))] = keys
        self._filled_B[queries_P] += counts_P

    def _push_tight(self, excess_PG: F32, queries_P: I64, ids_G: I64) -> None:
        """Make room first; what is too much for an empty reservoir goes in by halves."""
        marks_P = self.marks_B[queries_P]
        self._cut(queries_P[self._filled_B[queries_P] > self._num_entries])
        excess_PG -= (self.marks_B[queries_P] - marks_P)[:, None]
        if len(ids_G) <= self._keys_BW.shape[1] - self._num_entries:
            self.push(excess_PG, queries_P, ids_G)
            return
        half = len(ids_G) // 2
        marks_P = self.marks_B[queries_P]
        self.push(np.ascontiguousarray(excess_PG[:, :half]), queries_P, ids_G[:half])
        rest_PG = excess_PG[:, half:] - (self.marks_B[queries_P] - marks_P)[:, None]
        self.push(rest_PG, queries_P, ids_G[half:])

    def _cut(self, queries_P: I64) -> None:
        """Keep the best K of queries that have more, and let their marks rise to the least."""
        if not len(queries_P):
            return
        num_dropped = self._keys_BW.shape[1] - self._num_entries
        keys_PW = self._keys_BW[queries_P]
        keys_PW.partition(num_dropped, axis=1)
        least = (keys_PW[:, num_dropped] >> _HALF).astype(np.uint32).view(np.float32)
        self.marks_B[queries_P] = least + LEAST
        self._keys_BW[queries_P, : self._num_entries] = keys_PW[:, num_dropped:]
        self._keys_BW[queries_P, self._num_entries :] = 0
        self._filled_B[queries_P] = self._num_entries

    def ids(self) -> I64:
        """[B, K] ids of each query's best, in no order; -1 if there are fewer.

        Nothing can be pushed afterwards.
        """
        num_dropped = self._keys_BW.shape[1] - self._num_entries
        self._keys_BW.partition(num_dropped, axis=1)
        keys_BK = self._keys_BW[:, num_dropped:]
        ids_BK = (keys_BK & _LOW).view(np.int64)
        ids_BK[keys_BK == 0] = -1
        return ids_BK


def capacity_for(num_entries: int) -> int:
    """Entries held of a query of which so many are kept, W; 8 bytes each."""
    return 3 * num_entries + 2 * ROOM
