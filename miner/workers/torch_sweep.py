"""Exact candidates by tiles on torch devices, one or several, with products of any precision.

    anchors in blocks
      -> on every device the best of its shard of the gallery     (see `miner.workers.torch_shard`)
      -> merged on the first device: the best K, and whether any row left out could be nearer
      -> anchors for which one could: once more, all in float32

It knows neither Ray nor FAISS. Shape legend: N = rows, D = dimensions, A = anchors, B = anchors of
a block, K = candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.errors import SearchError
from miner.index.queries import Queries
from miner.types import Candidates, IdentityTable
from miner.workers.torch_shard import Nearest, Precision, Shard, vectors

__all__ = ["cuda_devices", "torch_sweep"]

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]


def torch_sweep(  # noqa: PLR0913 - a search, and how it runs
    embeddings: F32 | Tensor,
    identities: IdentityTable,
    anchor_ids_A: I64,
    num_candidates: int,
    devices: Sequence[str | torch.device],
    *,
    precision: Precision = "float32",
    memory_mb: int = 4096,
    on_progress: Progress | None = None,
    queries: Queries | None = None,
) -> Candidates:
    """Each anchor's ``num_candidates`` nearest rows of other identities.

    Exact up to rounding in float32, whatever ``precision`` is: no row of another identity that is
    left out is nearer than one that is given. Rows of equal similarity stand by row id; which of
    them is cut off at the end is open. Anchors with fewer rows of other identities are padded with
    -1 and -inf. K is bounded by memory alone.

    Args:
        embeddings: [N, D] float32 of length 1: an array, which may be a memory map, or a tensor.
            A tensor on one of the devices is searched there where it lies.
        identities: Of the same rows.
        anchor_ids_A: [A] row ids; a row may occur more than once.
        num_candidates: K.
        devices: Each takes an equal share of the gallery and answers all anchors.
        precision: Of the products. Below float32 more than K rows are collected and compared again
            in float32, and anchors for which rounding leaves a doubt are searched again in float32.
            TF32 is never used: torch's settings of it are off meanwhile, for all threads.
        memory_mb: Most memory taken on each device, beside a tensor that lies there. A share that
            fits in half of it is held there; else its tiles are sent for each block of anchors.
        on_progress: Called with (anchors done, anchors in all).
        queries: The anchors, where they are no rows of these.

    Raises:
        SearchError: Sizes do not fit, an anchor is no row, K is below 1, a device is missing, or
            the memory does not hold the smallest tile.

    Cost: A N products of vectors and two passes over them.
    """
    anchors = anchor_ids_A if queries is None else np.empty(0, np.int64)
    source = _checked(embeddings, identities, anchors, num_candidates)
    places = _checked_devices(devices)
    num_anchors = len(anchor_ids_A)
    found = Candidates(
        anchor_ids_A.astype(np.int64),
        np.empty((num_anchors, num_candidates), np.int64),
        np.empty((num_anchors, num_candidates), np.float32),
    )
    left = np.arange(num_anchors)
    passes: list[Precision] = [precision] if precision == "float32" else [precision, "float32"]
    with _exact_products(), ThreadPoolExecutor(len(places)) as pool:
        for used in passes:
            if len(left):
                shards = _Shards(source, identities, places, used, memory_mb, queries)
                left = shards.search(found, left, pool, on_progress)
    return found


def cuda_devices() -> list[str]:
    """Names of the GPUs that torch sees."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@dataclass(frozen=True, slots=True)
class _Shards:
    """The gallery over all devices, in one precision."""

    source: F32 | Tensor
    identities: IdentityTable
    places: list[torch.device]
    precision: Precision
    memory_mb: int
    queries: Queries | None

    def search(
        self, found: Candidates, left: I64, pool: ThreadPoolExecutor, on_progress: Progress | None
    ) -> I64:
        """Fill in the anchors at places ``left``; at which of them a doubt remains."""
        num_anchors, num_candidates = found.row_ids_AK.shape
        shards = self.brought(num_candidates)
        block = min(shard.plan.block for shard in shards)
        doubtful = []
        done = num_anchors - len(left)
        for begin in range(0, len(left), block):
            part_B = left[begin : begin + block]
            anchors = self.anchors(found.anchor_ids_A, part_B)
            best = self.nearest(*anchors, num_candidates, shards, pool)
            found.similarities_AK[part_B], found.row_ids_AK[part_B], doubt_B = best
            doubtful.append(part_B[doubt_B])
            done += len(part_B) - len(doubtful[-1])
            if on_progress is not None:
                on_progress(done, num_anchors)
        again = np.concatenate(doubtful)
        if self.precision != "float32":
            logger.info(
                "%d of %d anchors: %s leaves a doubt", len(again), num_anchors, self.precision
            )
        return again

    def brought(self, num_candidates: int) -> list[Shard]:
        """A shard on each device; devices beyond the number of rows stay idle."""
        num_shards = min(len(self.places), len(self.source))
        cuts = np.linspace(0, len(self.source), num_shards + 1).astype(int).tolist()
        return [
            Shard.of(
                self.source[cuts[number] : cuts[number + 1]],
                cuts[number],
                self.identities,
                self.places[number],
                num_candidates,
                self.precision,
                self.memory_mb * 2**20,
            )
            for number in range(num_shards)
        ]

    def anchors(self, anchor_ids_A: I64, part_B: I64) -> tuple[Tensor, Tensor]:
        """Vectors of some of the anchors, on the first device, and their identities."""
        source, rows_B, ids = self.source, anchor_ids_A[part_B], self.identities.identity_ids_N
        if self.queries is not None:
            source, rows_B, ids = self.queries.vectors_QD, part_B, self.queries.owners_Q
        queries_BD = vectors(source, torch.from_numpy(rows_B), self.places[0])
        return queries_BD, torch.from_numpy(ids[rows_B].astype(np.int64))

    def nearest(
        self,
        queries_BD: Tensor,
        own_B: Tensor,
        num_candidates: int,
        shards: list[Shard],
        pool: ThreadPoolExecutor,
    ) -> tuple[F32, I64, npt.NDArray[np.bool_]]:
        """Similarities and row ids of the best K, and of which anchors they are in doubt."""
        parts = list(pool.map(lambda shard: shard.nearest(queries_BD, own_B), shards))
        return _merged(parts, num_candidates, self.places[0])


def _merged(
    parts: list[Nearest], num_candidates: int, device: torch.device
) -> tuple[F32, I64, npt.NDArray[np.bool_]]:
    similarities = torch.cat([part.similarities_BC.to(device) for part in parts], dim=1)
    row_ids = torch.cat([part.row_ids_BC.to(device) for part in parts], dim=1)
    bound_B = torch.stack([part.bound_B.to(device) for part in parts]).amax(0)
    missing = max(0, num_candidates - similarities.shape[1])
    similarities = torch.nn.functional.pad(similarities, (0, missing), value=-torch.inf)
    row_ids = torch.nn.functional.pad(row_ids, (0, missing), value=-1)
    similarities, at = similarities.topk(num_candidates, dim=1)
    row_ids = row_ids.gather(1, at).masked_fill_(similarities == -torch.inf, -1)
    row_ids, at = row_ids.sort(dim=1)
    # The sum makes 0.0 of -0.0: they are equal.
    similarities = similarities.gather(1, at) + 0.0
    similarities, at = similarities.sort(dim=1, descending=True, stable=True)
    doubt_B = similarities[:, -1] < bound_B
    return similarities.cpu().numpy(), row_ids.gather(1, at).cpu().numpy(), doubt_B.cpu().numpy()


def _checked(
    embeddings: F32 | Tensor, identities: IdentityTable, anchor_ids_A: I64, num_candidates: int
) -> F32 | Tensor:
    """The gallery, of which no gradient is asked."""
    shape, dtype = list(embeddings.shape), str(embeddings.dtype).removeprefix("torch.")
    if len(shape) != 2 or dtype != "float32" or not shape[0] * shape[1]:
        raise SearchError(
            f"a search needs a non-empty float32 array [rows, dimensions], got {dtype} {shape}"
        )
    if shape[0] != identities.num_rows or num_candidates < 1:
        raise SearchError(
            f"cannot search {num_candidates=} in {shape[0]} embeddings with a catalog of "
            f"{identities.num_rows} rows: it takes as many, and 1 candidate at least"
        )
    outside = anchor_ids_A[(anchor_ids_A < 0) | (anchor_ids_A >= identities.num_rows)]
    if len(outside):
        raise SearchError(
            f"{len(outside)} anchors are no rows of the catalog, the first are "
            f"{outside[:3].tolist()}: its rows are 0 to {identities.num_rows - 1}"
        )
    if not isinstance(embeddings, Tensor):
        return embeddings
    if embeddings.device.type == "cuda":
        torch.cuda.synchronize(embeddings.device)  # it may have been made on another stream
    return embeddings.detach()


def _checked_devices(devices: Sequence[str | torch.device]) -> list[torch.device]:
    """Each with its number, as tensors name it."""
    known = [torch.device(name) for name in ("cpu", *cuda_devices())]
    places = [torch.device(device) for device in devices]
    places = [
        torch.device("cuda:0") if place == torch.device("cuda") else place for place in places
    ]
    missing = [str(place) for place in places if place not in known]
    if missing or not places:
        raise SearchError(
            f"cannot search on {missing or 'no device'}: torch {torch.__version__} sees "
            f"{', '.join(map(str, known))}"
        )
    return places


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products are of float32, and sums of low ones too; settings are restored."""
    backends: Any = torch.backends
    matmul = backends.cuda.matmul
    changes: list[tuple[Any, str, object]] = [
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_bf16_reduced_precision_reduction", False),
    ]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer interface to what the older one has no word for
        legacy = "highest"
        places = (matmul, backends.mkldnn.matmul)
        changes += [(place, "fp32_precision", "ieee") for place in places]
    before = [getattr(place, name) for place, name, _ in changes]
    try:
        if legacy != "highest":
            torch.set_float32_matmul_precision("highest")
        for place, name, value in changes:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(changes, before, strict=True):
            setattr(place, name, value)
        if legacy != "highest":
            torch.set_float32_matmul_precision(legacy)
