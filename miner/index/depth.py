"""How many lists an anchor must probe, read off the exact neighbours of a sample.

Shape legend: S = anchors of the sample, R = nearest rows that count, N = rows, W = rows known of
each, L = lists, P = axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from miner.index.list_join import ListJoin
from miner.index.queries import Queries
from miner.index.threads import Each
from miner.types import Candidates

__all__ = ["Depths"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Depths:
    """How many probes reach each of a sample's nearest rows.

    Attributes:
        exact: [S, R] the nearest rows.
        needed_SR: [S, R] int64 probes; of no account where there is no row.
    """

    exact: Candidates
    needed_SR: I64

    @classmethod
    def of(
        cls, join: ListJoin, exact: Candidates, each: Each, queries: Queries | None = None
    ) -> Depths:
        """Rank the lists of the exact neighbours by their similarity to the anchor.

        As many probes are needed as make :meth:`~miner.index.list_join.ListJoin.probes_here` reach
        that rank.

        Args:
            join: The lists.
            exact: [S, R] of an exact search.
            each: From :func:`~miner.index.threads.workers`.
            queries: The anchors, where they are no rows of these.

        Cost: S L products.
        """
        centroids = join.centroids
        anchors = exact.anchor_ids_A
        anchors_SD, _ = join.vectors_of(anchors, queries, np.arange(len(anchors)))
        anchors_SP = centroids.projection(anchors_SD)
        scores_SL = anchors_SP @ centroids.fine_LP.T
        of_row_SR = np.take_along_axis(scores_SL, join.list_ids_N[exact.row_ids_AK], axis=1)
        own_lists = join.lists_of(anchors, queries, each).tolist()
        rows_per_list = len(join.rows_N) / centroids.num_lists
        needed_SR = np.empty(of_row_SR.shape, np.int64)
        for place, list_id in enumerate(own_lists):
            is_before_RL = scores_SL[place] >= of_row_SR[place][:, None]
            ranks_R = np.count_nonzero(is_before_RL, axis=1)
            _, ends = join.near_lists(list_id, int(ranks_R.max()))
            needed_SR[place] = np.ceil(ends[ranks_R - 1] / rows_per_list)
        return cls(exact, needed_SR)

    def helped_by(self, known_NW: npt.NDArray[np.uint32]) -> Depths:
        """The same where some rows are found without any probe: [N, W] of each row."""
        known_SW = known_NW[self.exact.anchor_ids_A].astype(np.int64)
        is_known_SR = (self.exact.row_ids_AK[:, :, None] == known_SW[:, None, :]).any(axis=2)
        return replace(self, needed_SR=np.where(is_known_SR, 0, self.needed_SR))

    def share(self, num_probes: int) -> float:
        """Share of the nearest rows that lie in the lists probed."""
        needed = self._needed()
        return float(np.mean(needed <= num_probes)) if len(needed) else 1.0

    def reaching(self, share: float) -> int:
        """Fewest probes that reach this share, at least 1."""
        needed = self._needed()
        if not len(needed):
            return 1
        last = min(len(needed), math.ceil(share * len(needed))) - 1
        return max(1, int(np.partition(needed, last)[last]))

    def _needed(self) -> I64:
        return self.needed_SR[self.exact.row_ids_AK >= 0]
