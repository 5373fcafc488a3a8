"""The exact search on torch's GPUs, if the settings ask for it.

Shape legend: N = rows, D = dimensions, A = anchors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.config import GpuConfig
from miner.types import Candidates, IdentityTable

__all__ = ["torch_search"]

Progress = Callable[[int, int], None]


def torch_search(
    config: GpuConfig, embeddings_ND: npt.NDArray[np.float32], identities: IdentityTable
) -> Callable[[npt.NDArray[np.int64], int, Progress | None], Candidates] | None:
    """An exact search of these rows on all GPUs that torch sees; None unless that is configured.

    Raises:
        SearchError: It is configured, and torch sees no GPU.
    """
    if config.engine != "torch":
        return None
    from miner.workers.torch_sweep import cuda_devices, torch_sweep

    devices = cuda_devices()
    if not devices:
        raise SearchError(
            "index.gpu.engine is torch, and torch sees no GPU: install a CUDA build of torch, give "
            "the search a GPU (workers.search_gpus), or set the engine to off"
        )

    def search(
        anchor_ids_A: npt.NDArray[np.int64], num_candidates: int, on_progress: Progress | None
    ) -> Candidates:
        return torch_sweep(
            embeddings_ND,
            identities,
            anchor_ids_A,
            num_candidates,
            devices,
            precision=config.precision,
            memory_mb=config.memory_mb,
            on_progress=on_progress,
        )

    return search
