"""The best K of each row of a similarity matrix, by sorting few of its entries.

A found entry is one unsigned 64-bit key, similarity above and row id below, so that sorting keys
sorts by similarity and equal ones by row id. Shape legend: B = queries, G = gallery rows,
K = entries kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["by_similarity", "pack", "pass_mark", "top_k", "unpack"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_LOW = np.uint64(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)
_LEAST = np.finfo(np.float32).min
_STRIPES_PER_ENTRY = 4


def top_k(similarities_BG: F32, row_ids_G: I64, num_entries: int) -> tuple[F32, I64]:
    """The ``num_entries`` most similar rows of each query, best first, equal ones by row id.

    Args:
        similarities_BG: [B, G] float32, C-contiguous; -inf for what must not be found.
        row_ids_G: [G] row ids below 2**32.
        num_entries: K, at least 1.

    Returns:
        [B, K] similarities and row ids, padded with -inf and -1.

    Cost: two passes over the matrix and a sort of hardly more than K entries per query.

    Example:
        >>> top_k(np.array([[0.1, 0.9, 0.1]], np.float32), np.array([7, 8, 5]), 2)[1].tolist()
        [[8, 5]]
    """
    num_queries, num_rows = similarities_BG.shape
    marks_B = np.maximum(pass_mark(similarities_BG, num_entries), _LEAST)
    passed_BG = similarities_BG >= marks_B[:, None]
    places = np.flatnonzero(passed_BG)
    counts_B = np.count_nonzero(passed_BG, axis=1)
    query = np.repeat(np.arange(num_queries), counts_B)
    position = np.arange(len(places)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    width = max(num_entries, int(counts_B.max(initial=0)))
    keys_BW = np.zeros((num_queries, width), np.uint64)
    found = similarities_BG.reshape(-1)[places]
    keys_BW[query, position] = pack(found, row_ids_G[places - query * num_rows])
    keys_BW.sort(axis=1)
    return unpack(
        keys_BW[:, : width - num_entries - 1 : -1] if width > num_entries else keys_BW[:, ::-1]
    )


def pass_mark(similarities_BG: F32, num_entries: int) -> F32:
    """[B] a similarity that at least ``num_entries`` of each query's rows reach; -inf if G < K.

    The K-th largest of the maxima of disjoint stripes: few more than K entries reach it.
    """
    num_queries, num_rows = similarities_BG.shape
    if num_rows < num_entries:
        return np.full(num_queries, -np.inf, np.float32)
    depth = max(1, num_rows // (_STRIPES_PER_ENTRY * num_entries))
    width = num_rows // depth
    stripes = similarities_BG[:, : depth * width].reshape(num_queries, depth, width)
    maxima_BW = stripes.max(axis=1) if depth > 1 else similarities_BG
    marks_B: F32 = np.partition(maxima_BW, width - num_entries, axis=1)[:, width - num_entries]
    return marks_B


def by_similarity(similarities_BK: F32, row_ids_BK: I64) -> tuple[F32, I64]:
    """Entries of each query best first, equal ones by row id; -1 where the similarity is -inf."""
    row_ids_BK = np.where(np.isneginf(similarities_BK), np.iinfo(np.int64).max, row_ids_BK)
    order = np.lexsort((row_ids_BK, -similarities_BK), axis=1)
    row_ids_BK = np.take_along_axis(row_ids_BK, order, axis=1)
    similarities_BK = np.take_along_axis(similarities_BK, order, axis=1)
    row_ids_BK[np.isneginf(similarities_BK)] = -1
    return similarities_BK, row_ids_BK


def pack(similarities: F32, row_ids: I64) -> U64:
    """Keys of entries: the larger, the more similar; among equal ones the smaller its row id."""
    bits = (similarities + np.float32(0)).view(np.uint32)  # -0.0 is equal to 0.0
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint64)
    return (ordered << np.uint64(32)) | (_LOW - row_ids.astype(np.uint64))


def unpack(keys: U64) -> tuple[F32, I64]:
    """Similarities and row ids of keys; -inf and -1 of key 0, which is no entry."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    similarities = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).view(np.float32)
    row_ids = (_LOW - (keys & _LOW)).astype(np.int64)
    is_empty = keys == 0
    similarities[is_empty], row_ids[is_empty] = -np.inf, -1
    return similarities, row_ids
