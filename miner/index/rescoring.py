"""Rows found in few axes, compared in all of them.

Shape legend: N = rows, D = dimensions, B = anchors, E = rows found of each, W = rows known of each,
K = kept of each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled
from miner.index.keys import key_of, row_of, similarity_of
from miner.index.quickselect import bring_greatest

__all__ = ["NONE", "rescore"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

NONE = np.uint32(2**32 - 1)
"""In place of a row that is known, where there is none."""
FEW_KEYS = 96
"""Up to so many are sorted faster by insertion."""


@compiled
def _sort_down(keys: npt.NDArray[np.uint64]) -> None:
    """Sort, the greatest first."""
    if len(keys) > FEW_KEYS:
        keys.sort()
        keys[:] = keys[::-1].copy()
        return
    for entry in range(1, len(keys)):
        key = keys[entry]
        place = entry
        while place > 0 and keys[place - 1] < key:
            keys[place] = keys[place - 1]
            place -= 1
        keys[place] = key


@compiled
def rescore(  # noqa: PLR0913, PLR0917 - compiled: no keywords, small steps
    anchors_BD: F32,
    embeddings_ND: F32,
    identity_ids_N: I32,
    owners_B: I32,
    rows_N: I64,
    places_BE: I64,
    known_BW: U32,
    places_B: I64,
    similarities_AK: F32,
    row_ids_AK: I64,
) -> None:
    """Write down the most similar rows of each anchor, best first, equal ones by row id.

    A row counts once. Where there are fewer, -inf and -1 are written.

    Args:
        anchors_BD: The anchors.
        embeddings_ND: All rows.
        identity_ids_N: Of all rows.
        owners_B: Of the anchors.
        rows_N: The row at each place.
        places_BE: Of rows of other identities; -1 for none.
        known_BW: Further rows, of any identity; NONE for none.
        places_B: Where each anchor's are written in the two arrays to come.
        similarities_AK: Written to.
        row_ids_AK: Written to.
    """
    num_found, num_known = places_BE.shape[1], known_BW.shape[1]
    num_kept, dim = similarities_AK.shape[1], anchors_BD.shape[1]
    is_held_N = np.zeros(len(rows_N), np.bool_)
    keys_E = np.empty(num_found + num_known, np.uint64)
    rows_E = np.empty(num_found + num_known, np.int64)
    similarities_E = np.empty(num_found + num_known, np.float32)
    for anchor in range(len(anchors_BD)):
        held = 0
        for entry in range(num_found):
            if places_BE[anchor, entry] >= 0:
                rows_E[held] = rows_N[places_BE[anchor, entry]]
                is_held_N[rows_E[held]] = True
                held += 1
        for entry in range(num_known):
            row = np.int64(known_BW[anchor, entry])
            if row == NONE or is_held_N[row] or identity_ids_N[row] == owners_B[anchor]:
                continue
            is_held_N[row] = True
            rows_E[held] = row
            held += 1
        anchor_D = anchors_BD[anchor]
        for entry in range(held):
            embedding_D = embeddings_ND[rows_E[entry]]
            similarity = np.float32(0)
            for axis in range(dim):
                similarity += anchor_D[axis] * embedding_D[axis]
            similarities_E[entry] = similarity
        for entry in range(held):  # apart from the above: reads do not wait for branches
            keys_E[entry] = key_of(similarities_E[entry], rows_E[entry])
            is_held_N[rows_E[entry]] = False
        target, written = places_B[anchor], min(held, num_kept)
        if written < held:
            bring_greatest(keys_E[:held], written)
        _sort_down(keys_E[:written])
        for place in range(written):
            similarities_AK[target, place] = similarity_of(keys_E[place])
            row_ids_AK[target, place] = row_of(keys_E[place])
        for place in range(written, num_kept):
            similarities_AK[target, place] = -np.inf
            row_ids_AK[target, place] = -1
