"""Exact search over rows in memory or on a memory map, in this process.

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

if TYPE_CHECKING:
    from miner.index.flat import Index

__all__ = ["ExactSearch"]


@dataclass(slots=True)
class ExactSearch:
    """Finds the nearest rows of other identities; notes what it used and how long it took.

    Attributes:
        embeddings_ND: [N, D] float32, rows of length 1; never copied if contiguous.
        identities: Of the same rows.
        config: Of the index.
        on_progress: Called with (anchors done, anchors in all).
        description: Of the index; empty before the first search.
        busy_s: Seconds spent so far.
    """

    embeddings_ND: npt.NDArray[np.float32]
    identities: IdentityTable
    config: IndexConfig
    on_progress: Callable[[int, int], None] | None = None
    description: dict[str, int | str] = field(default_factory=dict)
    busy_s: float = 0.0
    _index: Index | None = None

    def __call__(self, anchor_ids_A: npt.NDArray[np.int64], num_candidates: int) -> Candidates:
        """The ``num_candidates`` nearest rows of other identities for each anchor.

        Raises:
            SearchError: An anchor is no row, or ``num_candidates`` is below 1.

        Cost: O(A N D) time; FAISS is loaded at the first call.
        """
        from miner.index.candidates import find_candidates

        started_s = time.monotonic()
        if self._index is None:
            self._index = self._build()
        found = find_candidates(
            self._index,
            self.embeddings_ND,
            self.identities,
            anchor_ids_A,
            num_candidates=num_candidates,
            block=self.config.search_block,
            on_progress=self.on_progress,
        )
        self.busy_s += time.monotonic() - started_s
        return found

    def _build(self) -> Index:
        from miner.index.flat import FlatIndex

        index = FlatIndex()
        index.build(self.embeddings_ND)
        self.description = index.describe()
        return index
