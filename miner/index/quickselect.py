"""The n greatest of some values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled

__all__ = ["bring_greatest"]


@compiled
def bring_greatest(values: npt.NDArray[Any], count: int) -> Any:
    """Bring the ``count`` greatest of some values to the front, in no order; returns their least.

    Hoare's quickselect; the pivot is the middle one of three values at random, so that an order is
    bad only by chance. Values are moved without branches, which none could predict, and those equal
    to a pivot are left together, so that any number of equal ones costs no more.

    Args:
        values: [n] floats but NaN, or integers; changed in place.
        count: At least 1 and at most n.

    Cost: O(n) on average.
    """
    low, high, random = 0, len(values), np.uint32(2463534242)
    while True:
        random = np.uint32(random * np.uint32(1664525) + np.uint32(1013904223))
        stride, last = (high - low + 2) // 3, high - 1
        place = low + int(random >> np.uint32(8)) % stride
        one, other = min(place + stride, last), min(place + 2 * stride, last)
        low_value, value, high_value = values[place], values[one], values[other]
        pivot = max(min(low_value, value), min(max(low_value, value), high_value))
        greater = low
        for place in range(low, high):
            value = values[place]
            values[place] = values[greater]
            values[greater] = value
            greater += value > pivot
        if count <= greater:
            high = greater
            continue
        equal = greater
        for place in range(greater, high):
            value = values[place]
            values[place] = values[equal]
            values[equal] = value
            equal += value == pivot
        if count <= equal:
            return pivot
        low = equal
