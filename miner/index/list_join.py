"""Candidates of many anchors at once from inverted lists: a join of anchors and lists.

    anchors by nearest list, some 30,000 at a time
      -> lists near their own: one product per list, all its anchors together    (a first top K)
      -> further lists that an anchor probes: one product per probed list        (into the top K)

Identity is masked in the products, so nothing is fetched to be thrown away. Shape legend: N = rows,
D = dimensions, L = lists, A = anchors, B = anchors joined at a time, K = candidates, G = rows of
the gallery in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from miner.index.inverted_lists import InvertedLists
from miner.index.threads import Each
from miner.index.top_k import by_similarity, pass_mark, top_k
from miner.types import Candidates, IdentityTable

__all__ = ["ListJoin"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

MAX_ENTRIES = 2**22
"""Bounds the results of the anchors joined at a time: 32,768 anchors of 128 candidates."""
MAX_JOINED = 2**15
MAX_PRODUCT = 2**22
"""Bounds one product to 16 MB."""
FIRST_ROWS_PER_CANDIDATE = 6
"""Rows near an anchor's own list that are searched first, so that later ones rarely get in."""
PROBE_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class ListJoin:
    """A gallery in inverted lists, and what it takes to search it.

    Attributes:
        embeddings_ND: [N, D] float32 of length 1; may be a memory map.
        identities: Of the same rows.
        lists: Of the same rows.
    """

    embeddings_ND: F32
    identities: IdentityTable
    lists: InvertedLists

    def search(
        self,
        anchor_ids_A: I64,
        num_candidates: int,
        num_probes: int,
        each: Each,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Candidates:
        """The most similar rows of other identities among those in the lists that are searched.

        Of each anchor at least the ``num_probes`` lists whose centroids are most similar to it are
        searched: with all of them the result is exact. Anchors that find fewer rows of other
        identities than asked for are padded with -1 and -inf.

        Args:
            anchor_ids_A: [A] row ids; a row may occur more than once.
            num_candidates: K.
            num_probes: Lists per anchor, at least 1.
            each: From :func:`~miner.index.threads.workers`.
            on_progress: Called with (anchors done, anchors in all).

        Cost: for each anchor L products to choose lists, and one for each row in them; 20 bytes per
            candidate of the anchors joined at a time in each thread.
        """
        num_anchors = len(anchor_ids_A)
        row_ids_AK = np.empty((num_anchors, num_candidates), np.int64)
        similarities_AK = np.empty((num_anchors, num_candidates), np.float32)
        by_list_A = np.argsort(self.lists.list_ids_N[anchor_ids_A], kind="stable")
        joined = max(1, min(MAX_JOINED, MAX_ENTRIES // num_candidates))
        done = 0

        def join(begin: int) -> None:
            nonlocal done
            places_B = by_list_A[begin : begin + joined]
            batch = _Batch.of(self, anchor_ids_A[places_B], num_candidates)
            batch.search_near()
            batch.search_probed(num_probes)
            similarities_AK[places_B], row_ids_AK[places_B] = batch.best()
            done += len(places_B)
            if on_progress is not None:
                on_progress(done, num_anchors)

        each(join, range(0, num_anchors, joined))
        return Candidates(anchor_ids_A.astype(np.int64), row_ids_AK, similarities_AK)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Anchors joined at a time, ascending by list, and the best rows found so far.

    ``similarities_BK`` is a heap in each row, as FAISS keeps it: the least stands first.
    """

    join: ListJoin
    queries_BD: F32
    own_B: npt.NDArray[np.int32]
    list_ids_B: npt.NDArray[np.int32]
    similarities_BK: F32
    row_ids_BK: I64
    searched_first: dict[int, I64]

    @classmethod
    def of(cls, join: ListJoin, anchor_ids_B: I64, num_candidates: int) -> _Batch:
        shape = (len(anchor_ids_B), num_candidates)
        return cls(
            join,
            np.ascontiguousarray(join.embeddings_ND[anchor_ids_B]),
            join.identities.identity_ids_N[anchor_ids_B],
            join.lists.list_ids_N[anchor_ids_B],
            np.empty(shape, np.float32),
            np.empty(shape, np.int64),
            {},
        )

    def runs(self) -> Iterator[tuple[int, slice]]:
        """Each list that holds anchors, and where these stand."""
        lists, begins = np.unique(self.list_ids_B, return_index=True)
        ends = [*begins[1:].tolist(), len(self.list_ids_B)]
        for list_id, begin, end in zip(lists.tolist(), begins.tolist(), ends, strict=True):
            yield list_id, slice(begin, end)

    def search_near(self) -> None:
        """Fill the heaps from the lists near the anchors' own."""
        num_candidates = self.row_ids_BK.shape[1]
        for list_id, run in self.runs():
            near, rows_G = self.join.lists.rows_near(
                list_id, FIRST_ROWS_PER_CANDIDATE * num_candidates
            )
            self.searched_first[list_id] = near
            rows_G = np.sort(rows_G)
            gallery_GD = self.join.embeddings_ND[rows_G]
            step = max(1, MAX_PRODUCT // len(rows_G))
            for begin in range(run.start, run.stop, step):
                part = slice(begin, min(begin + step, run.stop))
                scores_BG = self.scores(part, rows_G, gallery_GD)
                best = top_k(scores_BG, rows_G, num_candidates)
                # Ascending rows are heaps.
                self.similarities_BK[part], self.row_ids_BK[part] = (x[:, ::-1] for x in best)

    def search_probed(self, num_probes: int) -> None:
        """Search the lists that an anchor probes and that were not searched yet."""
        anchors_P, offsets_L1 = self.probes(num_probes)
        heaps = faiss.float_minheap_array_t()
        heaps.nh, heaps.k = self.row_ids_BK.shape
        heaps.val, heaps.ids = _pointer(self.similarities_BK), _pointer(self.row_ids_BK)
        for list_id in np.argsort(-np.diff(offsets_L1), kind="stable").tolist():
            rows_G = self.join.lists.rows_of(list_id)
            probing = anchors_P[offsets_L1[list_id] : offsets_L1[list_id + 1]]
            if not len(probing) or not len(rows_G):
                continue
            gallery_GD = self.join.embeddings_ND[rows_G]
            step = max(1, MAX_PRODUCT // len(rows_G))
            for begin in range(0, len(probing), step):
                part = probing[begin : begin + step]
                scores_BG = self.scores(part, rows_G, gallery_GD)
                heaps.addn_query_subset_with_ids(
                    len(part),
                    _pointer(part),
                    len(rows_G),
                    _pointer(scores_BG),
                    _pointer(rows_G),
                    0,  # the same rows for all
                )

    def probes(self, num_probes: int) -> tuple[I64, I64]:
        """Anchors by the list that they probe, and [L+1] where each list's anchors stand."""
        lists = self.join.lists
        anchors, probed = [], []
        for begin in range(0, len(self.list_ids_B), PROBE_CHUNK):
            part = slice(begin, begin + PROBE_CHUNK)
            scores_BL = self.queries_BD[part] @ lists.centroids_LD.T
            marks_B = pass_mark(scores_BL, min(num_probes, lists.num_lists))
            for list_id, run in self.runs():
                at = slice(max(run.start - begin, 0), max(run.stop - begin, 0))
                scores_BL[at, self.searched_first[list_id]] = -np.inf
            marks_B = np.maximum(marks_B, np.finfo(np.float32).min)
            anchor, list_id_P = np.nonzero(scores_BL >= marks_B[:, None])
            anchors.append(anchor + begin)
            probed.append(list_id_P.astype(np.int32))
        probed_P = np.concatenate(probed)
        counts_L = np.bincount(probed_P, minlength=lists.num_lists)
        by_list = np.argsort(probed_P, kind="stable")
        offsets_L1 = np.concatenate(([0], np.cumsum(counts_L))).astype(np.int64)
        return np.concatenate(anchors)[by_list], offsets_L1

    def scores(self, part: slice | I64, rows_G: I64, gallery_GD: F32) -> F32:
        """Similarities of some anchors to some rows; -inf for rows of an anchor's identity."""
        scores_BG: F32 = self.queries_BD[part] @ gallery_GD.T
        of_rows_G = self.join.identities.identity_ids_N[rows_G]
        masked = np.flatnonzero(self.own_B[part][:, None] == of_rows_G[None, :])
        scores_BG.reshape(-1)[masked] = -np.inf
        return scores_BG

    def best(self) -> tuple[F32, I64]:
        """What was found, best first, equal ones by row id."""
        return by_similarity(self.similarities_BK, self.row_ids_BK)


def _pointer(array: npt.NDArray[Any]) -> Any:
    return faiss.swig_ptr(array)
