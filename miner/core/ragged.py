"""Index arithmetic on ragged lists (segments of a flat array), without Python loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["bounded_blocks", "ragged_arange", "rank_in_runs"]

I64 = npt.NDArray[np.int64]


def ragged_arange(lengths_n: I64) -> tuple[I64, I64]:
    """``0 .. length - 1`` for each length, one after the other, and which length each belongs to.

    Example:
        >>> [part.tolist() for part in ragged_arange(np.array([2, 0, 3]))]
        [[0, 1, 0, 1, 2], [0, 0, 2, 2, 2]]
    """
    owner = np.repeat(np.arange(len(lengths_n), dtype=np.int64), lengths_n)
    begins_n = np.cumsum(lengths_n) - lengths_n
    return np.arange(len(owner), dtype=np.int64) - begins_n[owner], owner


def rank_in_runs(keys_n: npt.NDArray[np.generic]) -> I64:
    """The position of each element within its run of equal neighbours, from 0.

    Example:
        >>> rank_in_runs(np.array([7, 7, 3, 7, 7, 7])).tolist()
        [0, 1, 0, 0, 1, 2]
    """
    index = np.arange(len(keys_n), dtype=np.int64)
    starts = np.ones(len(keys_n), np.bool_)
    starts[1:] = keys_n[1:] != keys_n[:-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0))


def bounded_blocks(lengths_n: I64, limit: int) -> Iterator[slice]:
    """Cut ``0 .. n`` into slices whose lengths sum to at most ``limit``, or hold one element."""
    ends_n = np.cumsum(lengths_n)
    begin = 0
    while begin < len(lengths_n):
        used = int(ends_n[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends_n, used + limit, side="right")))
        yield slice(begin, end)
        begin = end
