"""A training job of several rank processes over one run, which resumes from its checkpoint.

Its checkpoint is the step that all ranks have reached and written down, in strides. Whatever was
read after it is read again, at the same or another world size.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.kept import stand_still
from tests.chaos.rank_program import CHECKPOINT_STEPS
from tests.trainer.feed.served_miner import REPOSITORY

__all__ = ["Job", "JobSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What a job trains on, and with how many ranks at most."""

    run_id: str
    max_world_size: int
    batch_rows: int
    with_payload: bool = False
    prefetch_steps: int = 8
    exhausted: str = "repeat"
    stale: str = "serve"
    max_staleness_steps: int = 0


class Job:
    """The ranks of one run; its methods are for one thread.

    Attributes:
        settings: As given.
        checkpoint: Steps [0, checkpoint) are trained.
        lives: Processes started so far.
    """

    def __init__(self, settings: JobSettings, address: str, folder: Path) -> None:
        self.settings = settings
        self.checkpoint = 0
        self.lives = 0
        self._address = address
        self._folder = folder
        self._trained = folder / f"{settings.run_id}.trained"
        self._trained.write_text("0")
        self._marks = (folder / f"{settings.run_id}.marks").open("a")
        self._ranks: list[tuple[Path, subprocess.Popen[bytes]]] = []
        self._deserted: list[subprocess.Popen[bytes]] = []

    @property
    def num_clients(self) -> int:
        """Processes that hold a stream open, those that do not read included."""
        return len(self._ranks) + len(self._deserted)

    @property
    def world_size(self) -> int:
        """Ranks that there are now."""
        return len(self._ranks)

    def resume(self, world_size: int) -> bool:
        """Kill all ranks, and go on from the checkpoint with so many; whether any was alive."""
        any_alive = self.kill()
        for rank in range(world_size):
            self._start(rank, world_size)
        return any_alive

    def kill(self) -> bool:
        """End every rank with SIGKILL, those left behind too; whether one that reads was alive."""
        any_alive = any(process.poll() is None for _, process in self._ranks)
        for process in (*(process for _, process in self._ranks), *self._deserted):
            process.kill()
            process.wait()
        self.note_progress()
        self._ranks, self._deserted = [], []
        return any_alive

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self._marks.close()

    def desert(self, rng: random.Random) -> bool:
        """Stop one rank for good while it is connected; the others end, and new ones go on.

        Returns:
            Whether it was alive and connected; nothing has changed otherwise.
        """
        left = rng.choice(self._ranks)[1]
        if not stand_still(left):
            return False
        connections = psutil.Process(left.pid).net_connections("tcp")
        if not any(each.status == psutil.CONN_ESTABLISHED for each in connections):
            left.send_signal(signal.SIGCONT)
            return False
        world_size = self.world_size
        for _, process in self._ranks:
            if process is not left:
                process.kill()
                process.wait()
        self.note_progress()
        self._ranks = []
        self._deserted.append(left)
        for rank in range(world_size):
            self._start(rank, world_size)
        return True

    def pause_one(self, rng: random.Random, seconds: float) -> bool:
        """Stop one rank for a while; whether it was alive."""
        _, process = rng.choice(self._ranks)
        if not stand_still(process):
            return False
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
        return True

    def note_progress(self) -> None:
        """Move the checkpoint to what all ranks have reached; durable as far as the test goes."""
        if not self._ranks:
            return
        reached = [_progress(records) for records, _ in self._ranks]
        step = min(reached) // CHECKPOINT_STEPS * CHECKPOINT_STEPS
        if step > self.checkpoint:
            self.checkpoint = step
            self._mark({"kind": "checkpoint", "run": self.settings.run_id, "step": step})
            partial = self._trained.with_suffix(".partial")
            partial.write_text(str(step))
            os.replace(partial, self._trained)

    def ended(self) -> list[int]:
        """Exit codes of ranks that have ended by themselves: none does unless it was refused."""
        return [process.returncode for _, process in self._ranks if process.poll() is not None]

    def _start(self, rank: int, world_size: int) -> None:
        self.lives += 1
        settings = self.settings
        reader = f"{settings.run_id}-{self.lives}"
        records = self._folder / f"{reader}.records"
        self._mark({"kind": "launched", "reader": reader, "run": settings.run_id})
        feed: dict[str, Any] = {
            "address": self._address,
            "run_id": settings.run_id,
            "batch_rows": settings.batch_rows,
            "rank": rank,
            "world_size": world_size,
            "with_payload": settings.with_payload,
            "exhausted": settings.exhausted,
            "stale": settings.stale,
            "max_staleness_steps": settings.max_staleness_steps,
            "prefetch_steps": settings.prefetch_steps,
            "idle_s": 2.0,
            "patience_s": 60.0,
        }
        given = {"reader": reader, "records": str(records), "trained": str(self._trained)}
        command = [sys.executable, "-m", "tests.chaos.rank_program"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        with (self._folder / "ranks.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, json.dumps({**given, "feed": feed})],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self._ranks.append((records, process))

    def _mark(self, record: dict[str, Any]) -> None:
        self._marks.write(json.dumps(record) + "\n")
        self._marks.flush()


def _progress(records: Path) -> int:
    try:
        return int(records.with_suffix(".progress").read_text())
    except FileNotFoundError:
        return 0
