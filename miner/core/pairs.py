"""Unordered pairs of identities, as a set that arrays can be looked up in. Pure NumPy.

Shape legend: Q = pairs, I = identities, n = looked up.
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
            >>> pairs = IdentityPairs.of(np.array([2, 0]), np.array([1, 2]), 3)
            >>> pairs.contain(np.array([1, 0, 2]), np.array([2, 1, 0])).tolist()
            [True, False, True]
        """
        return cls(num_identities, np.unique(_keys(left_Q, right_Q, num_identities)))

    @classmethod
    def none(cls, num_identities: int) -> IdentityPairs:
        """The empty set."""
        return cls(num_identities, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys_Q)

    def contain(self, left_n: Ids, right_n: Ids) -> npt.NDArray[np.bool_]:
        """[n] bool, which of these pairs are in the set; O(n + I), and O(log Q) for members."""
        member_I = np.zeros(self.num_identities, np.bool_)
        member_I[np.concatenate(self.members())] = True
        found_n = member_I[left_n] & member_I[right_n]
        # Of those in question, if any: most identities are in no pair.
        keys_m = _keys(left_n[found_n], right_n[found_n], self.num_identities)
        places_m = np.minimum(np.searchsorted(self.keys_Q, keys_m), len(self.keys_Q) - 1)
        found_n[found_n] = self.keys_Q[places_m] == keys_m
        return found_n

    def members(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The lower and the higher identity of each pair."""
        low_Q, high_Q = np.divmod(self.keys_Q, max(1, self.num_identities))
        return low_Q, high_Q

    def most_partners(self) -> int:
        """In how many pairs the identity is that occurs most often."""
        return int(np.bincount(np.concatenate(self.members())).max(initial=0))


def _keys(left_n: Ids, right_n: Ids, num_identities: int) -> npt.NDArray[np.int64]:
    low_n = np.minimum(left_n, right_n).astype(np.int64)
    keys_n: npt.NDArray[np.int64] = low_n * num_identities + np.maximum(left_n, right_n)
    return keys_n
