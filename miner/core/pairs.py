"""Unordered pairs of identities, as a set, and what they connect. Pure NumPy.

Shape legend: Q = pairs, I = identities, n = pairs before they are a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["IdentityPairs"]

Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class IdentityPairs:
    """A set of unordered pairs of different identities.

    Attributes:
        num_identities: Ids lie in ``[0, num_identities)``.
        keys_Q: [Q] int64 ascending, ``low * num_identities + high`` of each pair.
    """

    num_identities: int
    keys_Q: npt.NDArray[np.int64]

    @classmethod
    def of(cls, left_Q: Ids, right_Q: Ids, num_identities: int) -> IdentityPairs:
        """The set of these pairs; a pair may be given more than once and in either order.

        Example:
            >>> IdentityPairs.of(np.array([4, 2, 1]), np.array([2, 4, 2]), 5).kin().tolist()
            [0, 1, 1, 3, 1]
        """
        return cls(num_identities, np.unique(_keys(left_Q, right_Q, num_identities)))

    @classmethod
    def none(cls, num_identities: int) -> IdentityPairs:
        """The empty set."""
        return cls(num_identities, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys_Q)

    def members(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The lower and the higher identity of each pair."""
        low_Q, high_Q = np.divmod(self.keys_Q, max(1, self.num_identities))
        return low_Q, high_Q

    def kin(self) -> npt.NDArray[np.int32]:
        """[I] int32, for each identity the lowest one that it is connected to through pairs.

        What is one with one of two that are one is one with both.
        """
        left_Q, right_Q = self.members()
        kin_I = np.arange(self.num_identities, dtype=np.int32)
        while True:
            lower_Q = np.minimum(kin_I[left_Q], kin_I[right_Q])
            next_I = kin_I.copy()
            np.minimum.at(next_I, left_Q, lower_Q)
            np.minimum.at(next_I, right_Q, lower_Q)
            next_I = next_I[next_I]
            if np.array_equal(next_I, kin_I):
                return kin_I
            kin_I = next_I


def _keys(left_n: Ids, right_n: Ids, num_identities: int) -> npt.NDArray[np.int64]:
    low_n = np.minimum(left_n, right_n).astype(np.int64)
    keys_n: npt.NDArray[np.int64] = low_n * num_identities + np.maximum(left_n, right_n)
    return keys_n
