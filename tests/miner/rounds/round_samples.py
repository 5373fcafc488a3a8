"""Made-up rounds for tests."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from miner.rounds import RoundDraft, RoundLog, RoundsConfig, RoundWriter
from miner.types import Groups


def make_groups(
    num_groups: int,
    *,
    seed: int = 0,
    rows: tuple[int, int] = (3, 8),
    triplets: tuple[int, int] = (0, 4),
) -> Groups:
    """Ragged groups of so many rows and triplets each; both bounds are inclusive."""
    rng = np.random.default_rng(seed)
    sizes_G = rng.integers(rows[0], rows[1] + 1, num_groups)
    triplets_G = rng.integers(triplets[0], triplets[1] + 1, num_groups)
    num_rows, num_triplets = int(sizes_G.sum()), int(triplets_G.sum())
    size_T = np.repeat(sizes_G, triplets_G)
    return Groups(
        row_ids_R=rng.integers(0, 60, num_rows),
        identity_ids_R=rng.integers(0, 9, num_rows).astype(np.int32),
        row_offsets_G1=np.concatenate(([0], np.cumsum(sizes_G))).astype(np.int64),
        anchors_T=np.zeros(num_triplets, np.int32),
        positives_T=np.ones(num_triplets, np.int32),
        negatives_T=rng.integers(2, size_T).astype(np.int32),
        similarities_ap_T=rng.random(num_triplets).astype(np.float32),
        similarities_an_T=np.full(num_triplets, np.nan, np.float32),
        tiers_T=rng.integers(0, 3, num_triplets).astype(np.uint8),
        triplet_offsets_G1=np.concatenate(([0], np.cumsum(triplets_G))).astype(np.int64),
    )


def make_draft(**changes: Any) -> RoundDraft:
    """A draft of a random round; ``changes`` replace fields."""
    values: dict[str, Any] = {
        "model_step": 0,
        "weights_sha256": "",
        "dataset_fingerprint": "f" * 64,
        "strategy": "random",
        "config": {"identities_per_group": 4},
        "seed": 3,
        "index": {},
        "recall": None,
        "selection": {"num_groups": 5},
        "phases_s": {"select": 0.5},
        "created_unix_s": 1.5,
    }
    return RoundDraft(**{**values, **changes})


def make_log(
    root: Path, num_rounds: int, *, num_groups: int = 10, chunk_groups: int = 4
) -> tuple[RoundLog, RoundWriter]:
    """A log with rounds 1 to ``num_rounds``; round i holds ``make_groups(num_groups, seed=i)``."""
    log = RoundLog(root)
    writer = RoundWriter.open(log, RoundsConfig(chunk_groups=chunk_groups))
    for seed in range(1, num_rounds + 1):
        writer.seal(make_groups(num_groups, seed=seed), make_draft())
    return log, writer


def bytes_of(groups: Groups) -> dict[str, bytes]:
    """Every column's type and bytes: equal only for equal groups, NaN included."""
    columns = {field.name: getattr(groups, field.name) for field in fields(groups)}
    return {name: str(column.dtype).encode() + column.tobytes() for name, column in columns.items()}
