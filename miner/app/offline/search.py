"""The search of an offline round, timed, in this process.

Shape legend: N = rows, D = dimensions, A = anchors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from miner.index.config import IndexConfig
from miner.types import Candidates, IdentityTable
from miner.workers.exact_search import torch_search

if TYPE_CHECKING:
    from miner.index.candidate_search import CandidateSearch
    from miner.index.warm_start import WarmFile

__all__ = ["OfflineSearch"]


@dataclass(slots=True)
class OfflineSearch:
    """Finds the nearest rows of other identities; notes what it used and how long it took.

    Attributes:
        embeddings_ND: [N, D] float32, rows of length 1; never copied if contiguous.
        identities: Of the same rows.
        config: Of the index.
        seed: Of the draws of the index.
        warm: Where what the search leaves to the next one is kept; None: nowhere.
        on_progress: Called with (anchors done, anchors in all).
        description: Of the index; empty before the first search.
        recall: Measured; None before the first search, and where it is exact.
        busy_s: Seconds spent so far.
    """

    embeddings_ND: npt.NDArray[np.float32]
    identities: IdentityTable
    config: IndexConfig
    seed: int = 0
    warm: WarmFile | None = None
    on_progress: Callable[[int, int], None] | None = None
    description: dict[str, int | float | str] = field(default_factory=dict)
    recall: float | None = None
    busy_s: float = 0.0
    _search: CandidateSearch | None = None

    def __call__(self, anchor_ids_A: npt.NDArray[np.int64], num_candidates: int) -> Candidates:
        """The ``num_candidates`` nearest rows of other identities for each anchor.

        Raises:
            SearchError: An anchor is no row, ``num_candidates`` is below 1, or recall is too low.

        Cost: O(A N D) time if exact; FAISS is loaded at the first call.
        """
        from miner.index.candidate_search import CandidateSearch

        started_s = time.monotonic()
        if self._search is None:
            self._search = CandidateSearch(
                self.embeddings_ND,
                self.identities,
                self.config,
                seed=self.seed,
                before=self.warm.load(*self.embeddings_ND.shape) if self.warm else None,
                exact=torch_search(self.config.gpu, self.embeddings_ND, self.identities),
            )
        found = self._search(anchor_ids_A, num_candidates, self.on_progress)
        self.description = self._search.description
        self.recall = None if self._search.recall is None else self._search.recall.value
        self.busy_s += time.monotonic() - started_s
        return found

    def keep(self) -> None:
        """Leave to the next search what this one has found; nothing where it was exact."""
        warm_start = None if self._search is None else self._search.warm_start
        if self.warm is not None and warm_start is not None:
            self.warm.save(warm_start)
