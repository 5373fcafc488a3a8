"""The nearest rows of other identities for each anchor.

Identity is masked by over-fetching: of an anchor's ``K + n`` nearest rows at most ``n``, the size
of its identity, are its own, so K others are among them. It knows no index in particular and no
strategy. Shape legend: N = rows, D = dimensions, A = anchors, K = candidates per anchor,
B = anchors of one search, k = its depth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.flat import Index
from miner.types import Candidates, IdentityTable

__all__ = ["check_fit", "find_candidates"]

MAX_RESULT_ENTRIES = 2**22
"""Bounds a search's result lists and what is made of them to about 150 MB, whatever its depth."""
MIN_SLACK = 16


def find_candidates(  # noqa: PLR0913  (three sizes of one search; all but the data by name)
    index: Index,
    embeddings_ND: npt.NDArray[np.float32],
    identities: IdentityTable,
    anchor_ids_A: npt.NDArray[np.int64],
    *,
    num_candidates: int,
    block: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Each anchor's ``num_candidates`` nearest rows of other identities.

    Exact if the index is: no row of another identity that is left out is nearer than one that is
    given. Rows of equal similarity stand by row id; which of them is cut off at the end is open.
    Anchors with fewer rows of other identities than asked for are padded with -1 and -inf.

    Args:
        index: Built over ``embeddings_ND``.
        embeddings_ND: [N, D] float32, rows of length 1.
        identities: Of the same N rows.
        anchor_ids_A: [A] row ids; a row may occur more than once.
        num_candidates: K, at least 1.
        block: Most queries per search.
        on_progress: Called with (anchors done, anchors in all) after each search.

    Raises:
        SearchError: The sizes of index, embeddings and catalog differ, K or ``block`` is below 1,
            or an anchor is no row of the catalog.

    Cost: one search of every anchor at a depth of at most 2 K (K >= 16); an anchor whose identity
    is larger than K and crowds its neighbourhood is searched again, each time four times deeper.
    """
    check_fit(index, embeddings_ND, identities, anchor_ids_A)
    if num_candidates < 1 or block < 1:
        raise SearchError(f"a search needs {num_candidates=} and {block=} of at least 1")
    num_anchors = len(anchor_ids_A)
    row_ids_AK = np.full((num_anchors, num_candidates), -1, np.int64)
    similarities_AK = np.full((num_anchors, num_candidates), -np.inf, np.float32)
    own_A = identities.sizes_I[identities.identity_ids_N[anchor_ids_A]]
    sufficient_A = np.minimum(num_candidates + _round_up(own_A), identities.num_rows)
    depths_A = np.minimum(sufficient_A, num_candidates + max(num_candidates, MIN_SLACK))
    done_A = np.zeros(num_anchors, np.bool_)
    while not done_A.all():
        depth = int(depths_A[~done_A].min())
        waiting = np.flatnonzero(~done_A & (depths_A == depth))
        rows = max(1, min(block, MAX_RESULT_ENTRIES // depth))
        for begin in range(0, len(waiting), rows):
            part_B = waiting[begin : begin + rows]
            anchors_B = anchor_ids_A[part_B]
            found = index.search(np.ascontiguousarray(embeddings_ND[anchors_B]), depth)
            given = _keep_others(*found, identities, anchors_B, num_candidates)
            similarities_AK[part_B], row_ids_AK[part_B] = given
            full_B = row_ids_AK[part_B, -1] >= 0
            done_A[part_B] = full_B | (depth >= sufficient_A[part_B])
            if on_progress is not None:
                on_progress(int(done_A.sum()), num_anchors)
        depths_A[waiting] = np.minimum(sufficient_A[waiting], 4 * depth)
    return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)


def check_fit(
    index: Index,
    embeddings_ND: npt.NDArray[np.float32],
    identities: IdentityTable,
    anchor_ids_A: npt.NDArray[np.int64],
) -> None:
    """Raises :class:`SearchError` unless all are of the same rows and anchors are rows."""
    indexed = index.describe()["num_rows"]
    if not indexed == len(embeddings_ND) == identities.num_rows:
        raise SearchError(
            f"the index holds {indexed} rows, the embeddings {len(embeddings_ND)}, the catalog "
            f"{identities.num_rows}: they must be made of the same rows"
        )
    outside = anchor_ids_A[(anchor_ids_A < 0) | (anchor_ids_A >= identities.num_rows)]
    if len(outside):
        raise SearchError(
            f"{len(outside)} anchors are no rows of the catalog, the first are "
            f"{outside[:3].tolist()}: its rows are 0 to {identities.num_rows - 1}"
        )


def _round_up(sizes_A: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """To 16, 64, 256...: few distinct depths make large blocks."""
    steps = MIN_SLACK * 4 ** np.arange(28, dtype=np.int64)
    rounded: npt.NDArray[np.int64] = steps[np.searchsorted(steps, sizes_A)]
    return rounded


def _keep_others(
    similarities_Bk: npt.NDArray[np.float32],
    row_ids_Bk: npt.NDArray[np.int64],
    identities: IdentityTable,
    anchors_B: npt.NDArray[np.int64],
    num_candidates: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The first K found rows of another identity, ties by row id, padded with -inf and -1."""
    own_B = identities.identity_ids_N[anchors_B]
    masked_Bk = (row_ids_Bk < 0) | (identities.identity_ids_N[row_ids_Bk] == own_B[:, None])
    others_first = np.argsort(masked_Bk, axis=1, kind="stable")[:, :num_candidates]
    masked_BK = np.take_along_axis(masked_Bk, others_first, axis=1)
    similarities_BK = np.take_along_axis(similarities_Bk, others_first, axis=1)
    row_ids_BK = np.take_along_axis(row_ids_Bk, others_first, axis=1)
    similarities_BK[masked_BK], row_ids_BK[masked_BK] = -np.inf, -1
    tied = np.flatnonzero((similarities_BK[:, 1:] == similarities_BK[:, :-1]).any(axis=1))
    by_row_id = np.lexsort((row_ids_BK[tied], -similarities_BK[tied]), axis=1)
    row_ids_BK[tied] = np.take_along_axis(row_ids_BK[tied], by_row_id, axis=1)
    missing = ((0, 0), (0, num_candidates - masked_BK.shape[1]))
    return (
        np.pad(similarities_BK, missing, constant_values=-np.inf),
        np.pad(row_ids_BK, missing, constant_values=-1),
    )
