"""Everything that goes wrong, while jobs train: faults of every kind, drawn from a seed.

The seed fixes which faults come in which order and with which values, not at which microsecond they
meet what: one that met nothing is tried again, and does not count if that does not help. What was
read is judged afterwards, by `tests.chaos.history`, and the disk by what `coalface-miner verify`
does.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from miner.app.verify import verify_state
from miner.errors import CoalfaceError
from tests.chaos.faults import KINDS
from tests.chaos.history import Violation, check_history
from tests.chaos.records import Rounds, read_records
from tests.chaos.stage import PATIENCE_S, Stage
from tests.chaos.toy_rounds import sealed_round

__all__ = ["Outcome", "Storm"]

MAX_BYTES_PER_CLIENT = 8 * 2**20
MOST_TRIES = 3
PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a storm.

    Attributes:
        num_over_stale: Batches that were told to be above their run's bound.
        peak_bytes: The most that the miner held in any life, and without clients.
        faults: Those whose effect was seen, by kind.
        unseen: Those that met nothing in `MOST_TRIES` tries.
        failpoints: (program, point and action) -> how often armed, and in how many lives it acted.
        verified: What the state folder held in the end.
    """

    seed: int
    seconds: float
    steps: dict[str, int]
    num_batches: int
    num_rounds: int
    num_readers: int
    num_over_stale: int
    peak_bytes: tuple[int, int]
    peak_bytes_per_client: int
    faults: Counter[str]
    unseen: Counter[str]
    failpoints: dict[tuple[str, str], tuple[int, int]]
    verified: list[str]
    refusals: Counter[str]
    violations: list[Violation]


class Storm:
    """One run of everything, in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._stage = Stage(folder, seed)
        self._faults: Counter[str] = Counter()
        self._unseen: Counter[str] = Counter()
        self._num_drawn = 0
        self._memory: list[tuple[int, int]] = []
        self._base_bytes = 0
        self._peak_bytes = 0
        self._rounds: Rounds = {}
        self._over = threading.Event()

    def run(self, *, min_steps: int, min_faults: int, limit_s: float) -> Outcome:
        """Go on until so many steps are trained and so many faults survived; then judge."""
        stage, begin_s = self._stage, time.monotonic()
        noting = threading.Thread(target=self._note_rounds)
        noting.start()
        try:
            self._set_up()
            while stage.num_steps < min_steps or self._all_faults().total() < min_faults:
                self._one_fault()
                if time.monotonic() - begin_s > limit_s:
                    stage.blame("liveness", f"not done within {limit_s:g} s")
                    break
            self._come_to_rest()
        finally:
            stage.close()
            self._over.set()
            noting.join()
        return self._judge(time.monotonic() - begin_s)

    def _set_up(self) -> None:
        stage = self._stage
        stage.writer.start()
        stage.miner.start()
        num_ranks = sum(job.settings.max_world_size for job in stage.jobs)
        with ThreadPoolExecutor(num_ranks) as pool:  # caches fill once, whoever asks
            names = [f"base-{number}" for number in range(num_ranks)]
            list(pool.map(lambda name: stage.probe(name, 100, with_payload=True), names))
        self._base_bytes = psutil.Process(stage.miner.pid).memory_info().rss
        for job in stage.jobs:
            job.resume(job.settings.max_world_size)

    def _all_faults(self) -> Counter[str]:
        """Those injected from outside, and those that happened at failpoints."""
        return self._faults + self._stage.fired()

    def _one_fault(self) -> None:
        self._num_drawn += 1
        stage = self._stage
        stage.rng = random.Random(f"{self._seed} {self._num_drawn}")  # tries of others shift none
        weights = [weight for _, weight in KINDS.values()]
        (name,) = stage.rng.choices(list(KINDS), weights)
        for _ in range(MOST_TRIES):
            if KINDS[name][0](stage):
                self._faults[name] += 1
                break
            time.sleep(PAUSE_S)
        else:
            self._unseen[name] += 1
        time.sleep(stage.rng.uniform(0.1, 0.8))
        self._look_around()

    def _look_around(self) -> None:
        stage = self._stage
        stage.note_progress()
        for job in stage.jobs:
            if job.ended():
                stage.blame("refusal", f"a rank of {job.settings.run_id} ended: {job.ended()}")
                job.resume(1)
        try:
            num_bytes = psutil.Process(stage.miner.pid).memory_info().rss
            self._peak_bytes = max(self._peak_bytes, _peak_bytes(stage.miner.pid))
        except (psutil.NoSuchProcess, OSError):
            return
        self._memory.append((stage.num_clients, num_bytes - self._base_bytes))

    def _come_to_rest(self) -> None:
        """With no faults any more, every job gets on again."""
        stage = self._stage
        stage.set_clock(0.0)
        stage.miner.kill()
        stage.writer.kill()
        before = {job: job.checkpoint for job in stage.jobs}
        deadline_s = time.monotonic() + PATIENCE_S
        while stuck := [job for job in stage.jobs if job.checkpoint <= before[job]]:
            time.sleep(0.2)
            self._look_around()
            if time.monotonic() > deadline_s:
                names = [job.settings.run_id for job in stuck]
                stage.blame("liveness", f"without faults, {names} do not get on")
                break

    def _judge(self, seconds: float) -> Outcome:
        stage = self._stage
        records = list(read_records(sorted(stage.notes.glob("*.marks"))))
        records += read_records(sorted(stage.notes.glob("*.records")))
        records += [{"kind": "memory", "num_clients": n, "num_bytes": b} for n, b in self._memory]
        violations = stage.violations + check_history(
            records + stage.damages, self._rounds, max_bytes_per_client=MAX_BYTES_PER_CLIENT
        )
        verified = list(verify_state(stage.log_root, stage.store))
        violations += [Violation("P5", line) for part in verified for line in part.problems]
        for name, kept in (("miner", stage.miner), ("writer", stage.writer)):
            violations += [Violation("P6", f"the {name} ended with {c}") for c in kept.crashes]
        return Outcome(
            seed=self._seed,
            seconds=seconds,
            steps={job.settings.run_id: job.checkpoint for job in stage.jobs},
            num_batches=sum(record["kind"] == "batch" for record in records),
            num_rounds=len(self._rounds),
            num_readers=sum(job.lives for job in stage.jobs),
            num_over_stale=sum(record.get("over_stale", False) for record in records),
            peak_bytes=(self._peak_bytes, self._base_bytes),
            peak_bytes_per_client=max((b // n for n, b in self._memory), default=0),
            faults=self._all_faults(),
            unseen=self._unseen,
            failpoints=_tally(stage),
            verified=[part.what for part in verified],
            refusals=Counter(r["error"] for r in records if r["kind"] == "refused"),
            violations=violations,
        )

    def _note_rounds(self) -> None:
        """Keep what each round says, before retention removes it."""
        log = self._stage.log()
        while not self._over.wait(0.1):
            for round_id in log.sealed_ids():
                if round_id not in self._rounds:
                    try:
                        self._rounds[round_id] = sealed_round(log, round_id)
                    except CoalfaceError:
                        continue  # damaged for now: it will be restored


def _peak_bytes(pid: int) -> int:
    """The most that a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _tally(stage: Stage) -> dict[tuple[str, str], tuple[int, int]]:
    armed: Counter[tuple[str, str]] = Counter()
    acted: Counter[tuple[str, str]] = Counter()
    for program, setting, has_acted in stage.failpoints():
        key = program, setting.rpartition("*")[2]
        armed[key] += 1
        acted[key] += has_acted
    return {key: (armed[key], acted[key]) for key in sorted(armed)}
