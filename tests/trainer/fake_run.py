"""A miner inside the process, and a script that trains one rank on it.

    python fake_run.py CONFIG [--pause SECONDS]

Batches are a pure function of the step, as the real miner's are: five groups of two identities with
two samples each, so that two ranks get unequal shares (two groups and three).
"""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image
from torch import nn

from trainer.announcer import MinerLink
from trainer.config import TrainerConfig
from trainer.config_file import load_config
from trainer.distributed import World, open_world
from trainer.errors import WeightsRefusedError
from trainer.feed import FeedFigures, TripletBatch
from trainer.loop import train

NUM_GROUPS, NUM_IDENTITIES, SAMPLES = 5, 12, 4


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def image_of(row_id: int) -> bytes:
    """Rows of one identity are noisy copies of one pattern."""
    pattern = np.random.default_rng(row_id // SAMPLES).integers(0, 200, (8, 8))
    noise = np.random.default_rng(1000 + row_id).integers(0, 56, (32, 32))
    return png(pattern.repeat(4, 0).repeat(4, 1) + noise)


def batch_of(step: int, rank: int = 0, world_size: int = 1) -> TripletBatch:
    rng = np.random.default_rng(step)
    first = NUM_GROUPS * rank // world_size
    num_groups = NUM_GROUPS * (rank + 1) // world_size - first
    pairs = [rng.choice(NUM_IDENTITIES, 2, replace=False) for _ in range(NUM_GROUPS)]
    samples = [rng.choice(SAMPLES, (2, 2)) for _ in range(NUM_GROUPS)]
    rows = np.concatenate(
        [
            (pair[:, None] * SAMPLES + sample).ravel()
            for pair, sample in zip(pairs, samples, strict=True)
        ]
    ).reshape(NUM_GROUPS, 4)[first : first + num_groups]
    begins = 4 * np.arange(num_groups, dtype=np.int32)
    none_T = np.full(num_groups, np.nan, np.float32)
    row_ids = rows.ravel().astype(np.int64)
    return TripletBatch(
        step=step,
        round_id=1 + step // 4,
        model_step=0,
        staleness_steps=step,
        over_stale=False,
        strategy="random" if step < 4 else "rank_window",
        pass_number=0,
        global_rows=4 * NUM_GROUPS,
        global_groups=NUM_GROUPS,
        first_group=first,
        row_ids_R=row_ids,
        identity_ids_R=(row_ids // SAMPLES).astype(np.int32),
        group_offsets_G1=np.append(begins, 4 * num_groups).astype(np.int32),
        anchors_T=begins,
        positives_T=begins + 1,
        negatives_T=begins + 2,
        similarities_ap_T=none_T,
        similarities_an_T=none_T,
        tiers_T=np.zeros(num_groups, np.uint8),
        samples=pa.record_batch(
            {"row_id": row_ids, "image": pa.array([image_of(r) for r in row_ids], pa.binary())}
        ),
    )


@dataclass
class FakeFeed:
    step: int
    rank: int
    world_size: int
    before_step: Callable[[int], object]

    def __next__(self) -> TripletBatch:
        self.before_step(self.step)
        self.step += 1
        return batch_of(self.step - 1, self.rank, self.world_size)

    def figures(self) -> FeedFigures:
        return FeedFigures(num_reconnects=2, num_buffered=3)

    def close(self) -> None:
        pass


@dataclass
class FakeMiner:
    """Remembers what it was told; ``before_step`` runs before each batch is handed out."""

    before_step: Callable[[int], object] = lambda step: None
    refuses: str = ""
    announced: list[tuple[int, str, str]] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)

    def open_feed(self, world: World, first_step: int) -> FakeFeed:
        return FakeFeed(first_step, world.rank, world.size, self.before_step)

    def link(self) -> MinerLink:
        return MinerLink(self._announce, self.committed.append)

    def _announce(self, step: int, uri: str, sha256: str) -> bool:
        if self.refuses:
            raise WeightsRefusedError(self.refuses)
        self.announced.append((step, uri, sha256))
        return False


def build_small(dim: int = 8) -> nn.Module:
    """With batch norm, whose statistics must not depend on how ranks share a batch."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=4, bias=False),  # a bias would drown in the norm
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.Tanh(),
        nn.Linear(16, dim),
    )


def tree(out: Path, **changes: Any) -> dict[str, Any]:
    """A configuration as YAML would give it."""
    base: dict[str, Any] = {
        "run_id": "fake",
        "out": str(out),
        "steps": 12,
        "batch_rows": 20,
        "device": "cpu",
        "miner": {"address": "nowhere:1"},
        "encoder": {"args": {"dim": 8, "width": 2}},
        "optimizer": {"ramp_steps": 2},
        "checkpoint": {"every_steps": 5},
        "announce": {"every_steps": 0},
    }
    return base | changes


def config_of(out: Path, **changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate(tree(out, **changes))


ALONE = World(0, 1, torch.device("cpu"))


def main() -> None:
    torch.set_num_threads(1)
    pause_s = float(sys.argv[3]) if "--pause" in sys.argv else 0.0
    config = load_config(TrainerConfig, Path(sys.argv[1]))
    with open_world(config.device, timeout_s=30) as world:
        summary = train(config, FakeMiner(lambda step: time.sleep(pause_s)), world)
    print(yaml.safe_dump(summary.model_dump()))
    sys.exit(0 if summary.ended == "finished" else 75)


if __name__ == "__main__":
    main()
