"""The reference training loop: batches from the miner, weights back to it, checkpoints in between.

    resume -> (take batch -> step -> [checkpoint, commit] -> [announce])* -> checkpoint -> summary

Runs alone or as one rank under ``torchrun``. At a step boundary all ranks agree on whether to go
on, so a signal to any one of them stops all at the same step.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TYPE_CHECKING, Protocol

from trainer.announcer import Announcer, MinerLink
from trainer.checkpoint import load_newest, save_checkpoint
from trainer.config import TrainerConfig
from trainer.distributed import World
from trainer.errors import TrainingError
from trainer.feed import FeedFigures, TripletBatch
from trainer.journal import Journal, journal_path
from trainer.model import weights_of
from trainer.progress import Progress
from trainer.step import Learner, StepResult
from trainer.stopping import StopRequest, stop_on_signals
from trainer.summary import Ending, Summary, Tally

if TYPE_CHECKING:
    from trainer.meters import TrainingMeters

__all__ = ["Feed", "Miner", "train"]

logger = logging.getLogger(__name__)

END_PATIENCE_S = 30.0
STOP_PATIENCE_S = 5.0  # a scheduler that sent SIGTERM kills soon after


class Feed(Protocol):
    """What the loop needs of :class:`trainer.feed.TripletFeed`."""

    def __next__(self) -> TripletBatch:
        """The batch of the next step, with its samples; waits for it."""

    def figures(self) -> FeedFigures:
        """What it has given so far."""

    def close(self) -> None:
        """Let go of thread and connection."""


class Miner(Protocol):
    """Where batches come from and weights go to (:class:`trainer.miner_link.GrpcMiner`)."""

    def open_feed(self, world: World, first_step: int) -> Feed:
        """Batches of this rank from ``first_step`` on, up to the end of the run."""

    def link(self) -> MinerLink:
        """How to announce weights and commit steps."""


def train(config: TrainerConfig, miner: Miner, world: World) -> Summary:
    """Train until ``config.steps`` are done or a signal comes; resumes by itself.

    Guarantees that after a kill at any moment the next call goes on from the newest checkpoint with
    the very batches an unbroken run would have had, and on one rank on one machine with the very
    same weights.

    Returns:
        What this process did; rank 0 has written it to ``<out>/summary.json`` too.

    Raises:
        TrainerError: Of the feed, of a checkpoint, or because the loss is not finite. What was
            checkpointed stays.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        journal = stack.enter_context(Journal(journal_path(config.out, world.rank)))
        is_metered = config.metrics.port is not None
        meters = stack.enter_context(_open_meters(config, world)) if is_metered else None
        session = _Session(config, miner.link(), world, journal)
        session.meters = meters
        try:
            session.resume()
            if session.step < config.steps:
                feed = stack.enter_context(closing(miner.open_feed(world, session.step)))
                progress = stack.enter_context(Progress(config, world, session.step))
                session.run(feed, stop, progress)
            return session.finish(stop)
        finally:
            session.close()


class _Session:
    """One process's part in a run, from resume to summary."""

    def __init__(
        self, config: TrainerConfig, link: MinerLink, world: World, journal: Journal
    ) -> None:
        self._config = config
        self._world = world
        self._journal = journal
        self._learner = Learner(config, world)
        self._announcer: Announcer | None = None
        if world.is_first:
            self._announcer = Announcer(
                link, folder=config.weights_folder, keep=config.announce.keep, journal=journal
            )
        self._saved_step = 0
        self.step = 0
        self.tally = Tally()
        self.meters: TrainingMeters | None = None

    def resume(self) -> None:
        found = load_newest(self._config.checkpoint_folder)
        if found is not None:
            path, checkpoint = found
            self._learner.restore(checkpoint)
            self.step = self._saved_step = checkpoint.step
            extra = {"run": self._config.run_id, "step": self.step}
            logger.info("resuming with step %d from %s", self.step, path, extra=extra)
        self.tally.first_step = self.step
        self._journal.write(
            "start",
            step=self.step,
            run_id=self._config.run_id,
            world_size=self._world.size,
            pid=os.getpid(),
        )

    def run(self, feed: Feed, stop: StopRequest, progress: Progress) -> None:
        """Train until the end or a stop."""
        if self.meters is not None:
            self.meters.follow_feed(feed.figures)
            if self._announcer is not None:
                outcomes = self._announcer.outcomes
                self.meters.follow_announcements(outcomes.copy)
        while self.step < self._config.steps:
            begin_s = time.perf_counter()
            batch = stop.wait(lambda: next(feed))
            stalled_s = time.perf_counter() - begin_s
            rows, triplets = (batch.num_rows, batch.num_triplets) if batch else (0, 0)
            shares = self._world.exchange([int(batch is not None), rows, triplets, self.step])
            _require_one_step([share[3] for share in shares])
            if batch is None or not all(share[0] for share in shares):
                return
            begin_s = time.perf_counter()
            result = self._learner.train_on(batch, [s[1] for s in shares], [s[2] for s in shares])
            step_s = time.perf_counter() - begin_s
            self.tally.add(batch, sum(s[1] for s in shares), result.loss, stalled_s, step_s)
            self._record(batch, result, stalled_s, step_s)
            self.step = batch.step + 1
            progress.update(self.step, result.loss, batch)
            self._after_step()

    def finish(self, stop: StopRequest) -> Summary:
        """Save what is not saved yet: a checkpoint, and at the run's end the final weights.

        The final weights are not announced: nobody is left to train on the round they would make.
        """
        if self._saved_step != self.step:
            self._checkpoint()
        is_finished = self.step == self._config.steps
        file, outcomes = None, {}
        if self._announcer is not None:
            if is_finished:
                file = self._announcer.write(self.step, weights_of(self._learner.module))
            if not self._announcer.close(END_PATIENCE_S if is_finished else STOP_PATIENCE_S):
                logger.warning("the miner did not take the last announcement or commit in time")
            outcomes = dict(self._announcer.outcomes)
        summary = self.tally.summary(
            Ending(
                run_id=self._config.run_id,
                next_step=self.step,
                is_finished=is_finished,
                signal=stop.signal_number,
                weights=file,
                announcements=outcomes,
            )
        )
        if self._world.is_first:
            summary.write(self._config.out / "summary.json")
        self._journal.write("end", step=self.step, ended=summary.ended)
        return summary

    def close(self) -> None:
        """Let go of the announcer; what it had not finished is left."""
        if self._announcer is not None:
            self._announcer.close(0)

    def _record(
        self, batch: TripletBatch, result: StepResult, stalled_s: float, step_s: float
    ) -> None:
        if self.meters is not None:
            self.meters.step(batch, result, stalled_s, step_s)
        self._journal.write(
            "step",
            step=batch.step,
            round_id=batch.round_id,
            strategy=batch.strategy,
            model_step=batch.model_step,
            staleness_steps=batch.staleness_steps,
            digest=batch.digest(),
            rows=batch.num_rows,
            triplets=batch.num_triplets,
            loss=result.loss,
            gradient_norm=result.gradient_norm,
            lr=result.lr,
            stalled_s=round(stalled_s, 6),
            step_s=round(step_s, 6),
        )

    def _after_step(self) -> None:
        if self.step % self._config.checkpoint.every_steps == 0:
            self._checkpoint()
        announce = self._config.announce
        if self._announcer is None or not announce.every_steps or self.step == self._config.steps:
            return
        since = self.step - announce.after_step
        if since >= 0 and since % announce.every_steps == 0:
            self._announcer.offer(self.step, weights_of(self._learner.module))

    def _checkpoint(self) -> None:
        """Collective: every rank's random state goes into the file, which rank 0 writes."""
        begin_s = time.perf_counter()
        checkpoint = self._learner.capture(self.step)
        if self._announcer is not None:
            keep = self._config.checkpoint.keep
            path = save_checkpoint(self._config.checkpoint_folder, checkpoint, keep=keep)
            self._announcer.commit(self.step)
            self._journal.write("checkpoint", step=self.step, path=str(path))
        self._saved_step = self.step
        self.tally.checkpoint_s += time.perf_counter() - begin_s


def _open_meters(config: TrainerConfig, world: World) -> AbstractContextManager[TrainingMeters]:
    from trainer.meters import open_meters

    return open_meters(config.metrics, config.run_id, world.rank)


def _require_one_step(steps_W: list[int]) -> None:
    """All ranks must be at one step: they resume from one folder of checkpoints."""
    if len(set(steps_W)) > 1:
        raise TrainingError(
            f"the ranks are at different steps, {steps_W} in rank order: they do not see the same "
            "checkpoints; give every rank one shared checkpoint.folder"
        )
