"""What one training process did, in figures: counted while it runs, written at its end."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer.feed import TripletBatch
from trainer.files import write_atomically
from trainer.model import WeightsFile

__all__ = ["Ending", "RoundSeen", "Summary", "Tally"]


class RoundSeen(BaseModel):
    """One round's part in the training; a round that is gone through again counts once."""

    model_config = ConfigDict(frozen=True)

    round_id: int
    strategy: str
    model_step: int
    first_step: int
    num_steps: int


class Summary(BaseModel):
    """The figures of one process; times in seconds, ``images`` over all ranks."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    ended: Literal["finished", "stopped"]
    signal: int | None
    first_step: int
    next_step: int
    num_steps: int
    images: int
    wall_s: float
    training_s: float
    stalled_s: float
    checkpoint_s: float
    steps_per_s: float
    images_per_s: float
    mean_loss_of_last_steps: float | None
    rounds: list[RoundSeen]
    announcements: dict[str, int]
    weights: str | None
    weights_sha256: str | None

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        text = self.model_dump_json(indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a process ended.

    Attributes:
        run_id: The run it worked on.
        next_step: The step that would come next.
        is_finished: Whether the run has no further step.
        signal: The signal that stopped this process, if any.
        weights: The final weights, on rank 0 of a finished run.
        announcements: How many announcements had which outcome.
    """

    run_id: str
    next_step: int
    is_finished: bool
    signal: int | None
    weights: WeightsFile | None
    announcements: dict[str, int]


class Tally:
    """Adds up the steps of this process. ``wall_s`` counts from its creation."""

    def __init__(self) -> None:
        self._begin_s = time.perf_counter()
        self._rounds: dict[int, RoundSeen] = {}
        self._last_losses: deque[float] = deque(maxlen=20)
        self._num_steps = 0
        self._images = 0
        self._training_s = 0.0
        self._stalled_s = 0.0
        self.first_step = 0
        self.checkpoint_s = 0.0

    def add(
        self, batch: TripletBatch, images: int, loss: float, stalled_s: float, step_s: float
    ) -> None:
        """Count one step; ``images`` are the rows of the global batch."""
        seen = self._rounds.get(batch.round_id)
        self._rounds[batch.round_id] = RoundSeen(
            round_id=batch.round_id,
            strategy=batch.strategy,
            model_step=batch.model_step,
            first_step=seen.first_step if seen else batch.step,
            num_steps=seen.num_steps + 1 if seen else 1,
        )
        self._num_steps += 1
        self._images += images
        self._last_losses.append(loss)
        self._stalled_s += stalled_s
        self._training_s += step_s

    def summary(self, ending: Ending) -> Summary:
        """The figures of this process up to its end."""
        wall_s = time.perf_counter() - self._begin_s
        losses = self._last_losses
        return Summary(
            run_id=ending.run_id,
            ended="finished" if ending.is_finished else "stopped",
            signal=ending.signal,
            first_step=self.first_step,
            next_step=ending.next_step,
            num_steps=self._num_steps,
            images=self._images,
            wall_s=wall_s,
            training_s=self._training_s,
            stalled_s=self._stalled_s,
            checkpoint_s=self.checkpoint_s,
            steps_per_s=self._num_steps / wall_s,
            images_per_s=self._images / wall_s,
            mean_loss_of_last_steps=sum(losses) / len(losses) if losses else None,
            rounds=list(self._rounds.values()),
            announcements=ending.announcements,
            weights=str(ending.weights.path) if ending.weights else None,
            weights_sha256=ending.weights.sha256 if ending.weights else None,
        )
