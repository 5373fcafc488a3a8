"""Candidates from an index on GPUs: over-fetched, deepened up to its limit, finished elsewhere.

    nearest rows of each anchor, own identity dropped
       -> K are left, and no row beyond can be nearer: done
       -> else: four times deeper, up to the limit of the GPU
       -> else: `exact`, which masks the identity before it selects

Shape legend: A = anchors, B = anchors of one search, k = its depth, K = candidates per anchor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.checks import check_fit
from miner.index.gpu import MAX_DEPTH
from miner.index.gpu_index import GpuIndex, Nearest
from miner.index.keys import by_similarity
from miner.types import Candidates, IdentityTable

__all__ = ["gpu_candidates"]

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

MAX_RESULT_ENTRIES = 2**22
"""Bounds a search's result lists and what is made of them to about 150 MB, whatever its depth."""
MIN_SLACK = 16
CODED_SLACK = 4
"""Codes order rows only roughly: so many times more are compared again in float32."""


def gpu_candidates(  # noqa: PLR0913 - a search, and how it is finished
    index: GpuIndex,
    identities: IdentityTable,
    anchor_ids_A: I64,
    num_candidates: int,
    exact: Callable[[I64, int], Candidates],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Each anchor's ``num_candidates`` nearest rows of other identities.

    Exact if the index is of kind ``flat``, with rows in float16 too: no row of another identity
    that is left out is nearer than one that is given, up to rounding in float32. Of any kind, what
    is given are rows of other identities with their float32 products, and no anchor gets fewer than
    there are, up to K. Rows of equal similarity stand by row id. Anchors with fewer rows of other
    identities are padded with -1 and -inf.

    Args:
        index: Built.
        identities: Of the same rows.
        anchor_ids_A: [A] row ids; a row may occur more than once.
        num_candidates: K, 1 to `MAX_DEPTH`.
        exact: An exact search of some anchors for K, as `miner.index.sweep.sweep` does it, for
            those whose own identity fills the nearest `MAX_DEPTH` rows.
        on_progress: Called with (anchors done, anchors in all) after each search.

    Raises:
        SearchError: K is out of range, sizes do not fit, or an anchor is no row.

    Cost: one search of every anchor at a depth of 2 K, and up to three deeper ones of those that
    come out short.
    """
    check_fit(index.embeddings_ND, identities, anchor_ids_A)
    if not 1 <= num_candidates <= MAX_DEPTH:
        raise SearchError(
            f"FAISS on a GPU finds 1 to {MAX_DEPTH} candidates of an anchor, asked for "
            f"{num_candidates}: ask for fewer, or search by torch tiles or on the CPU"
        )
    num_anchors, num_rows = len(anchor_ids_A), identities.num_rows
    row_ids_AK = np.full((num_anchors, num_candidates), -1, np.int64)
    similarities_AK = np.full((num_anchors, num_candidates), -np.inf, np.float32)
    own_A = identities.identity_ids_N[anchor_ids_A]
    there_A = np.minimum(num_rows - identities.sizes_I[own_A], num_candidates)
    left = np.arange(num_anchors)
    is_coded = index.settings.kind == "ivfpq"
    for depth in _depths(num_candidates, num_rows, CODED_SLACK if is_coded else 1):
        step = max(1, MAX_RESULT_ENTRIES // depth)
        parts = [left[begin : begin + step] for begin in range(0, len(left), step)]
        short, num_short = [], len(left)
        for part_B in parts:
            queries_BD = np.ascontiguousarray(index.embeddings_ND[anchor_ids_A[part_B]])
            nearest = index.nearest(queries_BD, depth)
            is_own_Bk = identities.identity_ids_N[nearest.row_ids_Qk] == own_A[part_B, None]
            found = _others(nearest, is_own_Bk, num_candidates)
            width = found[0].shape[1]
            similarities_AK[part_B, :width], row_ids_AK[part_B, :width] = found
            is_done_B = np.count_nonzero(row_ids_AK[part_B] >= 0, axis=1) == there_A[part_B]
            # With all rows of other identities found there is none beyond.
            is_done_B &= (there_A[part_B] < num_candidates) | (
                similarities_AK[part_B, -1] >= nearest.bound_Q
            )
            short.append(part_B[~is_done_B])
            num_short -= int(is_done_B.sum())
            if on_progress is not None:
                on_progress(num_anchors - num_short, num_anchors)
        left = np.concatenate(short) if short else left
        if not len(left):
            break
    if len(left):
        logger.info("%d of %d anchors are finished by exact search", len(left), num_anchors)
        finished = exact(anchor_ids_A[left], num_candidates)
        row_ids_AK[left], similarities_AK[left] = finished.row_ids_AK, finished.similarities_AK
        if on_progress is not None:
            on_progress(num_anchors, num_anchors)
    return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)


def _depths(num_candidates: int, num_rows: int, slack: int = 1) -> list[int]:
    """Four times deeper each, the last one as deep as can be.

    Example:
        >>> _depths(50, 10**6), _depths(1500, 10**6), _depths(5, 20)
        ([100, 400, 1600, 2048], [2048], [20])
    """
    deepest = min(MAX_DEPTH, num_rows)
    depths = [num_candidates + slack * max(num_candidates, MIN_SLACK)]
    while depths[-1] < deepest:
        depths.append(4 * depths[-1])
    return [*depths[:-1], deepest]


def _others(nearest: Nearest, is_own_Bk: npt.NDArray[np.bool_], num: int) -> tuple[F32, I64]:
    """The first rows of other identities, best first, equal ones by row id."""
    is_dropped_Bk = is_own_Bk | (nearest.row_ids_Qk < 0)
    first = np.argsort(is_dropped_Bk, axis=1, kind="stable")[:, :num]
    similarities_Bk = np.where(is_dropped_Bk, np.float32(-np.inf), nearest.similarities_Qk)
    return by_similarity(
        np.take_along_axis(similarities_Bk, first, axis=1),
        np.take_along_axis(nearest.row_ids_Qk, first, axis=1),
    )
