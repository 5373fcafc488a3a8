"""The exact search on torch's GPUs, if the settings ask for it.

Shape legend: N = rows, D = dimensions, A = anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.config import GpuConfig
from miner.index.queries import Queries
from miner.types import Candidates, IdentityTable

__all__ = ["torch_queries", "torch_search"]

Progress = Callable[[int, int], None]


def torch_search(
    config: GpuConfig, embeddings_ND: npt.NDArray[np.float32], identities: IdentityTable
) -> Callable[[npt.NDArray[np.int64], int, Progress | None], Candidates] | None:
    """An exact search of these rows on all GPUs that torch sees; None unless that is configured.

    Raises:
        SearchError: It is configured, and torch sees no GPU.
    """
    find = _torch_sweep(config, embeddings_ND, identities)
    if find is None:
        return None
    return lambda anchor_ids_A, num_candidates, on_progress: find(
        anchor_ids_A, num_candidates, on_progress=on_progress
    )


def torch_queries(
    config: GpuConfig, embeddings_ND: npt.NDArray[np.float32], identities: IdentityTable
) -> Callable[[Queries, int], Candidates] | None:
    """The same for anchors that are no rows of these.

    Raises:
        SearchError: As :func:`torch_search`.
    """
    find = _torch_sweep(config, embeddings_ND, identities)
    if find is None:
        return None
    return lambda queries, num_candidates: find(queries.row_ids_Q, num_candidates, queries=queries)


def _torch_sweep(
    config: GpuConfig, embeddings_ND: npt.NDArray[np.float32], identities: IdentityTable
) -> Callable[..., Candidates] | None:
    if config.engine != "torch":
        return None
    from miner.workers.torch_sweep import cuda_devices, torch_sweep

    devices = cuda_devices()
    if not devices:
        raise SearchError(
            "index.gpu.engine is torch, and torch sees no GPU: install a CUDA build of torch, give "
            "the search a GPU (workers.search_gpus), or set the engine to off"
        )

    return partial(
        torch_sweep,
        embeddings_ND,
        identities,
        devices=devices,
        precision=config.precision,
        memory_mb=config.memory_mb,
    )
