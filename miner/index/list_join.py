"""Candidates of many anchors at once from inverted lists: a join of anchors and lists.

    anchors by nearest list, some 30,000 at a time
      -> rows near their list: similarities that K rows of each anchor exceed         (marks)
      -> each list with all anchors that probe it: one product                        (a reservoir)
      -> rows in the reservoir compared in all dimensions                             (candidates)

The lists are searched in the leading axes of the rows; an anchor's own identity never enters its
reservoir, so nothing is fetched to be thrown away. Shape legend: N = rows, D = dimensions,
P = axes, L = lists, A = anchors, B = anchors joined at a time, K = candidates, E = entries of a
reservoir.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.compiled import read_only
from miner.index.gallery import CodedGallery, Gallery, plain_gallery
from miner.index.inverted_lists import Centroids
from miner.index.join_batch import Batch
from miner.index.queries import Queries
from miner.index.rescoring import NONE, rescore
from miner.index.reservoir import capacity_for
from miner.index.threads import Each
from miner.types import Candidates, IdentityTable

__all__ = ["ListJoin"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

MAX_HELD = 3 * 2**22
"""Bounds the reservoirs of the anchors joined at a time: 96 MB."""
MAX_JOINED = 2**15
MIN_JOINED = 2**10
"""Fewer anchors probe as many lists, and take as long, as these."""
ASSIGNED = 2**18
"""Rows put into lists at a time: bounds their leading axes to 1 kB each, 256 MB."""


@dataclass(frozen=True, slots=True)
class ListJoin:
    """A gallery in inverted lists, and what it takes to search it.

    Attributes:
        embeddings_ND: [N, D] float32 of length 1; may be a memory map.
        identities: Of the same rows.
        centroids: Of the lists.
        list_ids_N: [N] int32 the list of each row.
        rows_N: [N] int64 row ids by (list, row).
        offsets_L1: [L+1] int64 where each list begins in these.
        gallery: The leading axes of the rows in this order.
        owners_N: [N] int32 the identities of the rows in this order.
    """

    embeddings_ND: F32
    identities: IdentityTable
    centroids: Centroids
    list_ids_N: I32
    rows_N: I64
    offsets_L1: I64
    gallery: Gallery
    owners_N: I32

    @classmethod
    def build(  # noqa: PLR0913 - rows, lists, and how it is built
        cls,
        embeddings_ND: F32,
        identities: IdentityTable,
        centroids: Centroids,
        each: Each,
        *,
        is_coded: bool = False,
        seed: int = 0,
    ) -> ListJoin:
        """Put every row into its list.

        Args:
            embeddings_ND: [N, D] float32 of length 1; may be a memory map, read twice.
            identities: Of the same rows.
            centroids: Of the lists.
            each: From :func:`~miner.index.threads.workers`.
            is_coded: Keep the leading axes as product codes, an eighth of the memory.
            seed: Draws the sample that codes are trained on.
        """
        num_rows, projection = len(embeddings_ND), centroids.projection
        list_ids_N = np.empty(num_rows, np.int32)
        for begin in range(0, num_rows, ASSIGNED):
            part = slice(begin, begin + ASSIGNED)
            list_ids_N[part] = centroids.assign(projection(embeddings_ND[part]), each)
        rows_N = np.argsort(list_ids_N, kind="stable")
        listed_N = list_ids_N[rows_N]
        edges = np.arange(centroids.num_lists + 1)
        gallery: Gallery
        if is_coded:
            gallery = CodedGallery.build(
                embeddings_ND, rows_N, listed_N, centroids, each, seed=seed
            )
        else:
            gallery = plain_gallery(embeddings_ND, rows_N, projection, each)
        return cls(
            embeddings_ND,
            identities,
            centroids,
            list_ids_N,
            rows_N,
            np.searchsorted(listed_N, edges),
            gallery,
            identities.identity_ids_N[rows_N],
        )

    def search(  # noqa: PLR0913 - a search, how deep, and how it runs
        self,
        anchor_ids_A: I64,
        num_candidates: int,
        num_probes: int,
        each: Each,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        known_NW: npt.NDArray[np.uint32] | None = None,
        queries: Queries | None = None,
    ) -> Candidates:
        """The most similar rows of other identities among those in the lists that are searched.

        Of each anchor the lists whose centroids are most similar to it are searched, among the
        lists near its own, and those that are nearest to its own: with all lists the result is
        exact if the lists are in all dimensions. In fewer axes somewhat more than K rows
        are kept, and ordered by all dimensions. Similarities are those of the embeddings. Anchors
        that find fewer rows of other identities are padded with -1 and -inf.

        Args:
            anchor_ids_A: [A] row ids; a row may occur more than once.
            num_candidates: K.
            num_probes: Lists per anchor on average, at least 1: see :meth:`probes_here`.
            each: From :func:`~miner.index.threads.workers`.
            on_progress: Called with (anchors done, anchors in all).
            known_NW: [N, W] rows that are taken for found, of each row; NONE in place of none.
            queries: The anchors, where they are no rows of these; nothing is known of them.

        Cost: for each anchor the product of P axes with each row in its lists; in each thread some
            200 MB.
        """
        num_anchors = len(anchor_ids_A)
        row_ids_AK = np.empty((num_anchors, num_candidates), np.int64)
        similarities_AK = np.empty((num_anchors, num_candidates), np.float32)
        lists_A = self.lists_of(anchor_ids_A, queries, each)
        by_list_A = np.argsort(lists_A, kind="stable")
        joined = self._num_joined(num_anchors, num_candidates, each.num_threads)
        done = 0

        def join(begin: int) -> None:
            nonlocal done
            places_B = by_list_A[begin : begin + joined]
            known_BW = np.empty((len(places_B), 0), np.uint32)
            if known_NW is not None:
                known_BW = known_NW[anchor_ids_A[places_B]]
            is_known = known_BW.size > 0 and bool((known_BW[:, 0] != NONE).all())
            anchors = self.vectors_of(anchor_ids_A, queries, places_B)
            batch = Batch.of(self, *anchors, lists_A[places_B], is_known=is_known)
            rescore(
                batch.anchors_BD,
                read_only(self.embeddings_ND),
                self.identities.identity_ids_N,
                batch.owners_B,
                self.rows_N,
                batch.search(num_candidates, num_probes),
                known_BW,
                places_B,
                similarities_AK,
                row_ids_AK,
            )
            done += len(places_B)
            if on_progress is not None:
                on_progress(done, num_anchors)

        each(join, range(0, num_anchors, joined))
        return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)

    def lists_of(self, anchor_ids_A: I64, queries: Queries | None, each: Each) -> I32:
        """[A] the list that each anchor is in, or would be in."""
        if queries is None:
            return self.list_ids_N[anchor_ids_A]
        return self.centroids.assign(self.centroids.projection(queries.vectors_QD), each)

    def vectors_of(
        self, anchor_ids_A: I64, queries: Queries | None, places_B: I64
    ) -> tuple[F32, I32]:
        """[B, D] some of the anchors, and [B] their identities."""
        if queries is not None:
            return queries.vectors_QD[places_B], queries.owners_Q[places_B]
        rows_B = anchor_ids_A[places_B]
        return self.embeddings_ND[rows_B], self.identities.identity_ids_N[rows_B]

    def num_entries(self, num_candidates: int) -> int:
        """Rows of an anchor that are compared with it in all dimensions, E."""
        is_exact = isinstance(self.gallery, np.ndarray) and self.centroids.projection.is_whole
        return num_candidates if is_exact else num_candidates + max(num_candidates // 4, 10)

    def near_lists(self, list_id: int, num_lists: int) -> tuple[I64, I64]:
        """The lists nearest to a list, itself first, and how many rows are in those up to each."""
        fine_LP = self.centroids.fine_LP
        distances_L = -(fine_LP @ fine_LP[list_id])
        near = np.arange(len(fine_LP))
        if num_lists < len(fine_LP):
            near = np.argpartition(distances_L, num_lists)[:num_lists]
        near = near[np.argsort(distances_L[near], kind="stable")]
        return near, np.cumsum(self.offsets_L1[near + 1] - self.offsets_L1[near])

    def probes_here(self, ends: I64, num_probes: int) -> int:
        """Lists that hold as many rows as ``num_probes`` lists do on average.

        Where lists are large, fewer are probed: for the same recall, as seen over all anchors,
        that takes some 15 % fewer products than the same number everywhere.

        Args:
            ends: From :meth:`near_lists`.
            num_probes: On average.
        """
        num_rows = -(-num_probes * len(self.rows_N) // self.centroids.num_lists)
        return int(np.searchsorted(ends, min(num_rows, len(self.rows_N)))) + 1

    def _num_joined(self, num_anchors: int, num_candidates: int, num_threads: int) -> int:
        """Anchors joined at a time: as many as fit, the same in all threads."""
        most = MAX_HELD // capacity_for(self.num_entries(num_candidates))
        most = max(1, min(MAX_JOINED, most))
        num_batches = -(-num_anchors // most)
        num_batches = num_threads * -(-num_batches // num_threads)
        return min(most, max(MIN_JOINED, -(-num_anchors // max(1, num_batches))))
