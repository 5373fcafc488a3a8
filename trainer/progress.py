"""How far training is: a bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

from trainer.config import TrainerConfig
from trainer.distributed import World
from trainer.feed import TripletBatch
from trainer.logs import LogFormat, chosen_format

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


class Progress:
    """A context manager; only rank 0 shows anything."""

    def __init__(self, config: TrainerConfig, world: World, first_step: int) -> None:
        self._run_id, self._num_steps = config.run_id, config.steps
        self._is_shown = world.is_first
        self._last_log_s = time.monotonic()
        self._bar: rich_progress.Progress | None = None
        console = Console(stderr=True)
        if world.is_first and console.is_terminal and chosen_format() is LogFormat.TEXT:
            self._bar = rich_progress.Progress(
                *rich_progress.Progress.get_default_columns(),
                rich_progress.TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(
                config.run_id, total=config.steps, completed=first_step, note="waiting for a batch"
            )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, next_step: int, loss: float, batch: TripletBatch) -> None:
        """Show the step that was just taken."""
        note = (
            f"loss {loss:.4f}  round {batch.round_id} ({batch.strategy})"
            f"  staleness {batch.staleness_steps}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=next_step, note=note)
        elif self._is_shown and self._is_due(next_step):
            extra = {
                "run": self._run_id,
                "step": batch.step,
                "round": batch.round_id,
                "strategy": batch.strategy,
                "staleness_steps": batch.staleness_steps,
                "loss": loss,
            }
            logger.info("step %d of %d  %s", next_step, self._num_steps, note, extra=extra)

    def _is_due(self, next_step: int) -> bool:
        now_s = time.monotonic()
        if now_s - self._last_log_s < LOG_EVERY_S and next_step != self._num_steps:
            return False
        self._last_log_s = now_s
        return True
