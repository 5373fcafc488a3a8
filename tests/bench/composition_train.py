"""One training run of the composition study, in one process: mine, train, measure on unseen rows.

The parts are the product's: encoder, losses, metrics, anchors, selection and schedule of the
learning rate. Rounds are mined between steps instead of beside them, so no batch is stale.

Shape legend: N = rows of a split, A = anchors, K = candidates per anchor, D = dimensions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from miner.core.anchors import choose_anchors
from miner.core.config import SelectionConfig
from miner.core.select import random_groups, select_groups
from miner.types import Candidates, Groups, IdentityTable
from tests.bench.composition_losses import make_loss
from trainer.config import OptimizerConfig
from trainer.encoder import build, preprocess
from trainer.losses import BatchIndex
from trainer.metrics import measure
from trainer.step import learning_rate_factor

SCHEDULE = OptimizerConfig()
# Random batches are groups too, as in the demo.
WARMUP = {"strategy": "random", "identities_per_group": 4, "samples_per_identity": 4}


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the table: what is mined, and what the trainer makes of a batch."""

    name: str
    loss: str
    selection: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int | None = None
    """None: the study's own."""
    warmup_loss: str | None = None
    """None: ``loss`` from the first step."""

    @property
    def mines(self) -> bool:
        return self.selection.get("strategy") != "random"


@dataclass(frozen=True, slots=True)
class Study:
    """What all arms share."""

    steps: int = 500
    batch_rows: int = 96
    warmup_steps: int = 50
    refresh_steps: int = 100
    lr: float = 6e-3
    width: int = 8
    dim: int = 128


@dataclass(frozen=True, slots=True)
class Split:
    """Decoded images [N, 1, 32, 32] uint8 and dense identities [N] int32."""

    images_N: torch.Tensor
    identities_N: np.ndarray


def load(folder: Path, name: str) -> dict[str, Split]:
    """Both splits of a set; ``words+20`` is ``words`` with 20 % wrong labels in the train split."""
    name, _, percent = name.partition("+")
    splits = _decode(folder / f"{name}.parquet")
    if percent:
        draws = np.random.default_rng(0)
        identities_N = splits["train"].identities_N.copy()
        wrong = np.flatnonzero(draws.random(len(identities_N)) < float(percent) / 100)
        identities_N[wrong] = identities_N[draws.permutation(wrong)]
        splits["train"] = Split(splits["train"].images_N, identities_N)
    return splits


def _decode(path: Path) -> dict[str, Split]:
    """The decoded images are kept beside the file."""
    cache = path.with_suffix(".npz")
    if not cache.exists() or cache.stat().st_mtime < path.stat().st_mtime:
        columns = {}
        for name in ("train", "test"):
            table = pq.read_table(path, filters=[("split", "=", name)]).combine_chunks()
            images = preprocess(table.to_batches()[0]).mul(255).round().to(torch.uint8)
            columns[f"{name}_images"] = images.numpy()
            _, columns[f"{name}_ids"] = np.unique(table["identity"], return_inverse=True)
        np.savez(cache, **columns)
    with np.load(cache) as read:
        return {
            name: Split(
                torch.from_numpy(read[f"{name}_images"]), read[f"{name}_ids"].astype(np.int32)
            )
            for name in ("train", "test")
        }


def train(arm: Arm, splits: dict[str, Split], study: Study, seed: int) -> dict[str, Any]:
    """Train one arm and measure it on the test split."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    module = build(study.dim, study.width)
    optimizer = torch.optim.AdamW(module.parameters(), lr=study.lr, weight_decay=1e-2)
    losses = {name: make_loss(name) for name in {arm.loss, arm.warmup_loss or arm.loss}}
    rounds = Rounds(arm, splits["train"], study, seed)
    spread, curve = [], []
    for step in range(study.steps):
        rows, batch = rounds.next(module, step)
        warm = arm.warmup_loss is not None and step < rounds.warmup_steps
        module.train()
        embeddings = functional.normalize(module(_input(splits["train"].images_N[rows])))
        loss = losses[arm.warmup_loss if warm and arm.warmup_loss else arm.loss](embeddings, batch)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = study.lr * learning_rate_factor(SCHEDULE, step, study.steps)
        optimizer.step()
        with torch.no_grad():
            spread.append(float(embeddings.mean(0).square().sum()))
            curve.append(float(loss))
    training_s = time.perf_counter() - started
    test = splits["test"]
    metrics = measure(_embed(module, test), test.identities_N.astype(np.int64), far=1e-3)
    return {
        "recall_at_1": metrics.recall_at_1,
        "map_at_r": metrics.map_at_r.value,
        "map_at_r_by_identity": metrics.map_at_r_by_identity.value,
        "tar_at_far": metrics.tar_at_far.value,
        "roc_auc": metrics.roc_auc,
        # Squared length of the batch's mean, every fifth of the run: near 1 is a collapsed space.
        "crowding": [round(x, 3) for x in _fifths(spread)],
        "loss": [round(x, 4) for x in _fifths(curve)],
        "training_s": round(training_s, 1),
        "mining_s": round(rounds.mining_s, 1),
        "mined_similarity": rounds.similarities,
    }


class Rounds:
    """The batches of a run: warm-up groups, then a round mined with the weights of the moment."""

    def __init__(self, arm: Arm, split: Split, study: Study, seed: int) -> None:
        self._arm, self._split, self._study, self._seed = arm, split, study, seed
        self._table = IdentityTable.from_ids(split.identities_N)
        self.warmup_steps = study.warmup_steps if arm.warmup_steps is None else arm.warmup_steps
        self.mining_s = 0.0
        self.similarities: list[float] = []
        self._round_id = 0
        self._batches: Iterator[tuple[np.ndarray, BatchIndex]] = iter(())

    def next(self, module: torch.nn.Module, step: int) -> tuple[np.ndarray, BatchIndex]:
        if self._is_due(step):
            started = time.perf_counter()
            self._batches = self._deal(self._make(module, step))
            self.mining_s += time.perf_counter() - started
        return next(self._batches)

    def _is_due(self, step: int) -> bool:
        since = step - self.warmup_steps
        return step == 0 or (since >= 0 and since % self._study.refresh_steps == 0)

    def _make(self, module: torch.nn.Module, step: int) -> Groups:
        self._round_id += 1
        warm = self._arm.mines and step < self.warmup_steps
        chosen = WARMUP if warm else self._arm.selection
        config = SelectionConfig(**chosen)  # type: ignore[arg-type]
        per_group = config.identities_per_group * max(2, config.samples_per_identity)
        steps = max(self._study.refresh_steps, self.warmup_steps if step == 0 else 0)
        groups = math.ceil(1.3 * steps * self._study.batch_rows / per_group)
        config = config.model_copy(update={"groups_per_round": groups})
        keys = {"seed": self._seed, "round_id": self._round_id}
        if config.strategy == "random":
            return random_groups(self._table, config, **keys).groups
        embeddings_ND = _embed(module, self._split)
        anchors_A = choose_anchors(self._table, config, **keys)
        candidates = self._search(embeddings_ND, anchors_A, config.num_candidates)
        selection = select_groups(candidates, embeddings_ND, self._table, config, **keys)
        self.similarities.append(round(float(np.nanmean(selection.groups.similarities_an_T)), 3))
        return selection.groups

    def _search(self, embeddings_ND: np.ndarray, anchors_A: np.ndarray, k: int) -> Candidates:
        identities = torch.from_numpy(self._split.identities_N)
        gallery = torch.from_numpy(embeddings_ND)
        found = []
        for part in torch.from_numpy(anchors_A).split(256):
            scores = gallery[part] @ gallery.T
            scores[identities[part][:, None] == identities[None]] = -math.inf
            found.append(scores.topk(k))
        return Candidates(
            anchors_A,
            torch.cat([f.indices for f in found]).numpy(),
            torch.cat([f.values for f in found]).numpy(),
        )

    def _deal(self, groups: Groups) -> Iterator[tuple[np.ndarray, BatchIndex]]:
        """Batches of consecutive groups, as many as fit; at the end the round again."""
        offsets, first = groups.row_offsets_G1, 0
        while True:
            room = offsets[first] + self._study.batch_rows
            last = int(np.searchsorted(offsets, room, "right")) - 1
            if last == groups.num_groups and first > 0:
                first = 0
                continue
            part = groups.take(np.arange(first, last))
            shift_T = np.repeat(part.row_offsets_G1[:-1], np.diff(part.triplet_offsets_G1))
            triplets = (part.anchors_T, part.positives_T, part.negatives_T)
            columns = (part.row_ids_R, part.identity_ids_R, *(x + shift_T for x in triplets))
            index = (torch.from_numpy(np.asarray(x).astype(np.int64)) for x in columns)
            yield part.row_ids_R, BatchIndex(*index)
            first = last


@torch.inference_mode()
def _embed(module: torch.nn.Module, split: Split) -> np.ndarray:
    module.eval()
    parts = [functional.normalize(module(_input(x))) for x in split.images_N.split(512)]
    return torch.cat(parts).numpy()


def _input(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def _fifths(values: list[float]) -> list[float]:
    return [float(np.mean(part)) for part in np.array_split(values, 5)]
