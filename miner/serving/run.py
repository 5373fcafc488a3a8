"""A run on disk: its parameters, its plan, and how far it has come; knows no gRPC.

<root>/runs/<run_id>/RUN.json       parameters
<root>/runs/<run_id>/plan.jsonl     strides, each with its checksum; also the run's lock
<root>/runs/<run_id>/COMMITTED      the committed step, once there is one
<root>/runs/<run_id>/DAMAGED        why it is not served, if it does not fit its archive

open --plan--> planned further and further; never changed, never closed

With an archive, the folder is a working copy of what lies there.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from miner.errors import (
    DamagedRoundError,
    DamagedRunError,
    DiskError,
    StaleWriterError,
    StepRangeError,
)
from miner.failpoints import reach
from miner.rounds import RoundLog
from miner.rounds.checked import decode_number, decode_object, encode_number
from miner.rounds.durable import locked, replace_file
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
from miner.serving.run_archive import RunArchive

__all__ = ["DAMAGED_FILE", "MAX_STRIDES_AHEAD", "Run"]

DAMAGED_FILE = "DAMAGED"
MAX_STRIDES_AHEAD = 64
_CLOCKS_APART_S = time.time() - time.monotonic()
_STEPS_IN_MEMORY = 32_768  # of 24 bytes each; all ranks that resume read the same ones


class Run:
    """One run of a store; safe among threads, and beside another process on the same folder.

    Attributes:
        parameters: What it was opened with.
    """

    def __init__(self, folder: Path, stride_steps: int, archive: RunArchive | None = None) -> None:
        self._folder = folder
        self._archive = archive
        self._stride_steps = stride_steps
        self._thread_lock = threading.Lock()
        self._journal = Journal(folder / "plan.jsonl")
        self._index: list[tuple[int, int, int]] = []  # (first step, round id, offset) of each
        self._last: Stride | None = None
        self._stride = lru_cache(max(8, _STEPS_IN_MEMORY // stride_steps))(self._load_stride)
        if (folder / DAMAGED_FILE).exists():
            raise DamagedRunError((folder / DAMAGED_FILE).read_text("utf-8"))
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

        Strides that are missing up to ``step`` are planned on the newest sealed round, and are in
        the archive, if there is one, and on the disk when this returns. With it come the steps
        after it that are planned on the same round already, up to ``most`` in all: what is not
        planned may still get a newer round.

        Raises:
            StepRangeError: If ``step`` is negative or more than 64 strides ahead of the plan.
            RunConflictError: If a group of the newest round does not fit the run's batches.
            DamagedRoundError: If the log is not the one that the run was planned on.
            DamagedRunError: If the plan is damaged.
            StaleWriterError: If another server has planned the step on a round that is not here.
            DiskError: If the plan cannot be read or written, for now.
        """
        self._require_reachable(step)
        if step >= self.planned_steps:
            with self._exclusive() as descriptor:
                while step >= self.planned_steps:
                    stride = self._next_stride(log)
                    if isinstance(stride, Waiting):
                        return stride
                    reach("runs.plan.begin")
                    if self._archive is not None:
                        stride = self._decided(self._archive, stride, round_id=log.newest() or 0)
                        reach("runs.plan.archived")
                    self._add(self._journal.append(descriptor, stride.to_json()), stride)
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
                if self._archive is not None:
                    self._archive.commit(self.parameters.run_id, step)
                    reach("runs.commit.archived")
                replace_file(self._folder / "COMMITTED", encode_number(step))
                reach("runs.commit.written")
            return max(step, committed)

    def settle(self, archive: RunArchive) -> None:
        """Bring what the archive has planned and committed further, and put what it lacks.

        Raises:
            DamagedRunError: If folder and archive hold different things, or either is damaged.
            DiskError: If either refuses; a later call goes on.

        Cost: a request to the store for every 1000 strides, and one for each that one side lacks.
        """
        run_id, parameters = self.parameters.run_id, archive.open(self.parameters)
        if parameters != self.parameters:
            raise self._differs(f"it is archived with {parameters}")
        with self._exclusive() as descriptor:
            archived = archive.first_steps(run_id)
            there = set(archived)
            both = [entry for entry in self._index if entry[0] in there]
            ahead = [entry for entry in self._index if entry[0] not in there]
            if ahead and archived and ahead[0][0] < archived[-1]:
                raise self._differs(f"step {ahead[0][0]} is planned otherwise there")
            for _, _, offset in (*both[-1:], *ahead):
                stride = Stride.from_json(self._journal.read(offset))
                if archive.decide(run_id, stride) != stride:
                    raise self._differs(f"step {stride.first_step} is planned otherwise there")
            missing = [step for step in archived if step >= self.planned_steps]
            for stride in archive.strides(run_id, missing):
                if stride.first_step != self.planned_steps:
                    raise self._differs(f"step {self.planned_steps} is missing there")
                self._add(self._journal.append(descriptor, stride.to_json()), stride)
            committed, noted = self.committed_step, archive.committed_step(run_id)
            if committed < noted:
                replace_file(self._folder / "COMMITTED", encode_number(noted))
            elif noted < committed:
                archive.commit(run_id, committed)

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

    def _decided(self, archive: RunArchive, stride: Stride, round_id: int) -> Stride:
        """The stride that counts in place of one that was planned here on round ``round_id``."""
        decided = archive.decide(self.parameters.run_id, stride)
        if decided.round_id > round_id:
            raise StaleWriterError(
                f"step {stride.first_step} of run {self.parameters.run_id!r} has been planned by "
                f"another service on round {decided.round_id}, the newest here is {round_id}: "
                "connect to that service, this one should end"
            )
        return decided

    def _differs(self, reason: str) -> DamagedRunError:
        return DamagedRunError(
            f"{self._folder} and its run in the archive have gone different ways: {reason}; move "
            "the folder away to go on with the archived run"
        )

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
