"""The best K entries of each query, while matrices of similarities go by.

    push ... push -> full -> cut back to K, the mark rises -> push ... -> entries

It knows neither rows nor identities. Shape legend: B = queries, K = entries kept, W = entries held,
P = queries of one matrix, G = columns of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.index.top_k import pack, unpack

__all__ = ["Reservoir", "capacity_for"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SLACK = 32


class Reservoir:
    """Keeps K entries of each query at least, and no entry that cannot be among the best K.

    Entries are held as they come and cut back only when there is no more room, so that an entry
    costs a few operations on arrays, and one that stays below its query's mark a comparison.
    """

    def __init__(self, marks_B: F32, num_entries: int) -> None:
        """Start empty.

        Args:
            marks_B: A similarity that ``num_entries`` of each query's entries will exceed; -inf
                where none is known.
            num_entries: K.
        """
        self._marks_B = marks_B.copy()
        self._num_entries = num_entries
        self._filled_B = np.zeros(len(marks_B), np.int64)
        self._keys_BW = np.zeros((len(marks_B), capacity_for(num_entries)), np.uint64)

    def push(self, similarities_PG: F32, queries_P: I64, ids_G: I64) -> None:
        """Take what exceeds the marks.

        Args:
            similarities_PG: [P, G] float32, C-contiguous; -inf for what must not be taken.
            queries_P: Distinct numbers of queries.
            ids_G: Distinct ids below 2**32; an id is pushed once for a query.
        """
        num_columns = similarities_PG.shape[1]
        places = np.flatnonzero(similarities_PG > self._marks_B[queries_P][:, None])
        if not len(places):
            return
        query = places // num_columns
        counts_P = np.bincount(query, minlength=len(queries_P))
        filled_P = self._filled_B[queries_P]
        capacity = self._keys_BW.shape[1]
        is_tight_P = filled_P + counts_P > capacity
        if is_tight_P.any():
            self._push_tight(similarities_PG[is_tight_P], queries_P[is_tight_P], ids_G)
            fits = ~is_tight_P[query]
            places, query = places[fits], query[fits]
            counts_P[is_tight_P] = 0
        begins_P = queries_P * capacity + filled_P - (np.cumsum(counts_P) - counts_P)
        self._keys_BW.reshape(-1)[begins_P[query] + np.arange(len(places))] = pack(
            similarities_PG.reshape(-1)[places], ids_G[places - query * num_columns]
        )
        self._filled_B[queries_P] += counts_P

    def _push_tight(self, similarities_PG: F32, queries_P: I64, ids_G: I64) -> None:
        """Make room first; what is too much for an empty reservoir goes in by halves."""
        self._cut(queries_P[self._filled_B[queries_P] > self._num_entries])
        half = len(ids_G) // 2
        if len(ids_G) <= self._keys_BW.shape[1] - self._num_entries:
            self.push(similarities_PG, queries_P, ids_G)
        else:
            for part in (slice(half), slice(half, None)):
                columns_PG = np.ascontiguousarray(similarities_PG[:, part])
                self.push(columns_PG, queries_P, ids_G[part])

    def _cut(self, queries_P: I64) -> None:
        """Keep the best K of queries that have more, and let their marks rise to the least."""
        num_dropped = self._keys_BW.shape[1] - self._num_entries
        keys_PW = self._keys_BW[queries_P]
        keys_PW.partition(num_dropped, axis=1)
        self._marks_B[queries_P] = unpack(keys_PW[:, num_dropped])[0]
        self._keys_BW[queries_P, : self._num_entries] = keys_PW[:, num_dropped:]
        self._keys_BW[queries_P, self._num_entries :] = 0
        self._filled_B[queries_P] = self._num_entries

    def entries(self) -> tuple[F32, I64]:
        """[B, K] similarities and ids of each query's best, in no order; -inf and -1 if fewer.

        Nothing can be pushed afterwards.
        """
        num_dropped = self._keys_BW.shape[1] - self._num_entries
        self._keys_BW.partition(num_dropped, axis=1)
        return unpack(self._keys_BW[:, num_dropped:])


def capacity_for(num_entries: int) -> int:
    """Entries held of a query of which so many are kept, W; 8 bytes each."""
    return 2 * num_entries + SLACK
