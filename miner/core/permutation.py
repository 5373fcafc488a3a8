"""The order in which a plan serves the groups of a round. Pure; knows no plan and no round log."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.core.rng import Stream, draw_bits, stream_key

__all__ = ["group_order"]


def group_order(
    num_groups: int, *, seed: int, round_id: int, pass_number: int
) -> npt.NDArray[np.int64]:
    """A permutation of a round's groups for one pass over it.

    Guarantee: a pure function of the four arguments, the same for ever on every machine: plans on
    disk rely on it. Passes and rounds are shuffled independently of each other.

    Args:
        num_groups: Groups of the round, G >= 0.
        seed: The run's seed.
        round_id: The round.
        pass_number: How often the run has been through the round before.

    Returns:
        [G] int64, each of ``0 .. G - 1`` once.

    Raises:
        ValueError: If ``num_groups`` is negative.

    Cost: O(G log G) time, O(G) memory.

    Example:
        >>> group_order(6, seed=0, round_id=1, pass_number=0).tolist()
        [5, 2, 1, 0, 3, 4]
    """
    if num_groups < 0:
        raise ValueError(f"a round cannot have {num_groups} groups")
    key = stream_key(seed, round_id, Stream.PLAN_ORDER, pass_number)
    bits_G = draw_bits(key, np.arange(num_groups, dtype=np.int64))
    return stable_order(bits_G)


def stable_order(values_G: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """As ``np.argsort(values_G, kind="stable")``, five times as fast where no values are equal."""
    order_G = np.argsort(values_G)  # vectorised; the order of equal values is left open
    sorted_G = values_G[order_G]
    if (sorted_G[1:] == sorted_G[:-1]).any():
        return np.argsort(values_G, kind="stable")
    return order_G
