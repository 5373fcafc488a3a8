"""Anchors joined at a time with the lists that they probe.

Shape legend: N = rows, D = dimensions, Q = axes, P = anchors that probe a list, L = lists,
S = lists near another, B = anchors of the batch, E = entries of a reservoir, G = rows of the
gallery in one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from miner.core.ragged import ragged_arange
from miner.index.marks import marks_of
from miner.index.probing import choose_lists, turn_round
from miner.index.reservoir import LEAST, Reservoir

if TYPE_CHECKING:
    from miner.index.list_join import ListJoin

__all__ = ["Batch"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

MAX_PRODUCT = 2**18
"""A product of so many entries, 1 MB, is scanned while it is in the cache."""
NEAR_ROWS_PER_CANDIDATE = 20
"""Rows near an anchor's list that are searched first, for the marks of all others."""
NEAR_ROWS_BESIDE_KNOWN = 10
"""The same where candidates of an earlier search are known: few others are better."""
MAX_RUN = 1024
"""Anchors of a list whose lists are chosen at a time."""
ROUNDING = np.float32(1e-5)
"""Between two products of the same vectors in matrices of other shapes."""
SHORTLISTED, SHORTLISTED_PER_PROBE = 32, 8
"""An anchor's lists are chosen among so many lists nearest to its own, and more for each probe."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Anchors ascending by list.

    Attributes:
        join: What they are joined with.
        anchors_BD: [B, D] float32.
        queries_BQ: Their leading axes.
        owners_B: [B] int32 their identities.
        list_ids_B: [B] int32 their lists.
        near_rows: Rows searched first, for each candidate.
    """

    join: ListJoin
    anchors_BD: F32
    queries_BQ: F32
    owners_B: I32
    list_ids_B: I32
    near_rows: int

    @classmethod
    def of(
        cls, join: ListJoin, anchors_BD: F32, owners_B: I32, list_ids_B: I32, *, is_known: bool
    ) -> Batch:
        """Anchors, which ascend by list; whether candidates of all are known."""
        anchors_BD = np.ascontiguousarray(anchors_BD)
        return cls(
            join,
            anchors_BD,
            join.centroids.projection(anchors_BD),
            owners_B,
            list_ids_B,
            NEAR_ROWS_BESIDE_KNOWN if is_known else NEAR_ROWS_PER_CANDIDATE,
        )

    def search(self, num_candidates: int, num_probes: int) -> I64:
        """[B, E] places in ``join.rows_N`` of the most similar in the leading axes; in no order."""
        join = self.join
        reservoir = Reservoir(self.owners_B, join.num_entries(num_candidates))
        anchors, ends_L = self._begin(reservoir, num_candidates, num_probes)
        begins_L = np.concatenate(([0], ends_L[:-1]))
        for list_id in np.flatnonzero(ends_L - begins_L).tolist():
            places = np.arange(join.offsets_L1[list_id], join.offsets_L1[list_id + 1])
            if len(places):
                probing = anchors[begins_L[list_id] : ends_L[list_id]]
                self._push(reservoir, probing, places, join.gallery[places[0] : places[-1] + 1])
        return reservoir.ids()

    def _begin(self, reservoir: Reservoir, num_candidates: int, num_probes: int) -> tuple[I32, I64]:
        """Search the lists nearest to the anchors' own, and choose among the others.

        Returns:
            Anchors by the list that they are still to probe; [L] where each list's anchors end.
        """
        join = self.join
        fine_LQ, num_kept = join.centroids.fine_LP, join.num_entries(num_candidates)
        parts = [np.empty((0, 2), np.int32)]
        for list_id, run in self._runs():
            short, ends = join.near_lists(list_id, SHORTLISTED + SHORTLISTED_PER_PROBE * num_probes)
            num_near = int(np.searchsorted(ends, self.near_rows * num_candidates)) + 1
            self._search_near(reservoir, run, short[:num_near], num_kept)
            scores_BS = self.queries_BQ[run] @ fine_LQ[short].T
            here = min(len(short), join.probes_here(ends, num_probes))
            probes = np.empty((scores_BS.size + 1, 2), np.int32)
            lists = short.astype(np.int32)
            written = choose_lists(scores_BS, lists, here, num_near, run.start, probes)
            parts.append(probes[:written].copy())
        probes = np.concatenate(parts)
        anchors, ends_L = np.empty(len(probes), np.int32), np.empty(len(fine_LQ), np.int64)
        turn_round(probes, anchors, ends_L)
        return anchors, ends_L

    def _search_near(self, reservoir: Reservoir, run: slice, lists: I64, num_kept: int) -> None:
        """Search some lists, and raise the marks to what so many of their rows exceed."""
        join = self.join
        position, owner = ragged_arange(join.offsets_L1[lists + 1] - join.offsets_L1[lists])
        places_G = join.offsets_L1[lists][owner] + position
        owners_G = join.owners_N[places_G]
        gallery_GQ = join.gallery[places_G]
        step = max(1, MAX_PRODUCT // max(1, len(places_G)))
        for begin in range(run.start, run.stop, step):
            part = slice(begin, min(begin + step, run.stop))
            scores_PG = self.queries_BQ[part] @ gallery_GQ.T
            marks_P = np.empty(part.stop - begin, np.float32)
            marks_of(scores_PG, self.owners_B[part], owners_G, num_kept, marks_P)
            reservoir.marks_B[part] = np.maximum(marks_P - ROUNDING, LEAST)
            queries_P = np.arange(begin, part.stop, dtype=np.int32)
            reservoir.push(scores_PG, queries_P, places_G, owners_G)

    def _push(self, reservoir: Reservoir, anchors: I32, places_G: I64, gallery_GQ: F32) -> None:
        join = self.join
        owners_G = join.owners_N[places_G]
        step = max(1, MAX_PRODUCT // len(places_G))
        for begin in range(0, len(anchors), step):
            anchors_P = anchors[begin : begin + step]
            scores_PG = self.queries_BQ.take(anchors_P, axis=0) @ gallery_GQ.T
            reservoir.push(scores_PG, anchors_P, places_G, owners_G)

    def _runs(self) -> Iterator[tuple[int, slice]]:
        """Each list that holds anchors, and where these stand; not too many at a time."""
        lists, begins = np.unique(self.list_ids_B, return_index=True)
        ends = [*begins[1:].tolist(), len(self.list_ids_B)]
        for list_id, begin, end in zip(lists.tolist(), begins.tolist(), ends, strict=True):
            for start in range(begin, end, MAX_RUN):
                yield list_id, slice(start, min(end, start + MAX_RUN))
