"""The n greatest of some values."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from miner.compiled import compiled

__all__ = ["bring_greatest"]


@compiled
def bring_greatest(values: npt.NDArray[Any], count: int) -> Any:
    """Bring the ``count`` greatest of some values to the front, in no order; returns their least.

    Hoare's quickselect. Values are moved without branches, which none could predict, and those
    equal to a pivot are left together, so that any number of equal ones costs no more.

    Args:
        values: [n] floats but NaN, or integers; changed in place.
        count: At least 1 and at most n.

    Cost: O(n) on average.
    """
    low, high = 0, len(values)
    while True:
        first, middle, last = values[low], values[(low + high) // 2], values[high - 1]
        pivot = max(min(first, middle), min(max(first, middle), last))
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
