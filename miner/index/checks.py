"""What a search asks of its rows before it runs.

It knows no index in particular. Shape legend: N = rows, D = dimensions, A = anchors, B = rows of a
block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.types import IdentityTable

__all__ = ["check_embeddings", "check_fit"]

NORM_TOLERANCE = 1e-3
CHECKED_ROWS = 65_536


def check_embeddings(embeddings_ND: npt.NDArray[np.float32]) -> None:
    """Accepts rows of length 1.

    Raises:
        SearchError: The array is empty, not two-dimensional or not float32, or rows are not of
            length 1 (NaN and infinity included); the text names the first of them.

    Cost: one pass over the rows.
    """
    if embeddings_ND.ndim != 2 or embeddings_ND.dtype != np.float32 or not embeddings_ND.size:
        raise SearchError(
            "an index needs a non-empty float32 array [rows, dimensions], got "
            f"{embeddings_ND.dtype} {list(embeddings_ND.shape)}"
        )
    _check_lengths(embeddings_ND)


def check_fit(
    embeddings_ND: npt.NDArray[np.float32],
    identities: IdentityTable,
    anchor_ids_A: npt.NDArray[np.int64],
) -> None:
    """Accepts embeddings and identities of the same rows, and anchors among them.

    Raises:
        SearchError: The sizes differ, anchors are no list of whole numbers, or one is no row; the
            text names the first of them.
    """
    given = np.asarray(anchor_ids_A)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise SearchError(
            f"anchors must be row ids [A] of an integer type, got {given.dtype} {list(given.shape)}"
        )
    if len(embeddings_ND) != identities.num_rows:
        raise SearchError(
            f"the embeddings hold {len(embeddings_ND)} rows, the catalog {identities.num_rows}: "
            "they must be made of the same rows"
        )
    outside = anchor_ids_A[(anchor_ids_A < 0) | (anchor_ids_A >= identities.num_rows)]
    if len(outside):
        raise SearchError(
            f"{len(outside)} anchors are no rows of the catalog, the first are "
            f"{outside[:3].tolist()}: its rows are 0 to {identities.num_rows - 1}"
        )


def _check_lengths(embeddings_ND: npt.NDArray[np.float32]) -> None:
    offenders: list[int] = []
    for begin in range(0, len(embeddings_ND), CHECKED_ROWS):
        block_BD = embeddings_ND[begin : begin + CHECKED_ROWS]
        lengths_B = np.sqrt(np.einsum("bd,bd->b", block_BD, block_BD))
        # Written so that NaN is an offender too.
        wrong_B = ~(np.abs(lengths_B - 1) <= NORM_TOLERANCE)
        offenders.extend((begin + np.flatnonzero(wrong_B)).tolist())
    if offenders:
        lengths = [float(np.linalg.norm(embeddings_ND[row])) for row in offenders[:3]]
        raise SearchError(
            f"{len(offenders)} of {len(embeddings_ND)} embeddings are not of length 1, the first "
            f"are rows {offenders[:3]} with lengths {lengths}; normalise them, and remove NaN"
        )
