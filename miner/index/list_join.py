"""Candidates of many anchors at once from inverted lists: a join of anchors and lists.

    anchors by nearest list, some 50,000 at a time
      -> rows near their list: similarities that K rows of each anchor will exceed    (marks)
      -> each list with all anchors that probe it: one product                        (a reservoir)
      -> rows in the reservoir compared in all dimensions                             (candidates)

The lists are searched in the leading axes of the rows; identity is masked in the products, so
nothing is fetched to be thrown away. Shape legend: N = rows, D = dimensions, P = axes, L = lists,
I = identities, R = runs of an identity's rows within a list, A = anchors, B = anchors joined at a
time, K = candidates, E = entries of a reservoir, G = rows of the gallery in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from miner.core.ragged import ragged_arange
from miner.index.gallery import CodedGallery, Gallery, plain_gallery
from miner.index.inverted_lists import Centroids
from miner.index.reservoir import Reservoir, capacity_for
from miner.index.threads import Each
from miner.index.top_k import pack, pass_mark, unpack
from miner.types import Candidates, IdentityTable

__all__ = ["NONE", "ListJoin"]

_FAISS: Any = faiss
"""Its type stubs lack what is used here."""

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

NONE = np.uint32(2**32 - 1)
"""In place of a row that is known, where there is none."""
MAX_HELD = 3 * 2**22
"""Bounds the reservoirs of the anchors joined at a time: 96 MB."""
MAX_JOINED = 2**16
MAX_PRODUCT = 2**20
"""A product of so many entries, 4 MB, is scanned while it is in the cache."""
ASSIGNED = 2**18
"""Rows put into lists at a time: bounds their leading axes to 1 kB each, 256 MB."""
NEAR_ROWS_PER_CANDIDATE = 15
MAX_NEAR_ROWS_PER_CANDIDATE = 60
MAX_RUN = 1024
"""Anchors of a list whose lists are chosen at a time."""
LONG_RUN = 32
"""Rows of an anchor's identity in a list that are hidden run by run, not place by place."""
ROUNDING = np.float32(1e-5)
"""Between two products of the same vectors in matrices of other shapes."""
SHORTLISTED_PER_PROBE = 8
"""An anchor's lists are chosen among the so many times as many lists nearest to its own."""


@dataclass(frozen=True, slots=True)
class ListJoin:
    """A gallery in inverted lists, and what it takes to search it.

    Attributes:
        embeddings_ND: [N, D] float32 of length 1; may be a memory map.
        identities: Of the same rows.
        centroids: Of the lists.
        list_ids_N: [N] int32 the list of each row.
        rows_N: [N] int64 row ids by (list, identity, row).
        offsets_L1: [L+1] int64 where each list begins in these.
        gallery: The leading axes of the rows in this order.
        owners_R: [R] int32 identities; a run is the rows of an identity in a list.
        begins_R1: [R+1] int64 where each run begins.
        runs_L1: [L+1] int64 the runs of each list.
    """

    embeddings_ND: F32
    identities: IdentityTable
    centroids: Centroids
    list_ids_N: I32
    rows_N: I64
    offsets_L1: I64
    gallery: Gallery
    owners_R: I32
    begins_R1: I64
    runs_L1: I64

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
        owners_N = identities.identity_ids_N
        rows_N = np.lexsort((owners_N, list_ids_N))
        listed_N, owners_N = list_ids_N[rows_N], owners_N[rows_N]
        is_first_N = np.ones(num_rows, np.bool_)
        is_first_N[1:] = (listed_N[1:] != listed_N[:-1]) | (owners_N[1:] != owners_N[:-1])
        begins_R = np.flatnonzero(is_first_N)
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
            owners_N[begins_R],
            np.append(begins_R, num_rows),
            np.searchsorted(listed_N[begins_R], edges),
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

        Cost: for each anchor the product of P axes with each row in its lists; in each thread some
            200 MB.
        """
        num_anchors = len(anchor_ids_A)
        row_ids_AK = np.empty((num_anchors, num_candidates), np.int64)
        similarities_AK = np.empty((num_anchors, num_candidates), np.float32)
        by_list_A = np.argsort(self.list_ids_N[anchor_ids_A], kind="stable")
        joined = self._num_joined(num_anchors, num_candidates, each.num_threads)
        done = 0

        def join(begin: int) -> None:
            nonlocal done
            places_B = by_list_A[begin : begin + joined]
            batch = _Batch.of(self, anchor_ids_A[places_B])
            places_BE = batch.search(num_candidates, num_probes)
            row_ids_BE = np.where(places_BE < 0, -1, self.rows_N[places_BE])
            if known_NW is not None:
                row_ids_BE = np.hstack(
                    (row_ids_BE, batch.of_others(known_NW[anchor_ids_A[places_B]]))
                )
            similarities_AK[places_B], row_ids_AK[places_B] = batch.best(row_ids_BE, num_candidates)
            done += len(places_B)
            if on_progress is not None:
                on_progress(done, num_anchors)

        each(join, range(0, num_anchors, joined))
        return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)

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
        return max(1, -(-num_anchors // max(1, num_batches)))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Anchors joined at a time, ascending by list."""

    join: ListJoin
    anchors_BD: F32
    queries_BP: F32
    owners_B: I32
    list_ids_B: I32

    @classmethod
    def of(cls, join: ListJoin, anchor_ids_B: I64) -> _Batch:
        anchors_BD = np.ascontiguousarray(join.embeddings_ND[anchor_ids_B])
        return cls(
            join,
            anchors_BD,
            join.centroids.projection(anchors_BD),
            join.identities.identity_ids_N[anchor_ids_B],
            join.list_ids_N[anchor_ids_B],
        )

    def search(self, num_candidates: int, num_probes: int) -> I64:
        """[B, E] places in ``join.rows_N`` of the most similar in the leading axes; in no order.

        The marks are a further axis of the anchors, taken off in the products.
        """
        join = self.join
        marks_B, anchors_P, offsets_L1 = self.plan(num_candidates, num_probes)
        reservoir = Reservoir(marks_B, join.num_entries(num_candidates))
        run_I = np.full(join.identities.num_identities, -1, np.int64)
        queries_BQ = np.hstack((self.queries_BP, reservoir.marks_B[:, None]))
        for list_id in np.flatnonzero(np.diff(offsets_L1)).tolist():
            rows = slice(*join.offsets_L1[list_id : list_id + 2].tolist())
            if rows.start == rows.stop:
                continue
            runs = slice(*join.runs_L1[list_id : list_id + 2].tolist())
            run_I[join.owners_R[runs]] = np.arange(runs.start, runs.stop)
            places_G = np.arange(rows.start, rows.stop)
            gallery_GQ = np.full((len(places_G), queries_BQ.shape[1]), np.float32(-1))
            gallery_GQ[:, :-1] = join.gallery[rows]
            probing = anchors_P[offsets_L1[list_id] : offsets_L1[list_id + 1]]
            step = max(1, MAX_PRODUCT // len(places_G))
            for begin in range(0, len(probing), step):
                part = probing[begin : begin + step]
                reservoir.make_room(part)
                queries_PQ = queries_BQ.take(part, axis=0)
                queries_PQ[:, -1] = reservoir.marks_B[part]
                excess_PG = queries_PQ @ gallery_GQ.T
                self.mask(excess_PG, run_I[self.owners_B[part]], rows.start)
                reservoir.push(excess_PG, part, places_G)
            run_I[join.owners_R[runs]] = -1
        return reservoir.ids()

    def mask(self, excess_PG: F32, run_P: I64, first: int) -> None:
        """Hide each anchor's identity, whose rows in the list are run ``run_P`` if it has any."""
        hit = np.flatnonzero(run_P >= 0)
        begins, ends = self.join.begins_R1[run_P[hit]], self.join.begins_R1[run_P[hit] + 1]
        if (ends - begins).sum() > LONG_RUN * len(hit):
            for run in np.unique(run_P[hit]).tolist():
                columns = slice(*(self.join.begins_R1[run : run + 2] - first).tolist())
                excess_PG[run_P == run, columns] = -np.inf
            return
        position, owner = ragged_arange(ends - begins)
        places = (hit * excess_PG.shape[1] + begins - first)[owner] + position
        excess_PG.reshape(-1)[places] = -np.inf

    def plan(self, num_candidates: int, num_probes: int) -> tuple[F32, I64, I64]:
        """What is searched.

        Returns:
            [B] marks that ``num_candidates`` rows in its lists exceed; anchors by the list that
            they probe; [L+1] where each list's anchors stand in these.
        """
        join = self.join
        fine_LP = join.centroids.fine_LP
        marks_B = np.empty(len(self.list_ids_B), np.float32)
        anchors, probed = [], []
        for list_id, run in self.runs():
            short, ends = join.near_lists(list_id, SHORTLISTED_PER_PROBE * num_probes)
            num_near = int(np.searchsorted(ends, NEAR_ROWS_PER_CANDIDATE * num_candidates)) + 1
            marks_B[run] = self.marks(run, short[:num_near], num_candidates)
            scores_BL = self.queries_BP[run] @ fine_LP[short].T
            here = min(len(short), join.probes_here(ends, num_probes))
            chosen_BL = scores_BL >= pass_mark(scores_BL, here)[:, None]
            chosen_BL[:, :num_near] = True
            places = np.flatnonzero(chosen_BL)
            anchor = places // len(short)
            anchors.append(anchor + run.start)
            probed.append(short[places - anchor * len(short)].astype(np.uint16))
        probed_P = np.concatenate(probed)
        by_list = np.argsort(probed_P, kind="stable")
        counts_L = np.bincount(probed_P, minlength=len(fine_LP))
        offsets_L1 = np.concatenate(([0], np.cumsum(counts_L)))
        return marks_B, np.concatenate(anchors)[by_list], offsets_L1

    def runs(self) -> Iterator[tuple[int, slice]]:
        """Each list that holds anchors, and where these stand; not too many at a time."""
        lists, begins = np.unique(self.list_ids_B, return_index=True)
        ends = [*begins[1:].tolist(), len(self.list_ids_B)]
        for list_id, begin, end in zip(lists.tolist(), begins.tolist(), ends, strict=True):
            for start in range(begin, end, MAX_RUN):
                yield list_id, slice(start, min(end, start + MAX_RUN))

    def marks(self, run: slice, lists: I64, num_candidates: int) -> F32:
        """Similarities that so many rows of other identities in these lists exceed."""
        join = self.join
        sizes = join.offsets_L1[lists + 1] - join.offsets_L1[lists]
        position, owner = ragged_arange(sizes)
        places_G = join.offsets_L1[lists][owner] + position
        places_G = places_G[: MAX_NEAR_ROWS_PER_CANDIDATE * num_candidates]
        scores_BG = self.queries_BP[run] @ join.gallery[places_G].T
        owners_G = join.identities.identity_ids_N[join.rows_N[places_G]]
        own = np.flatnonzero(self.owners_B[run][:, None] == owners_G[None, :])
        scores_BG.reshape(-1)[own] = -np.inf
        return pass_mark(scores_BG, num_candidates) - ROUNDING

    def of_others(self, known_BW: npt.NDArray[np.uint32]) -> I64:
        """[B, W] the row ids among these that have another identity; -1 in place of the rest."""
        row_ids_BW = known_BW.astype(np.int64)
        row_ids_BW[known_BW == NONE] = -1
        is_own_BW = self.join.identities.identity_ids_N[row_ids_BW] == self.owners_B[:, None]
        row_ids_BW[is_own_BW] = -1
        return row_ids_BW

    def best(self, row_ids_BE: I64, num_candidates: int) -> tuple[F32, I64]:
        """The most similar of some rows in all dimensions, best first, equal ones by row id.

        -1 is no row; a row counts once.
        """
        similarities_BE = np.empty(row_ids_BE.shape, np.float32)
        is_none_BE = row_ids_BE < 0
        row_ids_BE = np.where(is_none_BE, 0, row_ids_BE)
        arrays = (similarities_BE, self.anchors_BD, self.join.embeddings_ND, row_ids_BE)
        _FAISS.fvec_inner_products_by_idx(
            *(_FAISS.swig_ptr(array) for array in arrays),
            self.anchors_BD.shape[1],
            *row_ids_BE.shape,
        )
        keys_BE = pack(similarities_BE, row_ids_BE)
        keys_BE[is_none_BE] = 0
        keys_BE.sort(axis=1)
        is_again_BE = keys_BE[:, 1:] == keys_BE[:, :-1]
        if is_again_BE[keys_BE[:, 1:] > 0].any():
            keys_BE[:, 1:][is_again_BE] = 0
            keys_BE.sort(axis=1)
        return unpack(keys_BE[:, : -num_candidates - 1 : -1])
