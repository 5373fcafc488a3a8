"""Groups as flat triplets: row ids in columns, without the groups.

Pure NumPy. Shape legend: T = triplets, P = pairs of an anchor and a positive within a group,
M = negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.types import Groups

__all__ = ["FlatTriplets", "flatten"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FlatTriplets:
    """Triplets in the order of their groups; those of one anchor and positive stand together.

    Attributes:
        rows_T: For "anchor", "positive" and "negative" the [T] int64 row ids.
        identities_T: For "anchor" and "negative" the [T] int32 identity ids.
        similarities_ap_T, similarities_an_T: [T] float32; NaN in random rounds.
        tiers_T: [T] uint8.
        ranks_T: [T] int32, position among the negatives of the anchor and positive, from 0.
        begins_P1: [P+1] int64; pair ``p`` owns the triplets from ``begins_P1[p]`` up to
            ``begins_P1[p+1]``.
    """

    rows_T: dict[str, I64]
    identities_T: dict[str, npt.NDArray[np.int32]]
    similarities_ap_T: npt.NDArray[np.float32]
    similarities_an_T: npt.NDArray[np.float32]
    tiers_T: npt.NDArray[np.uint8]
    ranks_T: npt.NDArray[np.int32]
    begins_P1: I64

    @property
    def counts_P(self) -> I64:
        """[P] negatives of each pair."""
        return np.diff(self.begins_P1)

    def negatives_of(self, pairs: I64, num_negatives: int) -> npt.NDArray[Any]:
        """[P, M] positions of the first negatives of some pairs that have at least as many."""
        return self.begins_P1[pairs][:, None] + np.arange(num_negatives)


def flatten(groups: Groups) -> FlatTriplets:
    """The triplets of ``groups``.

    Cost: O(T log T) time, O(T) memory.

    Example:
        >>> one = np.zeros(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint8)
        >>> ids, where = np.array([7, 5, 9]), [np.array([i], np.int32) for i in range(3)]
        >>> bounds = np.array([0, 3]), np.array([0, 1])
        >>> flat = flatten(Groups(ids, ids.astype(np.int32), bounds[0], *where, *one, bounds[1]))
        >>> {role: rows.tolist() for role, rows in flat.rows_T.items()}
        {'anchor': [7], 'positive': [5], 'negative': [9]}
    """
    num_triplets_G = np.diff(groups.triplet_offsets_G1)
    groups_T = np.repeat(np.arange(groups.num_groups), num_triplets_G)
    # Stable, so that the negatives of a pair keep their order even if pairs take turns.
    order_T = np.lexsort((groups.positives_T, groups.anchors_T, groups_T))
    keys_T3 = np.stack((groups_T, groups.anchors_T, groups.positives_T), axis=1)[order_T]
    is_first_T = np.ones(len(order_T), np.bool_)
    is_first_T[1:] = (keys_T3[1:] != keys_T3[:-1]).any(axis=1)
    begins_P = np.flatnonzero(is_first_T)
    begins_P1 = np.append(begins_P, len(order_T)).astype(np.int64)
    starts_T = groups.row_offsets_G1[groups_T[order_T]]
    places_T = {
        "anchor": starts_T + groups.anchors_T[order_T],
        "positive": starts_T + groups.positives_T[order_T],
        "negative": starts_T + groups.negatives_T[order_T],
    }
    owners_T = np.repeat(begins_P, np.diff(begins_P1))
    return FlatTriplets(
        rows_T={role: groups.row_ids_R[places] for role, places in places_T.items()},
        identities_T={
            role: groups.identity_ids_R[places_T[role]] for role in ("anchor", "negative")
        },
        similarities_ap_T=groups.similarities_ap_T[order_T],
        similarities_an_T=groups.similarities_an_T[order_T],
        tiers_T=groups.tiers_T[order_T],
        ranks_T=(np.arange(len(order_T)) - owners_T).astype(np.int32),
        begins_P1=begins_P1,
    )
