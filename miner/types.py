"""The values that pass between the stages of a round: immutable, NumPy only.

Shape legend: N = rows of the catalog, I = identities, A = anchors, K = candidates per anchor,
G = groups, R = rows of all groups together, T = triplets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Candidates", "Groups", "IdentityTable", "Tier"]


class Tier(IntEnum):
    """How a triplet was found."""

    STRATEGY = 0
    RELAXED = 1
    RANDOM = 2


@dataclass(frozen=True, slots=True)
class IdentityTable:
    """Which rows belong to which identity, in CSR form.

    Attributes:
        identity_ids_N: [N] int32, the identity of each row.
        offsets_I1: [I+1] int64; the rows of identity ``i`` are
            ``rows_N[offsets_I1[i]:offsets_I1[i + 1]]``, ascending.
        rows_N: [N] int64, row ids sorted by (identity, row id).
    """

    identity_ids_N: npt.NDArray[np.int32]
    offsets_I1: npt.NDArray[np.int64]
    rows_N: npt.NDArray[np.int64]

    @classmethod
    def from_ids(
        cls, identity_ids_N: npt.NDArray[np.int32], num_identities: int | None = None
    ) -> IdentityTable:
        """Build the table of ``identity_ids_N``, whose values are dense in ``[0, num_identities)``.

        Example:
            >>> IdentityTable.from_ids(np.array([1, 0, 1], np.int32)).rows_of(1).tolist()
            [0, 2]
        """
        counts_I = np.bincount(identity_ids_N, minlength=num_identities or 0)
        offsets_I1 = np.concatenate(([0], np.cumsum(counts_I))).astype(np.int64)
        rows_N = np.argsort(identity_ids_N, kind="stable").astype(np.int64)
        return cls(identity_ids_N.astype(np.int32), offsets_I1, rows_N)

    @property
    def num_rows(self) -> int:
        """Rows of the catalog, N."""
        return len(self.identity_ids_N)

    @property
    def num_identities(self) -> int:
        """Identities of the catalog, I."""
        return len(self.offsets_I1) - 1

    @property
    def sizes_I(self) -> npt.NDArray[np.int64]:
        """[I] int64, samples per identity."""
        return np.diff(self.offsets_I1)

    def rows_of(self, identity_id: int) -> npt.NDArray[np.int64]:
        """The row ids of one identity, ascending."""
        return self.rows_N[self.offsets_I1[identity_id] : self.offsets_I1[identity_id + 1]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """For each anchor its nearest rows of other identities, nearest first.

    Attributes:
        anchor_ids_A: [A] int64 row ids of the anchors; a row may occur more than once.
        row_ids_AK: [A, K] int64, best first, ties by ascending row id; -1 after the last one.
        similarities_AK: [A, K] float32, inner products; -inf where ``row_ids_AK`` is -1.
    """

    anchor_ids_A: npt.NDArray[np.int64]
    row_ids_AK: npt.NDArray[np.int64]
    similarities_AK: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Groups:
    """An ordered list of groups in columns: the content of a round, a batch or a rank's share.

    Within a group the rows of one identity stand together; the anchor's identity comes first, its
    anchor and positive leading; every other identity is led by its mined negative. Triplets are
    int32 positions *within their group*.

    Attributes:
        row_ids_R: [R] int64 row ids.
        identity_ids_R: [R] int32 identity of each row.
        row_offsets_G1: [G+1] int64; group ``g`` owns the rows from ``row_offsets_G1[g]`` up to
            ``row_offsets_G1[g+1]``.
        anchors_T, positives_T, negatives_T: [T] int32 positions within the group.
        similarities_ap_T, similarities_an_T: [T] float32; NaN where the round was made without
            embeddings (random rounds).
        tiers_T: [T] uint8, a :class:`Tier` each.
        triplet_offsets_G1: [G+1] int64; group ``g`` owns triplets
            ``triplet_offsets_G1[g]:triplet_offsets_G1[g+1]``.
    """

    row_ids_R: npt.NDArray[np.int64]
    identity_ids_R: npt.NDArray[np.int32]
    row_offsets_G1: npt.NDArray[np.int64]
    anchors_T: npt.NDArray[np.int32]
    positives_T: npt.NDArray[np.int32]
    negatives_T: npt.NDArray[np.int32]
    similarities_ap_T: npt.NDArray[np.float32]
    similarities_an_T: npt.NDArray[np.float32]
    tiers_T: npt.NDArray[np.uint8]
    triplet_offsets_G1: npt.NDArray[np.int64]

    @property
    def num_groups(self) -> int:
        """Groups, G."""
        return len(self.row_offsets_G1) - 1

    @property
    def num_rows(self) -> int:
        """Rows of all groups together, R."""
        return len(self.row_ids_R)

    @property
    def num_triplets(self) -> int:
        """Triplets of all groups together, T."""
        return len(self.anchors_T)

    def triplet_rows(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """[T] int64 row ids of the anchors, the positives and the negatives."""
        starts_T = np.repeat(self.row_offsets_G1[:-1], np.diff(self.triplet_offsets_G1))
        return (
            self.row_ids_R[starts_T + self.anchors_T],
            self.row_ids_R[starts_T + self.positives_T],
            self.row_ids_R[starts_T + self.negatives_T],
        )

    def take(self, group_ids: npt.NDArray[np.int64]) -> Groups:
        """The groups at ``group_ids``, in that order (an index may occur more than once)."""
        rows, row_offsets = _gather(self.row_offsets_G1, group_ids)
        triplets, triplet_offsets = _gather(self.triplet_offsets_G1, group_ids)
        columns = {
            f.name: getattr(self, f.name)[rows if f.name.endswith("_R") else triplets]
            for f in fields(self)
            if not f.name.endswith("_G1")
        }
        return Groups(**columns, row_offsets_G1=row_offsets, triplet_offsets_G1=triplet_offsets)

    def between(self, first: int, stop: int) -> Groups:
        """Groups ``first`` up to ``stop``, as views."""
        rows = slice(self.row_offsets_G1[first], self.row_offsets_G1[stop])
        triplets = slice(self.triplet_offsets_G1[first], self.triplet_offsets_G1[stop])
        columns = {
            f.name: getattr(self, f.name)[rows if f.name.endswith("_R") else triplets]
            for f in fields(self)
            if not f.name.endswith("_G1")
        }
        return Groups(
            **columns,
            row_offsets_G1=self.row_offsets_G1[first : stop + 1] - rows.start,
            triplet_offsets_G1=self.triplet_offsets_G1[first : stop + 1] - triplets.start,
        )

    @classmethod
    def concatenate(cls, parts: list[Groups]) -> Groups:
        """One list out of several, in order; ``parts`` must not be empty."""
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(cls)
            if not f.name.endswith("_G1")
        }
        return cls(
            **columns,
            row_offsets_G1=_chain([part.row_offsets_G1 for part in parts]),
            triplet_offsets_G1=_chain([part.triplet_offsets_G1 for part in parts]),
        )


def _gather(
    offsets_G1: npt.NDArray[np.int64], group_ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Item indices of the chosen groups, one after the other, and their new offsets."""
    begins, lengths = offsets_G1[group_ids], np.diff(offsets_G1)[group_ids]
    new_offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    shift = np.repeat(begins - new_offsets[:-1], lengths)
    return np.arange(new_offsets[-1], dtype=np.int64) + shift, new_offsets


def _chain(offsets: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    lengths = np.concatenate([np.diff(part) for part in offsets])
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
