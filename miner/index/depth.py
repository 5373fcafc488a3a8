"""How many lists an anchor must probe, read off the exact neighbours of a sample.

Shape legend: S = anchors of the sample, R = nearest rows that count, L = lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.index.list_join import ListJoin
from miner.types import Candidates

__all__ = ["Depths"]


@dataclass(frozen=True, slots=True)
class Depths:
    """How many probes reach each of a sample's nearest rows.

    Attributes:
        needed: Ascending; one entry for each pair of an anchor and one of its nearest rows.
    """

    needed: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, join: ListJoin, exact: Candidates, known_NW: npt.NDArray[np.uint32] | None = None
    ) -> Depths:
        """Rank the lists of the exact neighbours by their similarity to the anchor.

        As many probes are needed as make :meth:`~miner.index.list_join.ListJoin.probes_here` reach
        that rank.

        Args:
            join: The lists.
            exact: [S, R] of an exact search.
            known_NW: [N, W] rows that are found without any probe, of each row.

        Cost: S L products.
        """
        centroids = join.centroids
        anchors_SP = centroids.projection(join.embeddings_ND[exact.anchor_ids_A])
        scores_SL = anchors_SP @ centroids.fine_LP.T
        of_row_SR = np.take_along_axis(scores_SL, join.list_ids_N[exact.row_ids_AK], axis=1)
        own_lists = join.list_ids_N[exact.anchor_ids_A].tolist()
        rows_per_list = len(join.rows_N) / centroids.num_lists
        needed = np.empty(of_row_SR.shape, np.int64)
        for place, list_id in enumerate(own_lists):
            _, ends = join.near_lists(list_id, centroids.num_lists)
            is_before_RL = scores_SL[place][None, :] >= of_row_SR[place][:, None]
            rows_R = ends[np.count_nonzero(is_before_RL, axis=1) - 1]
            needed[place] = np.ceil(rows_R / rows_per_list)
        if known_NW is not None:
            known_SW = known_NW[exact.anchor_ids_A].astype(np.int64)
            is_known_SR = (exact.row_ids_AK[:, :, None] == known_SW[:, None, :]).any(axis=2)
            needed[is_known_SR] = 0
        return cls(np.sort(needed[exact.row_ids_AK >= 0]))

    def share(self, num_probes: int) -> float:
        """Share of the nearest rows that lie in the lists probed."""
        if not len(self.needed):
            return 1.0
        return float(np.searchsorted(self.needed, num_probes, side="right") / len(self.needed))

    def reaching(self, share: float) -> int:
        """Fewest probes that reach this share, at least 1."""
        if not len(self.needed):
            return 1
        last = min(len(self.needed), math.ceil(share * len(self.needed))) - 1
        return max(1, int(self.needed[last]))
