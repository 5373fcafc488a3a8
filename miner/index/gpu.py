"""FAISS's GPU indexes: whether they can be had, their settings, and how one is made.

All that needs a GPU is here; what is done with the index is in `miner.index.gpu_index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import faiss

from miner.errors import SearchError

__all__ = ["MAX_DEPTH", "GpuSettings", "GpuSupport", "available", "new_gpu_index"]

GPU: Any = faiss
"""The classes for GPUs, of which FAISS's type stubs name only some."""

MAX_DEPTH = 2048
"""Neighbours and probes per query that FAISS's own GPU kernels select at most."""
CODE_BYTES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""That FAISS's GPU kernels know."""
MAX_FLOAT32_TABLE = 48
"""Code bytes whose tables in float32 fit in shared memory."""


@dataclass(frozen=True, slots=True)
class GpuSupport:
    """Whether the FAISS that is installed was built for GPUs, and how many it sees."""

    is_built: bool
    num_gpus: int

    def devices(self) -> tuple[int, ...]:
        """Numbers of all GPUs.

        Raises:
            SearchError: There is none; the text says what is missing.
        """
        if not self.is_built:
            raise SearchError(
                f"faiss {faiss.__version__} was built without GPUs: install the extra `gpu` in "
                "place of `cpu` (faiss-gpu-cu12 in place of faiss-cpu, which own the same module)"
            )
        if not self.num_gpus:
            raise SearchError(
                f"faiss {faiss.__version__} sees no GPU: look for one with nvidia-smi, and at "
                "CUDA_VISIBLE_DEVICES and workers.search_gpus, which hide them"
            )
        return tuple(range(self.num_gpus))


def available() -> GpuSupport:
    """What FAISS can do here; loads no GPU library that it had not loaded."""
    return GpuSupport(hasattr(faiss, "StandardGpuResources"), int(faiss.get_num_gpus()))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """Which index the GPUs hold, and what it may take.

    Attributes:
        kind: ``flat`` compares with every row, ``ivf`` with the rows of near lists, ``ivfpq`` with
            codes of these.
        is_float16: Rows of ``flat`` are kept in half the memory.
        num_lists: Of each GPU; None: four times the root of its rows.
        num_probes: Lists compared with a query.
        code_bytes: Of a row's code in ``ivfpq``; None: about a byte for four dimensions.
        temp_memory_mb: Scratch that FAISS takes at once on each GPU, beside the rows.
        memory_mb: Most that rows and scratch may take of each GPU; None: as FAISS finds it.
        devices: Numbers of the GPUs; None: all.
        seed: Draws the training sample.
    """

    kind: Literal["flat", "ivf", "ivfpq"] = "flat"
    is_float16: bool = False
    num_lists: int | None = None
    num_probes: int = 32
    code_bytes: int | None = None
    temp_memory_mb: int = 1024
    memory_mb: int | None = None
    devices: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.is_float16 and self.kind != "flat":
            raise SearchError(f"rows in float16 are of kind flat, not of kind {self.kind}")
        if not 1 <= self.num_probes <= MAX_DEPTH or self.temp_memory_mb < 0:
            raise SearchError(
                f"a GPU index takes 1 to {MAX_DEPTH} probes and memory of 0 MB or more, got "
                f"{self.num_probes=} and {self.temp_memory_mb=}"
            )

    def check_memory(self, num_rows: int, dim: int, num_lists: int) -> None:
        """Raises :class:`SearchError` if a share of so many rows takes more than ``memory_mb``."""
        row_bytes = dim * (2 if self.is_float16 else 4)
        if self.kind != "flat":
            row_bytes = 8 + (self.code_bytes_of(dim) if self.kind == "ivfpq" else row_bytes)
            row_bytes = row_bytes * 3 // 2  # lists are made longer than what they hold
        needed_mb = (num_rows * row_bytes + num_lists * dim * 4) / 2**20 + self.temp_memory_mb
        if self.memory_mb is not None and needed_mb > self.memory_mb:
            raise SearchError(
                f"{num_rows} rows of {dim} dimensions as {self.kind} and scratch take about "
                f"{needed_mb:.0f} MB of a GPU, memory_mb is {self.memory_mb}: raise it, use more "
                "GPUs, keep rows in float16 or as codes, or search by torch tiles"
            )

    def code_bytes_of(self, dim: int) -> int:
        """Bytes of a code that kernels know and that divide ``dim``."""
        fitting = [size for size in CODE_BYTES if dim % size == 0]
        if self.code_bytes is None:
            return max(size for size in fitting if size <= max(1, dim // 4))
        if self.code_bytes not in fitting:
            raise SearchError(
                f"code_bytes={self.code_bytes} does not fit {dim} dimensions: these take {fitting}"
            )
        return self.code_bytes


def new_gpu_index(settings: GpuSettings, dim: int, num_lists: int, device: int) -> Any:
    """An empty index on one GPU, by FAISS's own kernels: the limits of others are not ours."""
    resources = GPU.StandardGpuResources()
    resources.setTempMemory(settings.temp_memory_mb * 2**20)
    if settings.kind == "flat":
        config = GPU.GpuIndexFlatConfig()
        config.useFloat16 = settings.is_float16
        config.device, config.use_cuvs = device, False
        return GPU.GpuIndexFlatIP(resources, dim, config)
    config = GPU.GpuIndexIVFFlatConfig() if settings.kind == "ivf" else GPU.GpuIndexIVFPQConfig()
    config.device, config.use_cuvs = device, False
    metric = faiss.METRIC_INNER_PRODUCT
    if settings.kind == "ivf":
        return GPU.GpuIndexIVFFlat(resources, dim, num_lists, metric, config)
    size = settings.code_bytes_of(dim)
    config.useFloat16LookupTables = size > MAX_FLOAT32_TABLE
    return GPU.GpuIndexIVFPQ(resources, dim, num_lists, size, 8, metric, config)
