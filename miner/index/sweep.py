"""Exact candidates: every anchor compared with every row, identity masked in the products.

Shape legend: N = rows, D = dimensions, A = anchors, B = anchors of a block, K = candidates,
G = rows of a tile of the gallery, P = pairs of an anchor and a row of its identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from miner.core.ragged import ragged_arange
from miner.index.threads import Each
from miner.index.top_k import by_similarity, top_k
from miner.types import Candidates, IdentityTable

__all__ = ["sweep"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

BLOCK = 512
TILE = 2048
"""A product of 512 anchors and 2,048 rows, 4 MB, is scanned while it is in the cache."""
FIRST_TILES = 4
MAX_PAIRS_PER_ANCHOR = 4096
"""Of larger identities own rows are found tile by tile, not listed."""


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

    Exact up to rounding in float32: no row of another identity that is left out is nearer than one
    that is given. Rows of equal similarity stand by row id; which of them is cut off at the end is
    open. Anchors with fewer rows of other identities are padded with -1 and -inf.

    Args:
        embeddings_ND: [N, D] float32 of length 1; may be a memory map.
        identities: Of the same rows.
        anchor_ids_A: [A] row ids; a row may occur more than once.
        num_candidates: K.
        each: From :func:`~miner.index.threads.workers`.
        on_progress: Called with (anchors done, anchors in all).

    Cost: A N products of vectors, whatever the sizes of identities; some 20 MB in each thread.
    """
    num_anchors = len(anchor_ids_A)
    row_ids_AK = np.empty((num_anchors, num_candidates), np.int64)
    similarities_AK = np.empty((num_anchors, num_candidates), np.float32)
    done = 0

    def search(begin: int) -> None:
        nonlocal done
        part = slice(begin, begin + BLOCK)
        block = _Block.of(embeddings_ND, identities, anchor_ids_A[part])
        similarities_AK[part], row_ids_AK[part] = block.search(num_candidates)
        done += len(block.own_B)
        if on_progress is not None:
            on_progress(done, num_anchors)

    each(search, range(0, num_anchors, BLOCK))
    return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some anchors, and the pairs of them with rows of their identity, ascending by row."""

    embeddings_ND: F32
    identity_ids_N: npt.NDArray[np.int32]
    queries_BD: F32
    own_B: npt.NDArray[np.int32]
    pairs: tuple[I64, I64] | None

    @classmethod
    def of(cls, embeddings_ND: F32, identities: IdentityTable, anchor_ids_B: I64) -> _Block:
        own_B = identities.identity_ids_N[anchor_ids_B]
        pairs = None
        sizes_B = identities.sizes_I[own_B]
        if sizes_B.sum() <= MAX_PAIRS_PER_ANCHOR * len(own_B):
            position_P, anchor_P = ragged_arange(sizes_B)
            row_P = identities.rows_N[identities.offsets_I1[own_B][anchor_P] + position_P]
            by_row = np.argsort(row_P, kind="stable")
            pairs = anchor_P[by_row], row_P[by_row]
        queries_BD = np.ascontiguousarray(embeddings_ND[anchor_ids_B])
        return cls(embeddings_ND, identities.identity_ids_N, queries_BD, own_B, pairs)

    def search(self, num_candidates: int) -> tuple[F32, I64]:
        num_rows = len(self.identity_ids_N)
        first = min(num_rows, max(FIRST_TILES * TILE, 4 * num_candidates))
        best = top_k(self.scores(0, first), np.arange(first), num_candidates)
        # Ascending rows are heaps, as FAISS keeps them.
        similarities_BK = np.ascontiguousarray(best[0][:, ::-1])
        row_ids_BK = np.ascontiguousarray(best[1][:, ::-1])
        heaps: Any = faiss.float_minheap_array_t()
        heaps.nh, heaps.k = row_ids_BK.shape
        heaps.val, heaps.ids = faiss.swig_ptr(similarities_BK), faiss.swig_ptr(row_ids_BK)
        for begin in range(first, num_rows, TILE):
            scores_BG = self.scores(begin, min(begin + TILE, num_rows))
            heaps.addn(scores_BG.shape[1], faiss.swig_ptr(scores_BG), begin, 0, len(scores_BG))
        return by_similarity(similarities_BK, row_ids_BK)

    def scores(self, begin: int, end: int) -> F32:
        """[B, G] similarities to rows ``begin`` up to ``end``; -inf for an anchor's identity."""
        scores_BG: F32 = self.queries_BD @ self.embeddings_ND[begin:end].T
        if self.pairs is None:
            is_own_BG = self.own_B[:, None] == self.identity_ids_N[None, begin:end]
            scores_BG.reshape(-1)[np.flatnonzero(is_own_BG)] = -np.inf
        else:
            anchor_P, row_P = self.pairs
            in_tile = slice(*np.searchsorted(row_P, (begin, end)))
            scores_BG[anchor_P[in_tile], row_P[in_tile] - begin] = -np.inf
        return scores_BG
