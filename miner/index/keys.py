"""Found rows as keys: sorting keys sorts by similarity, and equal ones by row.

A key is an unsigned 64-bit number, similarity above and row below; 0 is no entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled

__all__ = ["by_similarity", "key_of", "row_of", "similarity_of", "unpack"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_LOW, _HALF, _SIGN = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint32(0x80000000)


@compiled
def key_of(similarity: Any, row: Any) -> Any:
    """The larger, the more similar; among equal ones the smaller the row."""
    bits = np.float32(similarity + np.float32(0)).view(np.uint32)  # -0.0 is equal to 0.0
    ordered = np.uint32(~bits if bits & _SIGN else bits | _SIGN)
    return np.uint64(ordered) << _HALF | (_LOW - np.uint64(row))


@compiled
def similarity_of(key: Any) -> Any:
    """The float32 of a key."""
    ordered = np.uint32(key >> _HALF)
    return np.uint32(ordered ^ _SIGN if ordered & _SIGN else ~ordered).view(np.float32)


@compiled
def row_of(key: Any) -> Any:
    """The row of a key."""
    return np.int64(_LOW - (key & _LOW))


def unpack(keys: npt.NDArray[np.uint64]) -> tuple[F32, I64]:
    """Similarities and row ids of keys; -inf and -1 of key 0, which is no entry."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    similarities = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).view(np.float32)
    row_ids = (_LOW - (keys & _LOW)).astype(np.int64)
    is_empty = keys == 0
    similarities[is_empty], row_ids[is_empty] = -np.inf, -1
    return similarities, row_ids


def by_similarity(similarities_BK: F32, row_ids_BK: I64) -> tuple[F32, I64]:
    """Entries of each query best first, equal ones by row id; -1 where the similarity is -inf."""
    row_ids_BK = np.where(np.isneginf(similarities_BK), np.iinfo(np.int64).max, row_ids_BK)
    order = np.lexsort((row_ids_BK, -similarities_BK), axis=1)
    row_ids_BK = np.take_along_axis(row_ids_BK, order, axis=1)
    similarities_BK = np.take_along_axis(similarities_BK, order, axis=1)
    row_ids_BK[np.isneginf(similarities_BK)] = -1
    return similarities_BK, row_ids_BK
