"""One optimizer step, and the state that steps change: network, optimizer, schedule.

It knows neither where batches come from nor when to save.

Shape legend: W = ranks, R = rows of the global batch, D = dimensions of the embedding.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.batch_norm import share_batch_norm
from trainer.checkpoint import Checkpoint, capture_random_state, restore_random_state
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.feed import TripletBatch
from trainer.losses import BatchIndex, TripletLoss
from trainer.model import build_module, embed, load_preprocess

__all__ = ["Learner", "StepResult", "learning_rate_factor"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Figures of one step: of the global batch, or with ``gather: false`` of this rank's share."""

    loss: float
    gradient_norm: float
    lr: float


class Learner:
    """The network under training on one rank.

    Guarantees that all ranks start from the same weights, drawn from ``config.seed``, and that they
    have the same weights after every step.

    Args:
        config: The whole configuration.
        world: This rank and its peers.
    """

    def __init__(self, config: TrainerConfig, world: World) -> None:
        self._config = config
        self._world = world
        self._preprocess = load_preprocess(config.encoder)
        module = build_module(config.encoder, seed=config.seed).to(world.device)
        if world.size > 1:
            # By the global batch, so that learning does not depend on how many ranks share it.
            on_gpu = world.device.type == "cuda"
            share = nn.SyncBatchNorm.convert_sync_batchnorm if on_gpu else share_batch_norm
            module = share(module)
        self.module = module
        self._network: nn.Module = module
        if world.size > 1:
            ids = [world.device] if world.device.type == "cuda" else None
            self._network = DistributedDataParallel(module, device_ids=ids)
        self._loss = TripletLoss(config.loss)
        self._optimizer = torch.optim.AdamW(
            module.parameters(), lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: learning_rate_factor(config.optimizer, step, config.steps),
        )
        self._seed_rank(step=0)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the state of ``checkpoint``.

        Ranks that were not there when it was saved draw fresh random numbers.

        Raises:
            CheckpointError: It was made with other settings.
        """
        checkpoint.check_config(self._config.fixed_over_resume())
        self.module.load_state_dict(checkpoint.model)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self._schedule.load_state_dict(checkpoint.schedule)
        if self._world.rank < len(checkpoint.random_states):
            restore_random_state(checkpoint.random_states[self._world.rank])
        else:
            self._seed_rank(checkpoint.step)

    def capture(self, step: int) -> Checkpoint:
        """The state from which ``step`` comes next; call it on every rank."""
        return Checkpoint(
            step=step,
            config=self._config.fixed_over_resume(),
            model=self.module.state_dict(),
            optimizer=self._optimizer.state_dict(),
            schedule=self._schedule.state_dict(),
            random_states=self._world.gather_objects(capture_random_state()),
        )

    def train_on(self, batch: TripletBatch, rows_W: list[int], triplets_W: list[int]) -> StepResult:
        """One optimizer step on the global batch of which ``batch`` is this rank's share.

        Args:
            batch: With its samples.
            rows_W: Rows of each rank's share.
            triplets_W: Triplets of each rank's share.

        Raises:
            TrainingError: A sample does not preprocess, or loss or gradient is not finite; the
                weights are as before the step.
        """
        self._network.train()
        inputs = self._inputs(batch)
        embeddings = embed(self._network, inputs, self._config.precision)
        index, scale = _index_of(batch), 1
        if self._config.loss.gather:
            # DDP averages gradients over ranks; a loss over all ranks' rows needs their sum.
            embeddings, scale = self._world.gather_rows(embeddings, rows_W), self._world.size
            index = _gather_index(self._world, index, rows_W, triplets_W)
        loss = self._loss(embeddings, index.to(embeddings.device))
        self._optimizer.zero_grad()
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        result = StepResult(
            loss=float(loss.detach()),
            gradient_norm=float(_gradient_norm(self.module)),
            lr=float(self._schedule.get_last_lr()[0]),
        )
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            raise TrainingError(
                f"step {batch.step}, round {batch.round_id} ({batch.strategy}): the loss is "
                f"{result.loss}, the norm of its gradient {result.gradient_norm}, at learning rate "
                f"{result.lr:g} in {self._config.precision}; the newest checkpoint is untouched. "
                "Lower optimizer.lr, or look at the samples of that round"
            )
        self._optimizer.step()
        self._schedule.step()
        return result

    def _inputs(self, batch: TripletBatch) -> torch.Tensor:
        where = f"step {batch.step}, round {batch.round_id}"
        if batch.samples is None:
            raise TrainingError(f"{where}: the batch came without its samples")
        try:
            inputs = self._preprocess(batch.samples)
        except ValueError as exc:
            raise TrainingError(f"{where}: {exc}") from exc
        return inputs.to(self._world.device, non_blocking=True)

    def _seed_rank(self, step: int) -> None:
        # Dropout and augmentation differ from rank to rank; the weights are drawn already.
        # Torch takes the lower 32 bits of a seed alone, so that more has to be mixed before.
        mixed = np.random.SeedSequence((self._config.seed, self._world.rank, step))
        seed = int(mixed.generate_state(1)[0])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)


def learning_rate_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Share of the peak rate at ``step``: a linear ramp times a half cosine, or times one.

    Example:
        >>> config = OptimizerConfig(ramp_steps=2, final_fraction=0.0)
        >>> [round(learning_rate_factor(config, s, 4), 3) for s in range(5)]
        [0.5, 0.854, 0.5, 0.146, 0.0]
    """
    ramp = min(1.0, (step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
    if config.schedule == "constant":
        return ramp
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return ramp * (cosine * (1 - config.final_fraction) + config.final_fraction)


def _index_of(batch: TripletBatch) -> BatchIndex:
    columns = (
        batch.row_ids_R,
        batch.identity_ids_R,
        batch.anchors_T,
        batch.positives_T,
        batch.negatives_T,
    )
    return BatchIndex(*(torch.as_tensor(column, dtype=torch.int64) for column in columns))


def _gather_index(
    world: World, mine: BatchIndex, rows_W: list[int], triplets_W: list[int]
) -> BatchIndex:
    """Every rank's index in one collective, merged."""
    columns = [getattr(mine, name) for name in BatchIndex.__slots__]
    lengths = [[r, r, t, t, t] for r, t in zip(rows_W, triplets_W, strict=True)]
    shares = world.gather_integers(torch.cat(columns), [sum(length) for length in lengths])
    parts = zip(shares, lengths, strict=True)
    return BatchIndex.merge([BatchIndex(*torch.split(share, n)) for share, n in parts])


def _gradient_norm(module: nn.Module) -> torch.Tensor:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    norm: torch.Tensor = torch.linalg.vector_norm(norms)
    return norm
