"""The search for candidates as it is configured: index, depth, and the proof of its recall.

    built -> searched -> recall measured -> given
                ^             |
                +-- deepened -+-> refused

Shape legend: N = rows, D = dimensions, A = anchors, S = anchors of a sample.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.checks import check_embeddings, check_fit
from miner.index.config import IndexConfig
from miner.index.gpu import GpuSettings
from miner.index.gpu_candidates import gpu_candidates
from miner.index.gpu_index import GpuIndex
from miner.index.gpu_lists import GpuLists
from miner.index.list_search import ListSearch
from miner.index.memory import free_mb
from miner.index.recall import Recall, measure_recall
from miner.index.sweep import sweep
from miner.index.threads import Each, workers
from miner.index.warm_start import WarmStart
from miner.types import Candidates, IdentityTable

__all__ = ["CandidateSearch"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
ExactSearch = Callable[[I64, int, Progress | None], Candidates]

FLAT_PRODUCTS = 4 * 10**9
"""Up to so many products of vectors `auto` is exact: some 10 s on two cores at 128 dimensions."""
FLAT_PRODUCTS_OF_GPU = 10**12
"""The same where a GPU makes the products."""
PROBED_SAMPLE = 1000
"""Anchors by which the depth is chosen, others than those that judge it."""
MAX_DEEPENINGS = 3


class Lists(Protocol):
    """What answers for all rows but the exact search."""

    @property
    def is_prepared(self) -> bool:
        """Whether there are lists."""

    def prepare(self, exact: Candidates, num_candidates: int, each: Each) -> None:
        """Make lists, and choose their depth by a sample's nearest rows."""

    def search(
        self,
        anchor_ids_A: I64,
        num_candidates: int,
        each: Each,
        on_progress: Progress | None = None,
    ) -> Candidates:
        """What lists find, as deep as was chosen."""

    def deepen(self, exact: Candidates, each: Each) -> bool:
        """Search deeper from now on; whether that is possible."""

    def remember(self, found: Candidates) -> None:
        """The search is over."""

    def warm_start(self) -> WarmStart | None:
        """What the next search over these rows can start from."""

    def describe(self) -> dict[str, int | float | str]:
        """What the manifest says, ``num_lists`` and ``num_probes`` among it."""


class CandidateSearch:
    """Finds the nearest rows of other identities, by the configured index.

    Attributes:
        recall: The least recall measured so far; None as long as every search was exact.
        description: What the manifest says about the index; empty before the first search.
    """

    def __init__(  # noqa: PLR0913 - two inputs; all but those and the settings by name
        self,
        embeddings_ND: npt.NDArray[np.float32],
        identities: IdentityTable,
        config: IndexConfig,
        *,
        seed: int = 0,
        num_threads: int | None = None,
        before: WarmStart | None = None,
        exact: ExactSearch | None = None,
        new_lists: Callable[[str], Lists] | None = None,
    ) -> None:
        """Take the rows; nothing is built before the first search.

        Args:
            embeddings_ND: [N, D] float32 of length 1; may be a memory map.
            identities: Of the same rows.
            config: Kind, depth and recall.
            seed: Draws training sample and anchors on which recall is measured.
            num_threads: Of this process; None: as many as it has cores.
            before: What an earlier search over the same rows has left, maybe under other weights.
            exact: An exact search of the same rows in place of the CPU's, as on a GPU.
            new_lists: Makes lists of a kind over the same rows in place of those made here.
        """
        self.recall: Recall | None = None
        self.description: dict[str, int | float | str] = {}
        self._before = before
        self._embeddings_ND, self._identities, self._config = embeddings_ND, identities, config
        self._seed = seed
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._is_checked = False
        self._lists: Lists | None = None
        self._given_exact, self._given_lists = exact, new_lists
        self._gpu_index: GpuIndex | None = None

    def __call__(
        self, anchor_ids_A: I64, num_candidates: int, on_progress: Progress | None = None
    ) -> Candidates:
        """Each anchor's ``num_candidates`` nearest rows of other identities.

        Guarantee: with kind ``flat``, as :func:`~miner.index.sweep.sweep`. Else
        recall, as measured on ``config.recall_sample`` of the anchors, is at least
        ``config.min_recall``; what is given are rows of other identities with their similarities;
        and no anchor gets fewer than there are, up to ``num_candidates``.

        Raises:
            SearchError: Recall stayed below the floor (the text has the figures), sizes do not fit,
                an anchor is no row, rows are not of length 1, or there are 2**32 of them.
        """
        self._check(anchor_ids_A, num_candidates)
        num_rows, dim = self._embeddings_ND.shape
        kind, reason = self._choose(len(anchor_ids_A))
        if self._before is not None:
            self._before.require_fit(*self._embeddings_ND.shape)
        if kind == "flat" or not len(anchor_ids_A):
            self.description = {"kind": "flat", "num_rows": num_rows, "dim": dim, **reason}
            return self._exact(anchor_ids_A, num_candidates, on_progress)
        lists = self._lists = self._lists or self._new_lists(kind)
        with workers(self._num_threads) as each:
            found, recall = self._search(lists, anchor_ids_A, num_candidates, each, on_progress)
        if self.recall is None or recall.value < self.recall.value:
            self.recall = recall
        self.description = {
            "kind": kind,
            "num_rows": num_rows,
            "dim": dim,
            **lists.describe(),
            **reason,
            "recall_at": self.recall.at,
            "recall_low": round(self.recall.low, 4),
            "recall_high": round(self.recall.high, 4),
            "recall_anchors": self.recall.num_anchors,
        }
        found = self._completed(found)
        lists.remember(found)
        return found

    @property
    def warm_start(self) -> WarmStart | None:
        """For the next search over these rows; None if there is nothing to start from."""
        return self._before if self._lists is None else self._lists.warm_start()

    def _new_lists(self, kind: str) -> Lists:
        config = self._config
        if self._given_lists is not None:
            return self._given_lists(kind)
        if config.gpu.engine != "faiss":
            return ListSearch(
                self._embeddings_ND,
                self._identities,
                config,
                is_coded=kind == "ivfpq",
                seed=self._seed,
                before=self._before,
            )
        settings = GpuSettings(
            kind="ivfpq" if kind == "ivfpq" else "ivf",
            num_lists=config.num_lists,
            temp_memory_mb=config.gpu.scratch_mb,
            memory_mb=config.gpu.memory_mb,
            seed=self._seed,
        )
        return GpuLists(
            self._embeddings_ND,
            self._identities,
            GpuIndex(settings),
            exact=self._on_cpu,
            num_probes=config.num_probes,
            target_recall=config.target_recall,
        )

    def _choose(self, num_anchors: int) -> tuple[str, dict[str, str]]:
        """The kind, and why where it was chosen here."""
        kind = self._config.kind
        if kind != "auto":
            return kind, {}
        num_rows, dim = self._embeddings_ND.shape
        products = num_anchors * num_rows
        what = f"{num_anchors} anchors times {num_rows} rows"
        most = FLAT_PRODUCTS if self._config.gpu.engine == "off" else FLAT_PRODUCTS_OF_GPU
        if products <= most:
            return "flat", {"reason": f"auto: {what} are at most {most:.0e} products"}
        what += f" are more than {most:.0e} products"
        vectors_mb, most_mb = num_rows * dim * 4 / 1e6, self._config.memory_mb or free_mb() / 2
        fits = vectors_mb <= most_mb
        what += f"; lists of vectors take up to {vectors_mb:.0f} MB of {most_mb:.0f}"
        return ("ivf" if fits else "ivfpq"), {"reason": f"auto: {what}"}

    def _check(self, anchor_ids_A: I64, num_candidates: int) -> None:
        if not self._is_checked:
            check_embeddings(self._embeddings_ND)
            self._is_checked = True
        check_fit(self._embeddings_ND, self._identities, anchor_ids_A)
        if num_candidates < 1:
            raise SearchError(f"a search needs {num_candidates=} of at least 1")

    def _exact(
        self, anchor_ids_A: I64, num_candidates: int, on_progress: Progress | None = None
    ) -> Candidates:
        if self._given_exact is not None:
            return self._given_exact(anchor_ids_A, num_candidates, on_progress)
        gpu = self._config.gpu
        if gpu.engine != "faiss":
            return self._on_cpu(anchor_ids_A, num_candidates, on_progress)
        if self._gpu_index is None:
            settings = GpuSettings(
                is_float16=gpu.precision == "float16",
                temp_memory_mb=gpu.scratch_mb,
                memory_mb=gpu.memory_mb,
            )
            index = GpuIndex(settings)
            index.build(self._embeddings_ND)
            self._gpu_index = index
        return gpu_candidates(
            self._gpu_index,
            self._identities,
            anchor_ids_A,
            num_candidates,
            self._on_cpu,
            on_progress=on_progress,
        )

    def _on_cpu(
        self, anchor_ids_A: I64, num_candidates: int, on_progress: Progress | None = None
    ) -> Candidates:
        with workers(self._num_threads) as each:
            return sweep(
                self._embeddings_ND,
                self._identities,
                anchor_ids_A,
                num_candidates,
                each,
                on_progress=on_progress,
            )

    def _samples(self, num_anchors: int) -> tuple[I64, I64]:
        """Places of anchors that choose the depth, and of others that judge it if there are any."""
        shuffled = np.random.Generator(np.random.Philox(self._seed)).permutation(num_anchors)
        judging = min(self._config.recall_sample, num_anchors)
        choosing = shuffled[judging : judging + PROBED_SAMPLE]
        return (choosing if len(choosing) else shuffled[:PROBED_SAMPLE]), shuffled[:judging]

    def _search(
        self,
        lists: Lists,
        anchor_ids_A: I64,
        num_candidates: int,
        each: Each,
        on_progress: Progress | None,
    ) -> tuple[Candidates, Recall]:
        """Search, and deepen until the floor is reached."""
        choosing, judging = self._samples(len(anchor_ids_A))
        at = min(self._config.recall_at, num_candidates)
        if not lists.is_prepared:
            exact = self._exact(anchor_ids_A[choosing], at)
            lists.prepare(exact, num_candidates, each)
        exact = self._exact(anchor_ids_A[judging], at)
        tried: list[str] = []
        for _ in range(MAX_DEEPENINGS + 1):
            found = lists.search(anchor_ids_A, num_candidates, each, on_progress)
            sampled = Candidates(
                anchor_ids_A[judging], found.row_ids_AK[judging], found.similarities_AK[judging]
            )
            recall = measure_recall(sampled, exact, at)
            what = lists.describe()
            logger.info("probed %d of %d lists: %s", what["num_probes"], what["num_lists"], recall)
            if recall.value >= self._config.min_recall:
                return found, recall
            tried.append(f"{what['num_probes']} probes: {recall}")
            if not lists.deepen(exact, each):
                advice = "all were searched: take kind flat"
                break
        else:
            advice = "set num_probes higher, or take kind flat"
        raise SearchError(
            f"recall stayed below min_recall={self._config.min_recall}: {'; '.join(tried)}, of "
            f"{what['num_lists']} lists; {advice}"
        )

    def _completed(self, found: Candidates) -> Candidates:
        """Anchors that found fewer rows than there are, searched again exactly."""
        num_candidates = found.row_ids_AK.shape[1]
        own_A = self._identities.sizes_I[self._identities.identity_ids_N[found.anchor_ids_A]]
        there_A = np.minimum(self._identities.num_rows - own_A, num_candidates)
        short = np.flatnonzero(np.count_nonzero(found.row_ids_AK >= 0, axis=1) < there_A)
        if len(short):
            exact = self._exact(found.anchor_ids_A[short], num_candidates)
            found.row_ids_AK[short] = exact.row_ids_AK
            found.similarities_AK[short] = exact.similarities_AK
        return found
