"""Rows on GPUs, sharded over several, and float32 similarities of what is found among them.

    build: rows -> shard of each GPU, trained on the same sample and filled
    search: queries -> every shard -> merged -> compared in float32 where the index is not exact

It runs without a GPU if another FAISS index stands in for that of `miner.index.gpu`. It knows
neither identities nor anchors. Shape legend: N = rows, D = dimensions, Q = queries, k = neighbours,
S = shards.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.checks import check_embeddings
from miner.index.gpu import GPU, MAX_DEPTH, GpuSettings, available, new_gpu_index
from miner.index.keys import by_similarity

__all__ = ["GpuIndex", "Nearest"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

MIN_PQ_ROWS = 256
SAMPLE_PER_LIST = 64
ROWS_PER_LIST = 4
ADD_ROWS = 2**18
SLACK = 64
FLOAT16_ROUNDING = 2.0**-11


@dataclass(frozen=True, slots=True)
class Nearest:
    """What was found for Q queries.

    Attributes:
        similarities_Qk: [Q, k] float32 products, best first; -inf where there is no row.
        row_ids_Qk: [Q, k]; -1 where there is no row.
        bound_Q: [Q] no row that is left out is more similar, up to rounding in float32. Of kinds
            that do not look at every row: of the rows looked at.
    """

    similarities_Qk: F32
    row_ids_Qk: I64
    bound_Q: F32


@dataclass(frozen=True, slots=True)
class _Shard:
    begin: int
    num_rows: int
    index: Any


class GpuIndex:
    """Rows on one GPU or sharded over several: EMPTY -> built. Not thread-safe."""

    def __init__(
        self,
        settings: GpuSettings,
        new_index: Callable[[GpuSettings, int, int, int], Any] | None = None,
    ) -> None:
        """Takes nothing of the GPUs before it is built.

        Args:
            settings: Kind, memory, devices.
            new_index: Makes the index of a device in place of `new_gpu_index`; then ``devices`` are
                numbers without meaning.

        Raises:
            SearchError: FAISS is built without GPUs, or does not see those asked for.
        """
        self.settings = settings
        self.embeddings_ND = np.empty((0, 0), np.float32)
        if new_index is None:
            known = available().devices()
            unknown = set(settings.devices or ()) - set(known)
            if unknown:
                raise SearchError(f"no GPUs {sorted(unknown)}: faiss sees {list(known)}")
            self._devices = settings.devices or known
        else:
            self._devices = settings.devices or (0,)
        self._new_index = new_index or new_gpu_index
        self._shards: list[_Shard] = []
        self._num_lists = 0
        self._code_bytes = 0
        self._num_probes = settings.num_probes

    @property
    def num_probes(self) -> int:
        """Lists compared with a query; 0 of kind flat."""
        return 0 if self.settings.kind == "flat" else min(self._num_probes, self._num_lists)

    def set_num_probes(self, num_probes: int) -> None:
        """Search deeper, or less deep, from now on; at most `MAX_DEPTH` and all lists."""
        self._num_probes = max(1, min(num_probes, MAX_DEPTH))
        for shard in self._shards:
            if self.settings.kind != "flat":
                shard.index.nprobe = self.num_probes

    def build(self, embeddings_ND: F32) -> None:
        """Check the rows, keep a reference to them, and bring them to the GPUs.

        Raises:
            SearchError: As `check_embeddings`; also if the rows are too few to train on, or
                take more memory than they may.
        """
        check_embeddings(embeddings_ND)
        self.embeddings_ND = np.ascontiguousarray(embeddings_ND)
        num_rows, dim = embeddings_ND.shape
        num_shards = min(len(self._devices), num_rows)
        if self.settings.kind != "flat":
            of_share = int(4 * (num_rows / num_shards) ** 0.5)
            self._num_lists = min(
                self.settings.num_lists or of_share, -(-num_rows // ROWS_PER_LIST)
            )
        if self.settings.kind == "ivfpq":
            self._code_bytes = self.settings.code_bytes_of(dim)
            if num_rows < MIN_PQ_ROWS:
                raise SearchError(
                    f"kind ivfpq takes {MIN_PQ_ROWS} rows to learn from, got {num_rows}"
                )
        self.settings.check_memory(-(-num_rows // num_shards), dim, self._num_lists)
        sample_SD = self._sample()
        cuts = np.linspace(0, num_rows, num_shards + 1).astype(int).tolist()

        def fill(number: int) -> _Shard:
            return self._filled(self._devices[number], cuts[number], cuts[number + 1], sample_SD)

        with ThreadPoolExecutor(num_shards) as pool:
            self._shards = list(pool.map(fill, range(num_shards)))
        self.set_num_probes(self._num_probes)

    def _sample(self) -> F32:
        if self.settings.kind == "flat":
            return self.embeddings_ND[:0]
        num_rows = len(self.embeddings_ND)
        wanted = max(SAMPLE_PER_LIST * self._num_lists, 64 * MIN_PQ_ROWS)
        rng = np.random.Generator(np.random.Philox(self.settings.seed))
        rows = np.sort(rng.permutation(num_rows)[:wanted])
        return np.ascontiguousarray(self.embeddings_ND[rows])

    def _filled(self, device: int, first: int, end: int, sample_SD: F32) -> _Shard:
        dim = self.embeddings_ND.shape[1]
        index = self._new_index(self.settings, dim, self._num_lists, device)
        if not index.is_trained:
            index.train(sample_SD)
        for begin in range(first, end, ADD_ROWS):
            index.add(self.embeddings_ND[begin : min(begin + ADD_ROWS, end)])
        return _Shard(first, end - first, index)

    def search(self, queries_QD: F32, k: int) -> tuple[F32, I64]:
        """The ``k`` rows with the largest inner products per query, best first.

        Of kind ``flat`` exact; with rows in float16 a row left out may be nearer than one given by
        what rounding hides, see `nearest`. Similarities are float32 products whatever the kind.

        Raises:
            SearchError: The index is not built, the queries have other dimensions, or ``k`` is
                below 1 or above `MAX_DEPTH`.
        """
        found_k = min(k, max(1, len(self.embeddings_ND)))
        depth = found_k
        if self._is_rescored:
            depth = max(found_k, min(2 * found_k + SLACK, MAX_DEPTH, len(self.embeddings_ND)))
        found = self.nearest(queries_QD, depth)
        missing = ((0, 0), (0, k - found_k))
        return (
            np.pad(found.similarities_Qk[:, :found_k], missing, constant_values=-np.inf),
            np.pad(found.row_ids_Qk[:, :found_k], missing, constant_values=-1),
        )

    def nearest(self, queries_QD: F32, k: int) -> Nearest:
        """The ``k`` rows that the GPUs hold to be nearest, and how near any other may be.

        Raises:
            SearchError: As `search`; also if ``k`` is above the number of rows.
        """
        num_rows, dim = self.embeddings_ND.shape
        if queries_QD.ndim != 2 or queries_QD.shape[1] != dim or not 1 <= k <= num_rows:
            raise SearchError(
                f"cannot search k={k} neighbours of queries {list(queries_QD.shape)} in a gallery "
                f"of {num_rows} rows of {dim} dimensions"
            )
        if k > MAX_DEPTH:
            raise SearchError(
                f"FAISS on a GPU finds at most {MAX_DEPTH} neighbours of a query, asked for {k}: "
                "ask for fewer candidates, or search by torch tiles or on the CPU"
            )
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        similarities_Qk, row_ids_Qk = self._merged(queries_QD, k)
        bound_Q = similarities_Qk[:, -1].copy()
        if self._is_rescored:
            similarities_Qk, row_ids_Qk = self._rescored(queries_QD, row_ids_Qk)
            bound_Q += np.float32(3.1 * FLOAT16_ROUNDING + dim * 2.0**-22)
        if self.settings.kind != "flat" or k == num_rows:
            bound_Q[:] = -np.inf
        return Nearest(similarities_Qk, row_ids_Qk, bound_Q)

    @property
    def _is_rescored(self) -> bool:
        return self.settings.is_float16 or self.settings.kind == "ivfpq"

    def _merged(self, queries_QD: F32, k: int) -> tuple[F32, I64]:
        """The best k of all shards; of shards of equal similarity the first stands first."""
        shape = (len(self._shards), len(queries_QD), k)
        similarities_SQk = np.full(shape, -np.inf, np.float32)
        row_ids_SQk = np.full(shape, -1, np.int64)

        def search(number: int) -> None:
            shard = self._shards[number]
            found_k = min(k, shard.num_rows)
            similarities, places = shard.index.search(queries_QD, found_k)
            is_row = places >= 0
            similarities_SQk[number, :, :found_k] = np.where(is_row, similarities, -np.inf)
            row_ids_SQk[number, :, :found_k] = np.where(is_row, places + shard.begin, -1)

        if len(self._shards) == 1:
            search(0)
            return similarities_SQk[0], row_ids_SQk[0]
        with ThreadPoolExecutor(len(self._shards)) as pool:
            list(pool.map(search, range(len(self._shards))))
        similarities_Qk, row_ids_Qk = faiss.merge_knn_results(
            similarities_SQk, row_ids_SQk, keep_max=True
        )
        return np.where(row_ids_Qk < 0, np.float32(-np.inf), similarities_Qk), row_ids_Qk

    def _rescored(self, queries_QD: F32, row_ids_Qk: I64) -> tuple[F32, I64]:
        """Rows by their products in float32, best first, equal ones by row id."""
        row_ids_Qk = np.ascontiguousarray(row_ids_Qk)
        similarities_Qk = np.empty(row_ids_Qk.shape, np.float32)
        GPU.fvec_inner_products_by_idx(
            faiss.swig_ptr(similarities_Qk),
            faiss.swig_ptr(queries_QD),
            faiss.swig_ptr(self.embeddings_ND),
            faiss.swig_ptr(row_ids_Qk),
            queries_QD.shape[1],
            *row_ids_Qk.shape,
        )
        similarities_Qk[row_ids_Qk < 0] = -np.inf
        return by_similarity(similarities_Qk, row_ids_Qk)

    def describe(self) -> dict[str, int | str]:
        """Kind, rows, dimensions, GPUs, and the sizes of the kind."""
        num_rows, dim = self.embeddings_ND.shape
        sizes: dict[str, int | str] = {
            "kind": self.settings.kind,
            "num_rows": num_rows,
            "dim": dim,
            "num_gpus": len(self._shards),
        }
        if self.settings.kind == "flat":
            sizes["storage"] = "float16" if self.settings.is_float16 else "float32"
        else:
            sizes["num_lists"], sizes["num_probes"] = self._num_lists, self.num_probes
        if self.settings.kind == "ivfpq":
            sizes["code_bytes"] = self._code_bytes
        return sizes
