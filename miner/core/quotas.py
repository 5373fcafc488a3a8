"""Identity-balanced quotas: how many groups each identity anchors, in one round and before it.

Pure integer arithmetic on NumPy arrays: no Ray, FAISS, gRPC or torch. Shape legend: I = identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Quota", "allocate_quota"]

_WEIGHT_SUM = 1 << 40
_MAX_BUDGET = 1 << 22
_GOLDEN = 0.6180339887498949

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Quota:
    """Shares of one round.

    Attributes:
        units_I: [I] int64, what each identity gets in this round.
        before_I: [I] int64, what it got in all rounds before, under the same arguments.
    """

    units_I: I64
    before_I: I64


def allocate_quota(
    caps_I: I64,
    weights_I: npt.NDArray[np.float64],
    *,
    budget: int,
    round_id: int,
    floors_I: I64 | None = None,
) -> Quota:
    """Share ``budget`` units over identities by weight, max-min fair within bounds, over rounds.

    The fair share of an identity is ``max(floor, min(cap, level * weight))``, with the level that
    spends the budget; a budget below the sum of floors is shared with the floors as caps. A round
    gives it rounded down or up; which identities get the odd unit rotates:

    - with equal weights each identity below its cap gets its odd unit within ``ceil(1 / fraction)``
      rounds of any other: if the budget is smaller than the number of identities, each has its
      turn within ``ceil(I / budget)`` rounds;
    - with other weights it gets it in a share of rounds that tends to the fraction.

    Args:
        caps_I: [I] int64, >= 0, most that an identity may get in a round.
        weights_I: [I] float64, > 0.
        budget: Units of a round, ``0 <= budget <= 2**22``.
        round_id: Counted from 1.
        floors_I: [I] int64, fewest that an identity is to get, at most its cap; None for 0.

    Returns:
        Quotas with ``units_I <= caps_I`` and ``units_I.sum() == min(budget, caps_I.sum())``, and
        ``units_I >= floors_I`` unless the budget is below the sum of floors; an identity that is
        earlier in order has its first odd unit earlier where weights are equal.

    Raises:
        ValueError: If an argument is out of range.

    Cost: O((I + round_id) log) time, with floors some times as much; O(I + round_id) memory.
    Source: Bertsekas and Gallager, Data Networks (1992), sec. 6.5.2, max-min fairness; rotation is
        systematic sampling with unequal probabilities (Madow 1949). Shares by a power of the size:
        Mahajan et al., Exploring the limits of weakly supervised pretraining (2018).

    Example:
        >>> caps, weights = np.array([9, 1, 5]), np.ones(3)
        >>> [allocate_quota(caps, weights, budget=8, round_id=r).units_I.tolist() for r in (1, 2)]
        [[4, 1, 3], [3, 1, 4]]
    """
    if not 0 <= budget <= _MAX_BUDGET or round_id < 1:
        raise ValueError(
            f"quota needs 0 <= budget <= {_MAX_BUDGET} and round_id >= 1, "
            f"got {budget=}, {round_id=}"
        )
    if (caps_I < 0).any() or not (weights_I > 0).all():
        raise ValueError("quota needs caps >= 0 and weights > 0")
    floors_I = np.zeros_like(caps_I) if floors_I is None else floors_I
    if (floors_I < 0).any() or (floors_I > caps_I).any():
        raise ValueError("quota needs 0 <= floors <= caps")
    if budget < floors_I.sum():
        caps_I, floors_I = floors_I, np.zeros_like(floors_I)
    units_I = np.minimum(caps_I, budget).astype(np.int64)
    if budget >= units_I.sum():
        return Quota(units_I, units_I * (round_id - 1))
    scaled_I = np.maximum(1, np.rint(weights_I * (_WEIGHT_SUM / weights_I.sum()))).astype(np.int64)
    open_I, at_floor_I = _between_bounds(units_I, floors_I, scaled_I, budget)
    units_I[at_floor_I] = floors_I[at_floor_I]
    before_I = units_I * (round_id - 1)
    if not open_I.any():
        return Quota(units_I, before_I)
    left = budget - int(units_I[~open_I].sum())  # of the others, those at their floor included
    shares_I, unit = left * scaled_I[open_I], int(scaled_I[open_I].sum())
    whole_I, odd_I = np.divmod(shares_I, unit)
    hits_I, hits_before_I = _rotate(odd_I, unit, round_id)
    units_I[open_I] = whole_I + hits_I - hits_before_I
    before_I[open_I] = whole_I * (round_id - 1) + hits_before_I
    return Quota(units_I, before_I)


def _between_bounds(
    caps_I: I64, floors_I: I64, weights_I: I64, budget: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Identities whose fair share lies between floor and cap, and those that stay at their floor.

    Who would get less than its floor is given the floor; what the others share is less for it, so
    the level falls and more may come to their floors, but none leaves it.
    """
    at_floor_I = np.zeros(len(caps_I), np.bool_)
    while True:
        left = budget - int(floors_I[at_floor_I].sum())
        open_I = ~at_floor_I
        if left >= caps_I[open_I].sum():
            return np.zeros_like(open_I), at_floor_I
        open_I[open_I] = _below_cap(caps_I[open_I], weights_I[open_I], left)
        left -= int(caps_I[~at_floor_I & ~open_I].sum())
        low_I = open_I & (left * weights_I < floors_I * int(weights_I[open_I].sum()))
        if not low_I.any():
            return open_I, at_floor_I
        at_floor_I |= low_I


def _below_cap(caps_I: I64, weights_I: I64, budget: int) -> npt.NDArray[np.bool_]:
    """Identities whose fair share lies below their cap; one exists, as caps exceed the budget.

    In order of cap per weight, identities fill up to their caps until the level that would spend
    the rest on the remaining ones is below the next cap.
    """
    order_I = np.argsort(caps_I / weights_I, kind="stable")
    caps, weights = caps_I[order_I], weights_I[order_I]
    left = budget - (np.cumsum(caps) - caps)
    weight_left = np.cumsum(weights[::-1])[::-1]
    first_open = int(np.argmax(left * weights < caps * weight_left))
    open_I = np.zeros(len(caps_I), np.bool_)
    open_I[order_I[first_open:]] = True
    return open_I


def _rotate(odd_I: I64, unit: int, round_id: int) -> tuple[I64, I64]:
    """How often each identity got its odd unit up to ``round_id``, and up to the round before.

    Identities are arcs of length ``odd_I / unit`` < 1 on a line; each round has points at distance
    one, shifted from round to round, and gives a unit to each arc that holds a point. A shift by
    the length of equal arcs visits them in turn; otherwise the golden ratio spreads the points.
    """
    ends_I = np.cumsum(odd_I)
    begins_I = ends_I - odd_I
    equal = bool((odd_I == odd_I[0]).all())
    step = int(odd_I[0]) if equal else int(unit * _GOLDEN)
    points = np.arange(round_id, dtype=np.int64) * step % unit

    def hits(num_rounds: int) -> I64:
        offsets = np.sort(points[:num_rounds])

        def below(position_I: I64) -> I64:
            whole_I, rest_I = np.divmod(position_I, unit)
            return whole_I * num_rounds + np.searchsorted(offsets, rest_I, side="left")

        return below(ends_I) - below(begins_I)

    return hits(round_id), hits(round_id - 1)
