"""Inverted lists on GPUs in the place of `ListSearch`: built, aimed at a recall, deepened.

    empty -> prepared -> searched -> deepened -> searched ...

It knows nothing of how a round's recall is judged. Shape legend: N = rows, D = dimensions,
A = anchors, S = anchors of a sample, R = nearest rows that count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.index.gpu import MAX_DEPTH
from miner.index.gpu_candidates import gpu_candidates
from miner.index.gpu_index import GpuIndex
from miner.index.recall import measure_recall
from miner.index.threads import Each
from miner.types import Candidates, IdentityTable

__all__ = ["GpuLists"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]


class GpuLists:
    """Finds candidates in an index of kind ``ivf`` or ``ivfpq`` on GPUs."""

    def __init__(  # noqa: PLR0913 - two inputs; all but those and the index by name
        self,
        embeddings_ND: npt.NDArray[np.float32],
        identities: IdentityTable,
        index: GpuIndex,
        *,
        exact: Callable[[I64, int], Candidates],
        num_probes: int | None,
        target_recall: float,
    ) -> None:
        """Take the rows; nothing is sent to a GPU before :meth:`prepare`.

        Args:
            embeddings_ND: [N, D] float32 of length 1; may be a memory map.
            identities: Of the same rows.
            index: Not built yet.
            exact: Finishes anchors that come out short, see `gpu_candidates`.
            num_probes: None: as many as a sample needs for ``target_recall``.
            target_recall: Of the sample that :meth:`prepare` is given.
        """
        self._embeddings_ND, self._identities, self._index = embeddings_ND, identities, index
        self._exact, self._num_probes, self._target = exact, num_probes, target_recall
        self.is_prepared = False

    def prepare(self, exact: Candidates, num_candidates: int, each: Each) -> None:
        """Build the index; twice as many probes until the sample's recall is the target.

        Args:
            exact: [S, R] the sample's nearest rows.
            num_candidates: K of the searches to come.
            each: Not used; the GPUs do the work.
        """
        self._index.build(self._embeddings_ND)
        self.is_prepared = True
        self._index.set_num_probes(self._num_probes or 1)
        at = exact.row_ids_AK.shape[1]
        while self._num_probes is None:
            found = self.search(exact.anchor_ids_A, num_candidates, each)
            if measure_recall(found, exact, at).value >= self._target or not self._deepened():
                break

    def search(
        self,
        anchor_ids_A: I64,
        num_candidates: int,
        each: Each,  # noqa: ARG002 - as ListSearch
        on_progress: Progress | None = None,
    ) -> Candidates:
        """As `gpu_candidates`, as deep as was chosen."""
        return gpu_candidates(
            self._index,
            self._identities,
            anchor_ids_A,
            num_candidates,
            self._exact,
            on_progress=on_progress,
        )

    def deepen(self, exact: Candidates, each: Each) -> bool:  # noqa: ARG002 - as ListSearch
        """Probe twice as many lists from now on, up to `MAX_DEPTH`; whether there were more."""
        return self._deepened()

    def _deepened(self) -> bool:
        before = self._index.num_probes
        self._index.set_num_probes(min(2 * before, MAX_DEPTH))
        return self._index.num_probes > before

    def remember(self, found: Candidates) -> None:
        """Nothing: lists on GPUs are made anew in every round."""

    def warm_start(self) -> None:
        """Nothing."""

    def describe(self) -> dict[str, int | float | str]:
        """What the manifest says about the index."""
        return {**self._index.describe()}
