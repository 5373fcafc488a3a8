"""The ranks of one training run: who they are, and what they exchange at every step.

Works alone (one process, no process group) and under ``torchrun`` (gloo for CPU tensors, NCCL for
CUDA tensors). It knows nothing of losses, models or the feed.

Shape legend: W = ranks, R = rows of all ranks together, R_w = rows of one rank, D = dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from trainer.errors import ConfigError, TrainingError

__all__ = ["World", "open_world"]


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    All methods are collective: call them on every rank, in the same order.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that writes what is written once."""
        return self.rank == 0

    def exchange(self, numbers: list[int]) -> list[list[int]]:
        """The ``numbers`` of each rank, in rank order; equally many on every rank.

        Raises:
            TrainingError: Another rank is gone.
        """
        if self.size == 1:
            return [numbers]
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(everyone, mine)
        except RuntimeError as exc:
            raise TrainingError(f"rank {self.rank} lost a peer: {exc}") from exc
        return [row.tolist() for row in everyone]

    def gather_integers(self, values: torch.Tensor, lengths_W: list[int]) -> list[torch.Tensor]:
        """Each rank's int64 vector; rank ``w``'s has ``lengths_W[w]`` entries."""
        if self.size == 1:
            return [values]
        return _all_gather_padded(values, lengths_W)

    def gather_rows(self, rows: torch.Tensor, lengths_W: list[int]) -> torch.Tensor:
        """The ranks' embeddings in rank order; the gradient flows to this rank's own rows.

        Args:
            rows: [R_w, D] of this rank, with R_w = ``lengths_W[rank]``.
            lengths_W: Rows of every rank; they may differ.

        Returns:
            [R, D]. When every rank takes the same loss of it, the sum over the ranks of the
            parameters' gradients is the gradient of that loss; DDP gives their mean, so scale the
            loss by W before ``backward``.

        Cost: one all-gather of W x max(R_w) x D values; nothing in the backward pass.
        """
        if self.size == 1:
            return rows
        everyone = _all_gather_padded(rows.detach(), lengths_W)
        everyone[self.rank] = rows
        return torch.cat(everyone)

    def gather_objects(self, value: Any) -> list[Any]:
        """Each rank's ``value``, in rank order, by pickle."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone


@contextmanager
def open_world(device: str, *, timeout_s: float) -> Iterator[World]:
    """Join the peers that ``torchrun`` started, if it did.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; ``auto`` takes the GPU of this local rank if any.
        timeout_s: How long a collective waits for the slowest rank.

    Raises:
        ConfigError: ``cuda`` was asked for and this process has none.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, chosen)
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    yield World(rank, size, chosen)
    # Only on success: after an error the peers may hang in a collective, and leaving cleanly waits.
    dist.destroy_process_group()


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if torch.cuda.device_count() <= local_rank:
        raise ConfigError(
            f"device {device!r}: local rank {local_rank} has no GPU, "
            f"this machine shows {torch.cuda.device_count()}; start fewer ranks or use device: cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _all_gather_padded(values: torch.Tensor, lengths_W: list[int]) -> list[torch.Tensor]:
    padded = values.new_zeros((max(lengths_W), *values.shape[1:]))
    padded[: len(values)] = values
    everyone = [torch.empty_like(padded) for _ in lengths_W]
    dist.all_gather(everyone, padded)
    return [part[:length] for part, length in zip(everyone, lengths_W, strict=True)]
