"""The K most similar rows of each anchor, while products or bounds of products go by.

What goes by only points at rows: a similarity that counts is made of the two rows alone, the same
way each time. So what is kept does not depend on the matrices that the rows came in.

Shape legend: N = rows, D = dimensions, B = anchors, G = rows of a tile, K = rows kept, W = held.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, read_only
from miner.index.keys import key_of, similarity_of, unpack
from miner.index.quickselect import bring_greatest
from miner.index.scan import find_above

__all__ = ["Sieve"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

ROUNDING = np.float32(1e-5)
"""Between two products of the same rows."""
NO_SLACK = np.float32(0)


class Sieve:
    """Keeps the best K rows of other identities of each anchor; of equal ones those taken first.

    Attributes:
        marks_B: What a similarity must exceed to count.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - anchors, rows, and where it begins
        self,
        anchors_BD: F32,
        owners_B: I32,
        embeddings_ND: F32,
        identity_ids_N: I32,
        marks_B: F32,
        num_kept: int,
        ceiling: float = np.inf,
    ) -> None:
        """Start empty.

        Args:
            anchors_BD: The anchors, of the identities ``owners_B``.
            owners_B: [B] int32.
            embeddings_ND: All rows, of the identities ``identity_ids_N``.
            identity_ids_N: [N] int32.
            marks_B: A similarity that K rows of other identities reach; -inf where none is known.
            num_kept: K.
            ceiling: What is more similar does not count; nor does it for the marks.
        """
        self.marks_B = marks_B - ROUNDING
        rows = anchors_BD, owners_B, embeddings_ND, identity_ids_N
        self._rows: Any = tuple(read_only(array) for array in rows)
        self._num_kept, self._ceiling = num_kept, np.float32(ceiling)
        self._filled_B = np.zeros(len(anchors_BD), np.int64)
        self._keys_BW = np.zeros((len(anchors_BD), 2 * num_kept + 32), np.uint64)

    def take(self, scores_BG: F32, first_row: int) -> None:
        """Take rows from ``first_row`` on, which have these similarities up to rounding."""
        self._sift(scores_BG, first_row, ROUNDING)

    def sift(self, bounds_BG: F32, first_row: int) -> int:
        """Take rows from ``first_row`` on, whose similarities are at most these.

        Returns:
            How many similarities had to be found out.
        """
        return self._sift(bounds_BG, first_row, NO_SLACK)

    def best(self) -> tuple[F32, I64]:
        """[B, K] similarities and row ids, best first, equal ones by row id, padded.

        Nothing can be taken afterwards.
        """
        num_dropped = self._keys_BW.shape[1] - self._num_kept
        self._keys_BW[np.arange(self._keys_BW.shape[1]) >= self._filled_B[:, None]] = 0
        self._keys_BW.partition(num_dropped, axis=1)
        best_BK = np.sort(self._keys_BW[:, num_dropped:], axis=1)
        return unpack(best_BK[:, ::-1])

    def _sift(self, scores_BG: F32, first_row: int, slack: np.float32) -> int:
        state: Any = self._keys_BW, self._filled_B, self.marks_B, self._num_kept, self._ceiling
        return _sift(scores_BG, first_row, slack, *self._rows, *state)


@compiled
def _sift(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    scores_BG: F32,
    first_row: int,
    slack: Any,
    anchors_BD: F32,
    owners_B: I32,
    embeddings_ND: F32,
    identity_ids_N: I32,
    keys_BW: U64,
    filled_B: I64,
    marks_B: F32,
    num_kept: int,
    ceiling: Any,
) -> int:
    found = np.empty(scores_BG.shape[1] + 1, np.int64)
    looked_at = 0
    for anchor in range(len(scores_BG)):
        num_found = find_above(scores_BG[anchor], marks_B[anchor] - slack, 0, found, 0)
        anchor_D = anchors_BD[anchor]
        for column in found[:num_found]:
            row = first_row + column
            if identity_ids_N[row] == owners_B[anchor]:
                continue
            if scores_BG[anchor, column] <= marks_B[anchor] - slack:
                continue  # the mark has risen since
            looked_at += 1
            embedding_D = embeddings_ND[row]
            similarity = np.float32(0)
            for axis in range(len(anchor_D)):
                similarity += anchor_D[axis] * embedding_D[axis]
            if similarity <= marks_B[anchor] or similarity > ceiling:
                continue
            keys_BW[anchor, filled_B[anchor]] = key_of(similarity, row)
            filled_B[anchor] += 1
            if filled_B[anchor] == keys_BW.shape[1]:
                marks_B[anchor] = similarity_of(bring_greatest(keys_BW[anchor], num_kept))
                filled_B[anchor] = num_kept
    return looked_at
