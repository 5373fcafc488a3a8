"""A round's groups as one PNG: anchor, positive and mined negatives with their similarities.

Shape legend: T = triplets of one group.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from miner.data import RowStore
from miner.errors import DatasetError, RoundExpiredError
from miner.rounds import RoundLog
from miner.types import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_sheet"]

GROUPS_PER_LINE = 2
GREEN, RED, GREY = "#2e8b57", "#c0392b", "#666666"


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of the sheet."""

    row_id: int
    title: str
    colour: str


def draw_sheet(
    state_dir: Path, store_dir: Path, out: Path, round_id: int | None = None, num_groups: int = 12
) -> None:
    """Draw ``num_groups`` evenly spaced groups of a round, two to a line.

    Raises:
        RoundExpiredError: There is no such round, or none at all.
        DatasetError: The store has no column of images.
    """
    from matplotlib.figure import Figure

    log = RoundLog(state_dir, must_exist=True)
    wanted = round_id if round_id is not None else log.newest()
    if wanted is None:
        raise RoundExpiredError(f"{state_dir} holds no sealed round yet")
    manifest, groups, store = log.manifest(wanted), log.read(wanted), RowStore.open(store_dir)
    if manifest.dataset_fingerprint != store.fingerprint:
        raise DatasetError(f"round {wanted} was mined from another dataset than {store_dir} holds")
    chosen = np.linspace(0, groups.num_groups - 1, min(num_groups, groups.num_groups))
    shown = [_tiles(groups.take(np.array([int(g)]))) for g in chosen]
    width = max(len(tiles) for tiles in shown)
    lines = [shown[i : i + GROUPS_PER_LINE] for i in range(0, len(shown), GROUPS_PER_LINE)]
    num_columns = GROUPS_PER_LINE * (width + 1) - 1  # an empty column between two groups
    size = (1.2 * num_columns, 1.55 * len(lines) + 0.9)
    figure = Figure(figsize=size, dpi=80, layout="constrained")
    figure.suptitle(
        f"Round {wanted}: {manifest.strategy}, weights of step {manifest.model_step}\n"
        "similarities to the anchor; red: closer to it than the positive",
        fontsize=11,
    )
    axes = figure.subplots(len(lines), num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, members in zip(axes, lines, strict=True):
        for place, tiles in enumerate(members):
            begin = place * (width + 1)
            for axis, tile in zip(line[begin : begin + width], tiles, strict=False):
                _draw(axis, tile, store)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def _tiles(group: Groups) -> list[Tile]:
    """Anchor, positive, negatives of a single group, in the order of its triplets."""
    anchor, positive = int(group.anchors_T[0]), int(group.positives_T[0])
    s_ap = float(group.similarities_ap_T[0])
    tiles = [
        Tile(int(group.row_ids_R[anchor]), "anchor", "black"),
        Tile(int(group.row_ids_R[positive]), f"positive {_number(s_ap)}", GREEN),
    ]
    for negative, s_an in zip(group.negatives_T, group.similarities_an_T, strict=True):
        colour = RED if s_an >= s_ap else GREY
        tiles.append(Tile(int(group.row_ids_R[negative]), f"negative {_number(s_an)}", colour))
    return tiles


def _number(similarity: float) -> str:
    return "" if np.isnan(similarity) else f"{similarity:.2f}"


def _draw(axis: Axes, tile: Tile, store: RowStore) -> None:
    sample = store.read(np.array([tile.row_id], np.int64))
    axis.imshow(_image(sample.slice(0, 1).to_pydict(), tile.row_id), cmap="gray")
    identity = int(store.catalog.identities.identity_ids_N[tile.row_id])
    name = str(store.catalog.identity_names[identity])
    axis.set_title(f"{tile.title}\n{_shorten(name)}", fontsize=8, color=tile.colour)


def _image(sample: dict[str, list[object]], row_id: int) -> Image.Image:
    for values in sample.values():
        if isinstance(values[0], bytes):
            try:
                return Image.open(io.BytesIO(values[0]))
            except UnidentifiedImageError:
                continue
    raise DatasetError(
        f"row {row_id} has no image among its columns {', '.join(sample)}: "
        "a contact sheet needs a payload column of PNG, JPEG or the like"
    )


def _shorten(name: str, length: int = 16) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
