"""Tells the miner of new weights and of committed steps, off the training thread.

    idle -> offered -> writing -> announcing -> idle
              ^ a newer offer replaces one that is still waiting

It knows neither gRPC nor the model: it is given two functions. Created and closed by rank 0.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import TrainerError, WeightsRefusedError
from trainer.journal import Journal
from trainer.model import WeightsFile, save_weights

__all__ = ["Announcer", "MinerLink"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MinerLink:
    """The two calls that tell the miner something; both may block and may raise TrainerError.

    Attributes:
        announce: (step, uri, sha256) -> whether newer weights had been accepted before.
        commit: (step) -> None; steps ``[0, step)`` are in a durable checkpoint.
    """

    announce: Callable[[int, str, str], bool]
    commit: Callable[[int], object]


class Announcer:
    """One background thread that writes weights, announces them and commits steps.

    Training never waits for it, and nothing that goes wrong in it ends training: outcomes are
    counted, logged and written to the journal.

    Args:
        link: Where to announce and commit.
        folder: Where ``weights-<step>.safetensors`` are written.
        keep: The newest files that stay there.
        journal: Gets one ``announce`` line per outcome.
    """

    def __init__(self, link: MinerLink, *, folder: Path, keep: int, journal: Journal) -> None:
        self._link = link
        self._folder = folder
        self._keep = keep
        self._journal = journal
        self._offer: tuple[int, dict[str, torch.Tensor]] | None = None
        self._commit: int | None = None
        self._closing = False
        self._changed = threading.Condition()
        self.outcomes: Counter[str] = Counter()
        """Announcements by outcome: accepted, superseded, refused, failed, replaced."""
        # A daemon, so that a miner that does not answer cannot keep a finished trainer alive.
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._thread.start()

    def offer(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Have ``weights`` written and announced; they must not change any more."""
        with self._changed:
            if self._offer is not None:
                self.outcomes["replaced"] += 1
            self._offer = (step, weights)
            self._changed.notify()

    def commit(self, step: int) -> None:
        """Have the miner told that a checkpoint holds steps ``[0, step)``."""
        with self._changed:
            self._commit = step
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Finish what is waiting; False if that took longer than ``timeout_s`` and was left."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._offer is not None or self._commit is not None
                )
                offer, self._offer = self._offer, None
                commit, self._commit = self._commit, None
            if offer is None and commit is None:
                return
            if commit is not None:
                self._tell_commit(commit)
            if offer is not None:
                self._announce(*offer)

    def _tell_commit(self, step: int) -> None:
        try:
            self._link.commit(step)
        except TrainerError as exc:
            # Advisory: the miner only keeps rounds for longer than needed.
            logger.warning("step %d could not be committed: %s", step, exc, extra={"step": step})

    def _announce(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        outcome, reason, file = "failed", "", None
        try:
            file = self.write(step, weights)
            superseded = self._link.announce(step, str(file.path), file.sha256)
            outcome = "superseded" if superseded else "accepted"
        except WeightsRefusedError as exc:
            outcome, reason = "refused", str(exc)
        except (TrainerError, OSError) as exc:
            reason = str(exc)
        self.outcomes[outcome] += 1
        level = logging.INFO if not reason else logging.WARNING
        extra = {"step": step, "outcome": outcome}
        logger.log(level, "weights of step %d %s %s", step, outcome, reason, extra=extra)
        sha256 = file.sha256 if file else ""
        line = {"step": step, "outcome": outcome, "reason": reason, "sha256": sha256}
        try:
            self._journal.write("announce", **line)
        except OSError as exc:
            logger.warning("the journal does not get that: %s", exc, extra=extra)

    def write(self, step: int, weights: dict[str, torch.Tensor]) -> WeightsFile:
        """Write ``weights-<step>.safetensors``; of all files ``keep`` stay.

        This one, whatever its step: a run that resumes writes beside those of later steps. And of
        the others those of the highest steps.

        Raises:
            OSError: The folder cannot be written.
        """
        path = self._folder.resolve() / f"weights-{step:08d}.safetensors"
        file = save_weights(path, weights)
        found = sorted(self._folder.glob("weights-*.safetensors"), reverse=True)
        others = [other for other in found if other.name != path.name]
        for outdated in others[self._keep - 1 :]:
            outdated.unlink(missing_ok=True)
        return file
