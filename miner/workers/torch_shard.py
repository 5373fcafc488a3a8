"""A part of the gallery for which one torch device answers: the best of it for each anchor.

    tile by tile: product -> own identity to -inf -> best C of the tile -> best C so far
                                     in low precision, at the end: compared again in float32

It knows no other shard. Shape legend: N = rows, D = dimensions, I = identities, B = anchors,
G = rows of a tile, M = groups of neighbouring rows in a tile, g = rows of a group, R = rows of the
shard, C = rows collected per anchor, P = pairs of an anchor and a row of its identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miner.types import IdentityTable
from miner.workers.torch_memory import Plan, Shape, Slot, group_size, sent

__all__ = ["Nearest", "Precision", "Shard", "best_of_tile", "vectors"]

Precision = Literal["float32", "float16", "bfloat16"]
F32 = npt.NDArray[np.float32]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROUNDINGS = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding a number once, to 11 and 8 bits."""
SLACK = 64
CUDA_WORKSPACE = 64 * 2**20
"""Of the libraries: cuBLAS takes 32 MB on a H100."""
PAIR_BYTES = 64


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a shard has found.

    Attributes:
        similarities_BC: [B, C] float32 products, in any order; -inf where there is no row.
        row_ids_BC: [B, C] row ids.
        bound_B: [B] no row of the shard that is left out is more similar.
    """

    similarities_BC: Tensor
    row_ids_BC: Tensor
    bound_B: Tensor


@dataclass(frozen=True, slots=True)
class Tables:
    """Identities on a device."""

    identity_ids_N: Tensor
    offsets_I1: Tensor
    rows_N: Tensor

    @classmethod
    def of(cls, identities: IdentityTable, device: torch.device) -> Tables:
        """Send them there."""
        arrays = identities.identity_ids_N, identities.offsets_I1, identities.rows_N
        return cls(*(torch.tensor(array, device=device) for array in arrays))

    def pairs(self, own_B: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
        """Anchors and rows of their identity, ascending by row; None if more than ``most``."""
        sizes_B = self.offsets_I1[own_B + 1] - self.offsets_I1[own_B]
        total = int(sizes_B.sum())
        if total > most:
            return None
        place_B = torch.arange(len(own_B), device=own_B.device)
        anchor_P = torch.repeat_interleave(place_B, sizes_B, output_size=total)
        first_B = self.offsets_I1[own_B] - (sizes_B.cumsum(0) - sizes_B)
        row_P = self.rows_N[torch.arange(total, device=own_B.device) + first_B[anchor_P]]
        row_P, order = row_P.sort()
        return anchor_P[order], row_P


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows ``begin`` up to ``begin + R`` on one device.

    Attributes:
        source_RD: Where the rows come from.
        held_RD: The rows on the device, or None if they are sent for each block of anchors.
        slots: Through which they are sent.
    """

    device: torch.device
    begin: int
    source_RD: F32 | Tensor
    held_RD: Tensor | None
    slots: tuple[Slot, Slot] | None
    tables: Tables
    plan: Plan
    precision: Precision
    num_collected: int

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - a shard, and how it is searched
        cls,
        source_RD: F32 | Tensor,
        begin: int,
        identities: IdentityTable,
        device: torch.device,
        num_candidates: int,
        precision: Precision,
        memory_bytes: int,
    ) -> Shard:
        """Plan the device's memory, and bring what it holds.

        Raises:
            SearchError: The memory does not hold the smallest product.
        """
        num_rows, dim = source_RD.shape
        wanted = num_candidates if precision == "float32" else 2 * num_candidates + SLACK
        wanted = min(wanted, num_rows)
        table_bytes = 12 * identities.num_rows + 8 * (identities.num_identities + 1)
        table_bytes += CUDA_WORKSPACE if device.type == "cuda" else 0
        is_lent = isinstance(source_RD, Tensor) and source_RD.device == device
        score_bytes = DTYPES[precision].itemsize
        shape = Shape(num_rows, dim, wanted, score_bytes, table_bytes, is_lent)
        plan = Plan.of(shape, memory_bytes)
        held, slots = None, None
        if isinstance(source_RD, Tensor) and is_lent:
            held = source_RD
        else:
            tile = min(plan.tile, num_rows)
            slots = Slot.of(tile, dim, device), Slot.of(tile, dim, device)
        if plan.is_held and slots is not None:
            held = torch.empty((num_rows, dim), device=device)
            for first, tile_GD in sent(source_RD, tile, slots):
                held[first : first + len(tile_GD)] = tile_GD
            slots = None
        tables = Tables.of(identities, device)
        return cls(device, begin, source_RD, held, slots, tables, plan, precision, wanted)

    def nearest(self, queries_BD: Tensor, own_B: Tensor) -> Nearest:
        """Compare anchors, given by vector and identity, with every row of the shard."""
        queries_BD, own_B = queries_BD.to(self.device), own_B.to(self.device)
        low_BD = queries_BD.to(DTYPES[self.precision])
        best_BC = low_BD.new_empty((len(own_B), 0))
        rows_BC = own_B.new_empty((len(own_B), 0))
        for begin, tile_GD, pairs in self._masked_tiles(own_B):
            scores_BG = low_BD @ tile_GD.to(low_BD.dtype).T
            if pairs is None:
                identities_G = self.tables.identity_ids_N[begin : begin + len(tile_GD)]
                scores_BG.masked_fill_(own_B[:, None] == identities_G[None, :], -torch.inf)
            else:
                scores_BG[pairs[0], pairs[1] - begin] = -torch.inf
            tile_BC, places_BC = best_of_tile(scores_BG, self.num_collected)
            best_BC = torch.cat([best_BC, tile_BC], dim=1)
            rows_BC = torch.cat([rows_BC, places_BC + begin], dim=1)
            best_BC, at = best_BC.topk(min(self.num_collected, best_BC.shape[1]), dim=1)
            rows_BC = rows_BC.gather(1, at)
        if self.precision != "float32":
            return self._rescored(queries_BD, best_BC, rows_BC)
        return Nearest(best_BC, rows_BC, torch.full_like(best_BC[:, 0], -torch.inf))

    def _masked_tiles(
        self, own_B: Tensor
    ) -> Iterator[tuple[int, Tensor, tuple[Tensor, Tensor] | None]]:
        """First row id and rows of each tile, and the pairs that lie in it if they are listed."""
        tile, num_rows = self.plan.tile, len(self.source_RD)
        pairs = self.tables.pairs(own_B, len(own_B) * tile // PAIR_BYTES)
        starts = range(0, num_rows, tile)
        ends: list[int] = []
        if pairs is not None:
            limits = torch.tensor([*starts, num_rows], device=self.device) + self.begin
            ends = torch.searchsorted(pairs[1], limits).tolist()
        for number, (begin, tile_GD) in enumerate(self._tiles()):
            in_tile = None
            if pairs is not None:
                part = slice(ends[number], ends[number + 1])
                in_tile = pairs[0][part], pairs[1][part]
            yield self.begin + begin, tile_GD, in_tile

    def _tiles(self) -> Iterator[tuple[int, Tensor]]:
        if self.held_RD is None:
            assert self.slots is not None
            yield from sent(self.source_RD, self.plan.tile, self.slots)
            return
        for begin in range(0, len(self.held_RD), self.plan.tile):
            yield begin, self.held_RD[begin : begin + self.plan.tile]

    def _rescored(self, queries_BD: Tensor, best_BC: Tensor, rows_BC: Tensor) -> Nearest:
        """Collected rows, best first in low precision, with their products in float32."""
        dim = queries_BD.shape[1]
        is_row_BC = best_BC > -torch.inf
        exact_BC = torch.full_like(best_BC, -torch.inf, dtype=torch.float32)
        source = self.source_RD if self.held_RD is None else self.held_RD
        # Within the room of the last product, which is gone.
        step = max(1, self.plan.block * self.plan.tile // (4 * best_BC.shape[1] * dim))
        for begin in range(0, len(queries_BD), step):
            part = slice(begin, begin + step)
            places = torch.where(is_row_BC[part], rows_BC[part] - self.begin, 0)
            found = vectors(source, places.flatten(), self.device).view(*places.shape, dim)
            exact_BC[part] = torch.bmm(found, queries_BD[part, :, None])[:, :, 0]
        exact_BC.masked_fill_(~is_row_BC, -torch.inf)
        bound_B = best_BC[:, -1].float() + largest_error(dim, self.precision)
        if best_BC.shape[1] == len(self.source_RD):  # none is left out
            bound_B = torch.full_like(bound_B, -torch.inf)
        return Nearest(exact_BC, rows_BC, bound_B)


def best_of_tile(scores_BG: Tensor, num_wanted: int) -> tuple[Tensor, Tensor]:
    """The ``num_wanted`` best of each row and where they stand, in any order; fewer if G is less.

    They lie in the groups with the best maxima, so that only members of these groups are sorted.

    Cost: one pass over the scores, and the sort of some ``3 sqrt(G C)`` entries of each row.
    """
    num_rows, num_columns = scores_BG.shape
    group = group_size(num_columns, num_wanted)
    if group == 1:
        values, at = scores_BG.topk(min(num_wanted, num_columns), dim=1, sorted=False)
        return values, at
    rest = num_columns % group
    grouped_BMg = scores_BG[:, : num_columns - rest].view(num_rows, -1, group)
    chosen_BC = grouped_BMg.amax(2).topk(num_wanted, dim=1, sorted=False).indices
    members = grouped_BMg.gather(1, chosen_BC[:, :, None].expand(-1, -1, group)).flatten(1)
    first_BC = chosen_BC * group
    if rest:  # as members of a last group
        members = torch.cat([members, scores_BG[:, -rest:]], dim=1)
        first_BC = torch.nn.functional.pad(first_BC, (0, 1), value=num_columns - rest)
    values, at = members.topk(num_wanted, dim=1, sorted=False)
    return values, first_BC.gather(1, at // group) + at % group


def largest_error(dim: int, precision: Precision) -> float:
    """By how much a low similarity of rows of length 1 may differ from that in float32.

    Both factors and the result are rounded once each, sums are made in float32. A little more
    allows for rows not quite of length 1 and for numbers too small for full precision.
    """
    return 3.1 * ROUNDINGS[precision] + dim * 2.0**-22


def vectors(source: F32 | Tensor, places: Tensor, device: torch.device) -> Tensor:
    """Some rows, from wherever they lie, on ``device``."""
    if isinstance(source, Tensor):
        return source.index_select(0, places.to(source.device)).to(device)
    return torch.from_numpy(np.ascontiguousarray(source[places.cpu().numpy()])).to(device)
