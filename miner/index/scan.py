"""Where values exceed a mark, at a fraction of a nanosecond for each that does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled

__all__ = ["find_above"]

_STRIDE = 32
"""Values compared together: a bit for each in one word."""
_DE_BRUIJN, _TOP = np.uint32(0x077CB531), np.uint32(27)
"""Times a power of two, the five bits at the top are those of no other power of two."""
_POWERS = np.empty(32, np.int64)
_POWERS[[(0x077CB531 << power & 0xFFFFFFFF) >> 27 for power in range(32)]] = range(32)


@compiled
def find_above(
    values_G: npt.NDArray[np.float32],
    mark: Any,
    base: int,
    found: npt.NDArray[np.int64],
    num_found: int,
) -> int:
    """Write ``base + column`` for the columns whose value is above the mark.

    Args:
        values_G: [G] float32, contiguous.
        mark: float32.
        base: Added to columns.
        found: Written to from ``num_found`` on; there must be room for G + 1.
        num_found: What is in it already.

    Returns:
        What is in it now.
    """
    num_strided = len(values_G) - len(values_G) % _STRIDE
    for begin in range(0, num_strided, _STRIDE):
        above = np.uint32(0)
        for at in range(_STRIDE):
            above |= np.uint32((values_G[begin + at] > mark) << at)
        while above:
            lowest = above & (~above + np.uint32(1))
            column = begin + _POWERS[np.uint32(lowest * _DE_BRUIJN) >> _TOP]
            found[num_found] = base + column
            num_found += 1
            above ^= lowest
    for column in range(num_strided, len(values_G)):
        found[num_found] = base + column
        num_found += values_G[column] > mark
    return num_found
