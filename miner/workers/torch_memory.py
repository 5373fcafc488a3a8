"""A torch device's memory in a search by tiles: what is held, what is sent, how large a product is.

It knows neither identities nor similarities. Shape legend: D = dimensions, G = rows of a tile,
R = rows of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.errors import SearchError

__all__ = ["Plan", "Shape", "Slot", "group_size", "sent"]

F32 = npt.NDArray[np.float32]

MAX_TILE = 65_536
TILE_STEP = 1024
MAX_BLOCK = 16_384
GOOD_BLOCK = 512
"""A tile is made smaller until so many anchors are compared with it at once."""
MAX_PRODUCT = 2**30
MIN_GROUP = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory of a search depends on.

    Attributes:
        num_rows: Rows of the shard, R.
        dim: D.
        num_collected: Rows collected per anchor.
        score_bytes: Of one product: 4, or 2 in low precision.
        table_bytes: Of identities on the device, and of libraries.
        is_lent: The rows lie on the device already and are not ours to count.
    """

    num_rows: int
    dim: int
    num_collected: int
    score_bytes: int
    table_bytes: int
    is_lent: bool

    @property
    def shard_bytes(self) -> int:
        """Of the shard in float32, if it is held."""
        return 0 if self.is_lent else self.num_rows * self.dim * 4

    def fixed_bytes(self, tile: int, is_held: bool) -> int:
        """Of tables, the shard or two tiles on their way, and a tile in low precision."""
        low = tile * self.dim * self.score_bytes if self.score_bytes < 4 else 0
        sent_tiles = 2 * tile * self.dim * 4
        return self.table_bytes + low + (self.shard_bytes if is_held else sent_tiles)

    def bytes_per_anchor(self, tile: int) -> int:
        """Of a row of products, its mask or pairs, its sorting, and what is kept."""
        group = group_size(tile, self.num_collected)
        sorted_entries = max(tile // group, self.num_collected * group) if group > 1 else tile
        product = tile * (self.score_bytes + 1)
        # torch.topk sorts values and int64 places, twice buffered, where K is large.
        selection = sorted_entries * 2 * (self.score_bytes + 8)
        return product + selection + 96 * self.num_collected + 12 * self.dim


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether a device holds its shard, and the sides of one product: anchors and rows."""

    is_held: bool
    tile: int
    block: int

    @classmethod
    def of(cls, shape: Shape, memory_bytes: int) -> Plan:
        """The largest product whose bytes, as ``shape`` counts them, stay within the memory.

        Raises:
            SearchError: Not even the smallest does.
        """
        if 2 * shape.shard_bytes <= memory_bytes:
            plan = cls._with(shape, memory_bytes, is_held=True)
            if plan.block:
                return plan
        plan = cls._with(shape, memory_bytes, is_held=False)
        if not plan.block:
            needed = shape.fixed_bytes(plan.tile, False) + shape.bytes_per_anchor(plan.tile)
            raise SearchError(
                f"{memory_bytes / 2**20:.0f} MB do not hold the smallest tile of a search for "
                f"{shape.num_collected} rows among {shape.num_rows} of {shape.dim} dimensions: "
                f"set memory_mb to {needed // 2**20 + 1}"
            )
        return plan

    @classmethod
    def _with(cls, shape: Shape, memory_bytes: int, *, is_held: bool) -> Plan:
        tile = min(MAX_TILE, -(-shape.num_rows // TILE_STEP) * TILE_STEP)
        while True:
            free = memory_bytes - shape.fixed_bytes(tile, is_held)
            block = free // shape.bytes_per_anchor(tile)
            if block >= GOOD_BLOCK or tile <= TILE_STEP:
                return cls(is_held, tile, max(0, min(MAX_BLOCK, block, MAX_PRODUCT // tile)))
            tile = tile // 2 // TILE_STEP * TILE_STEP


def group_size(num_columns: int, num_wanted: int) -> int:
    """Columns of a group: a power of two near the root of G / C, or 1 where groups do not pay.

    Example:
        >>> group_size(65_536, 50), group_size(1000, 100)
        (32, 1)
    """
    root = isqrt(num_columns // num_wanted)
    return 1 << (root.bit_length() - 1) if root >= MIN_GROUP else 1


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one tile on its way to a device: empty -> being filled -> in use -> empty.

    On a GPU rows go through page-locked memory on a stream of their own, so that one tile comes
    while another is compared.
    """

    staging_GD: Tensor
    tile_GD: Tensor
    stream: torch.cuda.Stream | None
    filled: torch.cuda.Event | None
    used: torch.cuda.Event | None

    @classmethod
    def of(cls, num_rows: int, dim: int, device: torch.device) -> Slot:
        """Take the room."""
        staging = torch.empty((num_rows, dim), pin_memory=device.type == "cuda")
        if device.type != "cuda":
            return cls(staging, staging, None, None, None)
        cuda: Any = torch.cuda
        tile = torch.empty((num_rows, dim), device=device)
        return cls(staging, tile, cuda.Stream(device), cuda.Event(), cuda.Event())

    def send(self, rows_GD: F32 | Tensor) -> None:
        """Begin to bring rows; the device may still be busy with the last ones here."""
        num_rows = len(rows_GD)
        if self.filled is not None:
            self.filled.synchronize()  # the last rows have left the staging room
        if isinstance(rows_GD, Tensor):
            self.staging_GD[:num_rows].copy_(rows_GD)
        else:
            np.copyto(self.staging_GD[:num_rows].numpy(), rows_GD)
        if self.stream is None or self.filled is None or self.used is None:
            return
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.used)
            self.tile_GD[:num_rows].copy_(self.staging_GD[:num_rows], non_blocking=True)
            self.filled.record(self.stream)

    def take(self, num_rows: int) -> Tensor:
        """The rows; what is asked of the device from now on waits until they have come."""
        if self.filled is not None:
            torch.cuda.current_stream(self.tile_GD.device).wait_event(self.filled)
        return self.tile_GD[:num_rows]

    def release(self) -> None:
        """Nothing asked of the device from now on uses these rows."""
        if self.used is not None:
            self.used.record(torch.cuda.current_stream(self.tile_GD.device))


def sent(
    source_RD: F32 | Tensor, tile: int, slots: tuple[Slot, Slot]
) -> Iterator[tuple[int, Tensor]]:
    """Tiles of ``source_RD`` in turn, with the place of the first row; the next one is on its way.

    A tile may be used until the next is asked for.
    """
    starts = range(0, len(source_RD), tile)
    slots[0].send(source_RD[:tile])
    for number, begin in enumerate(starts):
        if number + 1 < len(starts):
            slots[(number + 1) % 2].send(source_RD[begin + tile : begin + 2 * tile])
        slot = slots[number % 2]
        yield begin, slot.take(min(tile, len(source_RD) - begin))
        slot.release()
