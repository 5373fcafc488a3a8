"""Sort orders of large arrays, by way of integer keys, which sort several times faster."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["descending_bits", "segment_order", "stable_order"]


def descending_bits(values_n: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Integers below 2**32 that ascend as ``values_n`` descend, and are equal where those are.

    Example:
        >>> descending_bits(np.array([0.5, 0.0, -0.0, -2.0], np.float32)).argsort().tolist()
        [0, 1, 2, 3]
    """
    bits_n = (values_n + np.float32(0)).view(np.uint32)  # adding zero turns -0 into +0
    # IEEE 754 bits order like the numbers once positive ones are turned round.
    turned_n = np.where(bits_n >> 31 == 1, bits_n, ~bits_n & np.uint32(0x7FFFFFFF))
    return turned_n.astype(np.uint64)


def stable_order(keys_n: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The stable argsort of integers >= 0.

    Cost: one sort of plain integers where key and position fit into 63 bits together.

    Example:
        >>> stable_order(np.array([2, 1, 2, 0, 1])).tolist()
        [3, 1, 4, 0, 2]
    """
    shift = len(keys_n).bit_length()
    if int(keys_n.max(initial=0)) >> (63 - shift):
        return np.argsort(keys_n, kind="stable")
    packed_n = keys_n << shift | np.arange(len(keys_n), dtype=np.int64)
    packed_n.sort()
    order_n: npt.NDArray[np.int64] = packed_n & ((1 << shift) - 1)
    return order_n


def segment_order(
    owners_n: npt.NDArray[np.int64], keys_n: npt.NDArray[np.int32] | npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The stable order by (owner, key), where owners ascend already.

    Args:
        owners_n: [n] int64 ascending.
        keys_n: [n] float64 without NaN, or int32 >= 0.

    Cost: each owner's keys are sorted as a row of a matrix as wide as the longest: for rows of
        about equal length five to twenty times faster than one sort of all.

    Example:
        >>> segment_order(np.array([0, 0, 0, 4, 4]), np.array([2.0, 1.0, 2.0, 9.0, 3.0])).tolist()
        [1, 0, 2, 4, 3]
    """
    if not len(owners_n):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.diff(owners_n, prepend=owners_n[0] - 1))
    counts = np.diff(starts, append=len(owners_n))
    width = int(counts.max())
    inside = np.arange(width) < counts[:, None]
    if keys_n.dtype == np.float64:
        rows = np.full(inside.shape, np.inf)
        rows[inside] = keys_n
        places = np.argsort(rows, axis=1, kind="stable")  # what fills up stands last in its row
    else:
        shift = width.bit_length()
        packed = np.full(inside.shape, np.iinfo(np.int64).max)
        position = np.broadcast_to(np.arange(width), inside.shape)[inside]
        packed[inside] = keys_n.astype(np.int64) << shift | position
        packed.sort(axis=1)
        places = packed & ((1 << shift) - 1)
    order_n: npt.NDArray[np.int64] = (places + starts[:, None])[inside]
    return order_n
