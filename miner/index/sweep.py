"""Exact candidates: every anchor compared with every row.

Where few axes hold most of the rows' length, a product in those axes and what remains of both rows
bound the similarity from above, so that most rows are done with at a fraction of the cost:

    first rows -> marks -> each tile: bounds above the marks -> similarities above them -> best K

Shape legend: N = rows, D = dimensions, A = anchors, B = anchors of a block, K = candidates,
G = rows of a tile of the gallery, Q = leading axes and the remainder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.compiled import read_only
from miner.index.marks import marks_of
from miner.index.projection import Projection
from miner.index.sieve import Sieve
from miner.index.threads import Each
from miner.types import Candidates, IdentityTable

__all__ = ["bounding_axes", "sweep", "sweep_queries"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

BLOCK = 512
TILE = 512
"""A product of 512 anchors and 512 rows, 1 MB, is scanned while it is in the cache."""
FIRST = 4096
"""Rows that are compared in all dimensions first, so that the others meet a mark."""
ENERGY = 0.94
FEW_AXES = 0.5
"""With more than this share of the dimensions bounds would save little."""
MIN_PRODUCTS = 10**8
"""Below this a search is over before axes are found."""
SPOILT = 1 / 16
"""Where bounds of so many rows exceed their marks, products in all dimensions cost less."""
ROUNDING = np.float32(1e-5)


def sweep(  # noqa: PLR0913 - a search, and how it runs
    embeddings_ND: F32,
    identities: IdentityTable,
    anchor_ids_A: I64,
    num_candidates: int,
    each: Each,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Each anchor's ``num_candidates`` nearest rows of other identities.

    Exact in float32: no row of another identity that is left out is nearer than one that is given,
    nor as near with a smaller id. Rows of equal similarity stand by row id. A similarity depends on
    the two rows alone, so on one kind of processor any division of rows and anchors gives the same
    bits. Anchors with fewer rows of other identities are padded with -1 and -inf.

    Args:
        embeddings_ND: [N, D] float32 of length 1; may be a memory map.
        identities: Of the same rows.
        anchor_ids_A: [A] row ids; a row may occur more than once.
        num_candidates: K.
        each: From :func:`~miner.index.threads.workers`.
        on_progress: Called with (anchors done, anchors in all).

    Cost: A N products of vectors, of leading axes only where these hold most of the rows' length;
        whatever the sizes of identities; some 20 MB in each thread.
    """
    num_anchors = len(anchor_ids_A)
    row_ids_AK = np.empty((num_anchors, num_candidates), np.int64)
    similarities_AK = np.empty((num_anchors, num_candidates), np.float32)
    projection = bounding_axes(embeddings_ND, num_anchors)
    done = 0

    ids_N = identities.identity_ids_N

    def search(begin: int) -> None:
        nonlocal done
        part = slice(begin, begin + BLOCK)
        anchors_BD = np.ascontiguousarray(embeddings_ND[anchor_ids_A[part]])
        owners_B = ids_N[anchor_ids_A[part]]
        found = _block(embeddings_ND, ids_N, anchors_BD, owners_B, num_candidates, projection)
        similarities_AK[part], row_ids_AK[part] = found
        done += len(owners_B)
        if on_progress is not None:
            on_progress(done, num_anchors)

    each(search, range(0, num_anchors, BLOCK))
    return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)


def sweep_queries(  # noqa: PLR0913, PLR0917 - a search, and how it runs
    embeddings_ND: F32,
    owners_N: I32,
    queries_QD: F32,
    owners_Q: I32,
    num_candidates: int,
    each: Each,
    *,
    max_similarity: float = np.inf,
    axes: Projection | None = None,
) -> tuple[F32, I64]:
    """Of each query the ``num_candidates`` nearest rows of other owners; exact as :func:`sweep`.

    Args:
        embeddings_ND: [N, D] float32 of length 1; may be a memory map.
        owners_N: [N] int32 of these rows.
        queries_QD: [Q, D] float32 of length 1, C-contiguous.
        owners_Q: [Q] int32; rows of the same owner are left out.
        num_candidates: K.
        each: From :func:`~miner.index.threads.workers`.
        max_similarity: Rows that are more similar are left out too.
        axes: From :func:`bounding_axes` for many queries; what is found is the same.

    Returns:
        [Q, K] similarities and row ids, nearest first, padded with -inf and -1.

    Cost: Q N products of vectors.
    """
    row_ids_QK = np.empty((len(queries_QD), num_candidates), np.int64)
    similarities_QK = np.empty((len(queries_QD), num_candidates), np.float32)
    block = max(1, min(BLOCK, -(-len(queries_QD) // each.num_threads)))

    def search(begin: int) -> None:
        part = slice(begin, begin + block)
        queries = queries_QD[part], owners_Q[part]
        found = _block(
            embeddings_ND, owners_N, *queries, num_candidates, axes, ceiling=max_similarity
        )
        similarities_QK[part], row_ids_QK[part] = found

    each(search, range(0, len(queries_QD), block))
    return similarities_QK, row_ids_QK


def bounding_axes(embeddings_ND: F32, num_anchors: int) -> Projection | None:
    """The axes in which bounds on so many anchors' products are taken, if that is worth it."""
    num_rows, dim = embeddings_ND.shape
    if num_anchors * num_rows < MIN_PRODUCTS:
        return None
    projection = Projection.fit(embeddings_ND, ENERGY, seed=0)
    return projection if projection.num_axes <= FEW_AXES * dim else None


def _block(  # noqa: PLR0913, PLR0917 - rows, anchors, and how they are compared
    embeddings_ND: F32,
    ids_N: I32,
    anchors_BD: F32,
    owners_B: I32,
    num_candidates: int,
    projection: Projection | None,
    *,
    ceiling: float = np.inf,
) -> tuple[F32, I64]:
    first = min(len(ids_N), max(FIRST, 4 * num_candidates))
    scores_BG = anchors_BD @ embeddings_ND[:first].T
    if ceiling < np.inf:
        scores_BG[scores_BG > ceiling] = -np.inf
    marks_B = np.empty(len(anchors_BD), np.float32)
    marks_of(scores_BG, owners_B, ids_N[:first], num_candidates, marks_B)
    rows = read_only(embeddings_ND), ids_N
    sieve = Sieve(anchors_BD, owners_B, *rows, marks_B, num_candidates, ceiling)
    sieve.take(scores_BG, 0)
    queries_BQ = None if projection is None else _split(projection, anchors_BD)
    for begin in range(first, len(ids_N), TILE):
        rows_GD = embeddings_ND[begin : begin + TILE]
        if projection is None or queries_BQ is None:
            sieve.take(anchors_BD @ rows_GD.T, begin)
            continue
        bounds_BG = queries_BQ @ _split(projection, rows_GD).T
        if sieve.sift(bounds_BG, begin) > SPOILT * bounds_BG.size:
            queries_BQ = None
    return sieve.best()


def _split(projection: Projection, rows_nD: F32) -> F32:
    """[n, Q] leading axes, and the length of what remains.

    Products of these are at least those of the rows: what remains of two rows has at most the
    product of its lengths as its product (Cauchy and Schwarz).
    """
    leading_nP = projection(rows_nD)
    squares_n = np.einsum("nd,nd->n", rows_nD, rows_nD)
    squares_n -= np.einsum("np,np->n", leading_nP, leading_nP)
    return np.column_stack((leading_nP, np.sqrt(np.maximum(squares_n, 0) + ROUNDING)))
