"""What a storm rages over: a miner, a writer, a bad network and three jobs, as real processes."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.rounds import RoundLog
from tests.chaos.deaf_client import DeafClient
from tests.chaos.history import Violation
from tests.chaos.job import Job, JobSettings
from tests.chaos.kept import Kept
from tests.chaos.proxy import UnsteadyProxy
from tests.chaos.records import Record
from tests.trainer.feed.served_miner import free_port, make_folder
from trainer.feed import TripletFeed

__all__ = ["PATIENCE_S", "Stage"]

JOBS = (
    JobSettings(run_id="marked", max_world_size=3, batch_rows=36, max_staleness_steps=40),
    JobSettings(
        run_id="fresh", max_world_size=2, batch_rows=24, stale="wait", max_staleness_steps=200
    ),
    JobSettings(
        run_id="samples",
        max_world_size=2,
        batch_rows=24,
        with_payload=True,
        prefetch_steps=32,
        exhausted="wait",
    ),
)
"""Rounds count as mined with the weights of the slower of the first two."""

IMAGE_REPEATS = 250
"""Some 4 KiB a sample: what a reader of `samples` may have on its way is above 2 MiB."""

MINER_ENDS = 0, -signal.SIGTERM  # the latter if it was drained before it served
PATIENCE_S = 60.0
EFFECT_S = 8.0
MOST_DEAF = 4
POLL_S = 0.05


class Stage:
    """Everything that can be hurt, in a folder of its own.

    Attributes:
        rng: Draws a fault and its values; another one for each.
        miner, writer: The programs on the log.
        proxy: Between the jobs and the miner.
        jobs: What trains.
        deaf: Clients that read nothing of their streams.
        notes: Folder of records, clocks and logs.
        log_root: Folder of the round log.
        store: Folder of the row store.
        damages: A record for each time that a round was damaged.
        violations: What was seen to be wrong on the way.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        root = make_folder(folder / "miner", num_rounds=0, image_repeats=IMAGE_REPEATS)
        self.log_root, self.store = root / "log", root / "store"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.set_clock(0.0)
        port = free_port()
        self._address = f"127.0.0.1:{port}"
        serving = ["tests.chaos.miner_program", str(root), str(port)]
        self.miner = Kept(serving, self.notes, MINER_ENDS)
        trained = [self.notes / f"{job.run_id}.trained" for job in JOBS[:2]]
        files = [root, self.notes / "sealed.records", *trained]
        self.writer = Kept(["tests.chaos.writer_program", *map(str, files)], self.notes)
        self.proxy = UnsteadyProxy(port)
        self.jobs = [Job(settings, self.proxy.address, self.notes) for settings in JOBS]
        self.deaf: list[DeafClient] = []
        self.damages: list[Record] = []
        self.violations: list[Violation] = []

    @property
    def num_steps(self) -> int:
        """Trained by all jobs."""
        return sum(job.checkpoint for job in self.jobs)

    def failpoints(self) -> Iterator[tuple[str, str, bool]]:
        """Of each that was armed: the program, what it was armed with, and whether it acted."""
        for program, kept in (("miner", self.miner), ("writer", self.writer)):
            for setting, has_acted in kept.failpoints():
                yield program, setting, has_acted

    def fired(self) -> Counter[str]:
        """What happened at failpoints that act once, by kind."""
        faults: Counter[str] = Counter()
        for program, setting, has_acted in self.failpoints():
            if has_acted and "*" in setting:  # a disk that is full for long is a fault by itself
                action, _, detail = setting.partition("=")[2].rstrip(")").partition("(")
                faults[f"{program}: {FAILPOINT_KINDS[action].format(detail)}"] += 1
        return faults

    def note_progress(self) -> None:
        """Move the checkpoints of all jobs."""
        for job in self.jobs:
            job.note_progress()

    def until(self, is_seen: Callable[[], object]) -> bool:
        """Wait for the effect of a fault while the jobs go on; whether it was seen in time."""
        deadline_s = time.monotonic() + EFFECT_S
        while not is_seen():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(POLL_S)
            self.note_progress()
        return True

    @contextmanager
    def damaging(self, round_id: int) -> Iterator[None]:
        """Note that a round is damaged within the block."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            times = {"begin_s": begin_s, "end_s": time.monotonic()}
            self.damages.append({"kind": "damaged", "round": round_id, **times})

    def set_clock(self, seconds: float) -> None:
        """By how much miner and writer take the time wrongly."""
        partial = self.notes / "clock.partial"
        partial.write_text(str(seconds))
        partial.replace(self.notes / "clock")

    def log(self) -> RoundLog:
        """The log, as a process sees it that has read nothing of it yet."""
        return RoundLog(self.log_root)

    def blame(self, promise: str, evidence: str) -> None:
        """Note that something is wrong."""
        self.violations.append(Violation(promise, evidence))

    @property
    def num_clients(self) -> int:
        """Processes that hold a stream open, those that do not read included."""
        held = sum(client.is_held for client in self.deaf)
        return held + sum(job.num_clients for job in self.jobs)

    def add_deaf_client(self) -> DeafClient:
        """One more; of more than a few the oldest ends.

        Raises:
            FeedError, grpc.RpcError: As any client is told.
        """
        client = DeafClient(self._address, JOBS[0].batch_rows)
        self.deaf.append(client)
        while len(self.deaf) > MOST_DEAF:
            self.deaf.pop(0).close()
        return client

    def probe(self, name: str, num_steps: int = 3, with_payload: bool = False) -> list[str]:
        """Read the first steps of a run as its only rank, with no proxy between.

        Raises:
            FeedError: As any client is told.
        """
        feed = TripletFeed(
            self._address,
            run_id=f"probe-{name}",
            batch_rows=36,
            num_steps=num_steps,
            with_payload=with_payload,
            patience_s=PATIENCE_S,
            idle_s=2.0,
        )
        return [batch.digest() for batch in feed]

    def close(self) -> None:
        """End every process."""
        for client in self.deaf:
            client.close()
        for job in self.jobs:
            job.close()
        self.writer.halt()
        self.miner.halt()
        self.proxy.close()


FAILPOINT_KINDS = {
    "kill": "killed at a failpoint",
    "torn": "killed in mid-write",
    "error": "{} from the disk",
    "sleep": "stalled for {} s",
}
