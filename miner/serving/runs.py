"""Runs on disk: their parameters, their plans, and how far they have come; knows no gRPC.

<root>/runs/<run_id>/RUN.json       parameters
<root>/runs/<run_id>/plan.jsonl     strides, each with its checksum; also the run's lock
<root>/runs/<run_id>/COMMITTED      the committed step, once there is one

absent --open--> open --plan--> planned further and further; never changed, never closed
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from miner.errors import (
    CoalfaceError,
    DamagedRoundError,
    DamagedRunError,
    DiskError,
    RunConflictError,
    StepRangeError,
    UnknownRunError,
)
from miner.failpoints import reach
from miner.rounds import RoundLog
from miner.rounds.checked import decode_number, decode_object, encode_number, encode_object
from miner.rounds.durable import locked, publish_folder, replace_file, sync_folder, write_file
from miner.rounds.journal import Journal
from miner.serving.plan import (
    RUN_KEYS,
    PlannedSteps,
    RoundInfo,
    RunParameters,
    Stride,
    Waiting,
    next_stride,
)

__all__ = ["MAX_STRIDES_AHEAD", "Run", "RunParameters", "RunStore"]

logger = logging.getLogger(__name__)

MAX_STRIDES_AHEAD = 64
_CLOCKS_APART_S = time.time() - time.monotonic()
_STEPS_IN_MEMORY = 32_768  # of 24 bytes each; all ranks that resume read the same ones


class Run:
    """One run of a store; safe among threads, and beside another process on the same folder.

    Attributes:
        parameters: What it was opened with.
    """

    def __init__(self, folder: Path, stride_steps: int) -> None:
        self._folder = folder
        self._stride_steps = stride_steps
        self._thread_lock = threading.Lock()
        self._journal = Journal(folder / "plan.jsonl")
        self._index: list[tuple[int, int, int]] = []  # (first step, round id, offset) of each
        self._last: Stride | None = None
        self._stride = lru_cache(max(8, _STEPS_IN_MEMORY // stride_steps))(self._load_stride)
        path = folder / "RUN.json"
        try:
            self.parameters = RunParameters(**decode_object(path.read_bytes(), RUN_KEYS))
        except (FileNotFoundError, ValueError, TypeError) as exc:
            raise DamagedRunError(f"{path} cannot be read: {exc}; restore it from a copy") from exc
        except OSError as exc:
            raise DiskError(f"{path} cannot be read: {exc}") from exc
        with self._exclusive():
            pass

    @property
    def planned_steps(self) -> int:
        """Steps [0, planned_steps) are fixed."""
        return self._last.end_step if self._last else 0

    @property
    def committed_step(self) -> int:
        """Steps [0, committed_step) are in a durable checkpoint of the trainer.

        Raises:
            DamagedRunError: If what was written about it is damaged.
            DiskError: If it cannot be read.
        """
        path = self._folder / "COMMITTED"
        try:
            return decode_number(path.read_bytes())
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise DiskError(f"{path} cannot be read: {exc}") from exc
        except ValueError as exc:
            raise DamagedRunError(f"{path} cannot be read: {exc}; restore it from a copy") from exc

    def plan_some(self, step: int, most: int, log: RoundLog) -> PlannedSteps | Waiting:
        """Which groups feed ``step``; the same answer for ever, to every rank, after any restart.

        Strides that are missing up to ``step`` are planned on the newest sealed round, and are on
        the disk when this returns. With it come the steps after it that are planned on the same
        round already, up to ``most`` in all: what is not planned may still get a newer round.

        Raises:
            StepRangeError: If ``step`` is negative or more than 64 strides ahead of the plan.
            RunConflictError: If a group of the newest round does not fit the run's batches.
            DamagedRoundError: If the log is not the one that the run was planned on.
            DamagedRunError: If the plan is damaged.
            DiskError: If it cannot be read or written.
        """
        self._require_reachable(step)
        if step >= self.planned_steps:
            with self._exclusive() as descriptor:
                while step >= self.planned_steps:
                    stride = self._next_stride(log)
                    if isinstance(stride, Waiting):
                        return stride
                    reach("runs.plan.begin")
                    offset = self._journal.append(descriptor, stride.to_json())
                    self._add(offset, stride)
                    reach("runs.plan.recorded")
        number = bisect_right(self._index, step, key=lambda entry: entry[0]) - 1
        first = self._stride(number)
        parts = [first.batches_B3[step - first.first_step :]]
        num_steps = len(parts[0])
        for following in range(number + 1, len(self._index)):
            if num_steps >= most or self._index[following][1] != first.round.round_id:
                break
            parts.append(self._stride(following).batches_B3)
            num_steps += len(parts[-1])
        batches_B3 = np.concatenate(parts)[:most]
        return PlannedSteps(self.parameters, first.round, step, batches_B3)

    def commit(self, step: int) -> int:
        """Note durably that the trainer's newest checkpoint holds steps [0, step).

        Returns:
            The highest step committed so far.

        Raises:
            StepRangeError: If ``step`` is negative or has not been planned.
        """
        with self._exclusive():
            if not 0 <= step <= self.planned_steps:
                raise StepRangeError(
                    f"step {step} of run {self.parameters.run_id!r} cannot be committed: steps 0 "
                    f"to {self.planned_steps} can"
                )
            committed = self.committed_step
            if step > committed:
                reach("runs.commit.begin")
                replace_file(self._folder / "COMMITTED", encode_number(step))
                reach("runs.commit.written")
            return max(step, committed)

    def needed_rounds(self) -> set[int]:
        """Rounds that feed steps from the committed one on, and the one being continued.

        Raises:
            DamagedRunError, DiskError: As `committed_step`, and of the plan.
        """
        with self._exclusive():
            first = bisect_right(self._index, self.committed_step, key=lambda entry: entry[0]) - 1
            return {round_id for _, round_id, _ in self._index[max(first, 0) :]}

    def idle_s(self) -> float:
        """Seconds since the run last planned or committed anything.

        A wall clock that was set forward while this process ran makes no run idle.
        """
        names = ("RUN.json", "plan.jsonl", "COMMITTED")
        paths = [self._folder / name for name in names]
        jumped_s = max(0.0, time.time() - time.monotonic() - _CLOCKS_APART_S)
        newest_s = max(path.stat().st_mtime for path in paths if path.exists())
        return time.time() - jumped_s - newest_s

    def _require_reachable(self, step: int) -> None:
        reach = self.planned_steps + MAX_STRIDES_AHEAD * self._stride_steps
        if not 0 <= step < reach:
            raise StepRangeError(
                f"step {step} of run {self.parameters.run_id!r} is out of reach: steps 0 to "
                f"{reach - 1} can be asked for ({self.planned_steps} are planned); start at step "
                "0 with another run_id if the miner's state is new"
            )

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        """Hold the run against threads and processes, knowing every stride planned so far."""
        try:
            with self._thread_lock, locked(self._journal.path) as descriptor:
                for offset, record in self._journal.catch_up(descriptor):
                    self._add(offset, Stride.from_json(record))
                yield descriptor
        except OSError as exc:
            raise DiskError(f"the run in {self._folder} cannot be written: {exc}") from exc

    def _add(self, offset: int, stride: Stride) -> None:
        if stride.first_step != self.planned_steps:
            raise DamagedRunError(
                f"{self._journal.path}: the stride at byte {offset} starts at step "
                f"{stride.first_step}, not at {self.planned_steps}; restore the file from a copy"
            )
        self._index.append((stride.first_step, stride.round_id, offset))
        self._last = stride

    def _load_stride(self, number: int) -> PlannedSteps:
        try:
            record = self._journal.read(self._index[number][2])
        except OSError as exc:
            raise DiskError(f"{self._journal.path} cannot be read: {exc}") from exc
        return Stride.from_json(record).planned(self.parameters)

    def _next_stride(self, log: RoundLog) -> Stride | Waiting:
        round_id = log.newest()
        if round_id is None:
            return Waiting("no round has been sealed yet")
        manifest = log.manifest(round_id)
        last = self._last
        if last and (
            round_id < last.round_id
            or (round_id == last.round_id and manifest.sha256 != last.round_sha256)
        ):
            raise DamagedRoundError(
                f"run {self.parameters.run_id!r} was planned on round {last.round_id} with digest "
                f"{last.round_sha256}, but the newest is round {round_id} with {manifest.sha256}: "
                "rounds were lost or replaced; start a run under another run_id"
            )
        info = RoundInfo(
            round_id=round_id,
            sha256=manifest.sha256,
            model_step=manifest.model_step,
            fresh_from=manifest.model_step if manifest.weights_sha256 else manifest.warmup_steps,
            groups=log.read(round_id),
        )
        return next_stride(self.parameters, last, info, stride_steps=self._stride_steps)


class RunStore:
    """All runs below one folder."""

    def __init__(self, root: Path, stride_steps: int) -> None:
        """Open the store in ``root``, made if it is missing; runs are planned by ``stride_steps``.

        Raises:
            DiskError: If the folder cannot be written.
        """
        self.stride_steps = stride_steps
        self._folder = root / "runs"
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._damaged: set[str] = set()
        with self._exclusive():
            for leftover in self._folder.glob(".new-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            sync_folder(self._folder)

    def open(self, params: RunParameters) -> tuple[Run, bool]:
        """Make a run durably, or find it again.

        Returns:
            The run, and whether it is new.

        Raises:
            RunConflictError: If it is there with other parameters; names each of them.
        """
        folder = self._folder / params.run_id
        with self._exclusive():
            created = not folder.exists()
            if created:
                self._create(folder, params)
        run = self.get(params.run_id)
        given, kept = asdict(params), asdict(run.parameters)
        differences = [f"{k}={given[k]!r} ({kept[k]!r})" for k in given if given[k] != kept[k]]
        if differences:
            raise RunConflictError(
                f"run {params.run_id!r} exists with other parameters; given (kept): "
                f"{', '.join(differences)}; repeat the kept ones, or choose another run_id"
            )
        return run, created

    def get(self, run_id: str) -> Run:
        """The run of that id.

        Raises:
            UnknownRunError: If it was never opened here.
            DamagedRunError: If its files are damaged.
        """
        with self._lock:
            if run_id not in self._runs:
                if run_id not in self._names():
                    raise UnknownRunError(f"no run {run_id!r} has been opened here: open it first")
                self._runs[run_id] = Run(self._folder / run_id, self.stride_steps)
            return self._runs[run_id]

    def all(self) -> list[Run]:
        """Every sound run, by id; a damaged one is left out, and logged once."""
        runs = []
        for run_id in self._names():
            try:
                runs.append(self.get(run_id))
            except CoalfaceError as exc:
                if run_id not in self._damaged:
                    text = "run %s cannot be read and is left out: %s"
                    logger.error(text, run_id, exc, extra={"run": run_id})
                self._damaged.add(run_id)
        return runs

    def needed_rounds(self, *, idle_run_s: float) -> set[int]:
        """Rounds that must stay for the runs that planned or committed within ``idle_run_s``.

        Raises:
            DamagedRunError: A run is damaged, so that nobody knows which rounds it needs.
        """
        runs = [self.get(run_id) for run_id in self._names()]
        live = [run for run in runs if run.idle_s() <= idle_run_s]
        return set().union(*(run.needed_rounds() for run in live))

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.name[0] != ".")
        except OSError as exc:
            raise DiskError(f"the runs in {self._folder} cannot be listed: {exc}") from exc

    def _create(self, folder: Path, params: RunParameters) -> None:
        building = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        reach("runs.create.begin")
        write_file(building / "RUN.json", encode_object(asdict(params)))
        write_file(building / "plan.jsonl", b"")
        reach("runs.create.written")
        publish_folder(building, folder)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / ".LOCK"):
                sync_folder(self._folder.parent)
                yield
        except OSError as exc:
            raise DiskError(f"runs cannot be kept in {self._folder}: {exc}") from exc
