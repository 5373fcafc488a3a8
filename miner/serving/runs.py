"""All runs of a service: opened, found again, and brought back from an archive; knows no gRPC.

absent --open | restore--> kept for ever
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from miner.errors import (
    CoalfaceError,
    DamagedRunError,
    DiskError,
    RunConflictError,
    UnknownRunError,
)
from miner.failpoints import reach
from miner.rounds.checked import encode_object
from miner.rounds.durable import locked, publish_folder, replace_file, sync_folder, write_file
from miner.serving.plan import RunParameters
from miner.serving.run import DAMAGED_FILE, MAX_STRIDES_AHEAD, Run
from miner.serving.run_archive import RunArchive

__all__ = ["MAX_STRIDES_AHEAD", "Run", "RunParameters", "RunStore"]

logger = logging.getLogger(__name__)

RESTORED_AT_ONCE = 8


class RunStore:
    """All runs below one folder."""

    def __init__(self, root: Path, stride_steps: int, archive: RunArchive | None = None) -> None:
        """Open the store in ``root``, made if it is missing; runs are planned by ``stride_steps``.

        With an archive, what is opened, planned and committed is put there first.

        Raises:
            DiskError: If the folder cannot be written.
        """
        self.stride_steps = stride_steps
        self._archive = archive
        self._folder = root / "runs"
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._damaged: set[str] = set()
        self._unsettled: set[str] = set()
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
            DiskError: If disk or archive refuse, for now.
        """
        folder = self._folder / params.run_id
        created, kept_params = not folder.exists(), params
        if created and self._archive is not None:
            kept_params = self._archive.open(params)
            reach("runs.create.archived")
        with self._exclusive():
            created = created and not folder.exists()
            if created:
                self._create(folder, kept_params)
                self._unsettled.add(params.run_id)
        run = self.get(params.run_id)
        if self._archive is not None and params.run_id in self._unsettled:
            self._settle(run, self._archive)  # another server may have opened and planned it
            self._unsettled.discard(params.run_id)
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
                self._runs[run_id] = Run(self._folder / run_id, self.stride_steps, self._archive)
            return self._runs[run_id]

    def restore(self) -> list[str]:
        """Bring every run and all that is planned of it from the archive, and put what it lacks.

        A run that is damaged, here or there, is marked so and logged; others go on.

        Returns:
            What is wrong with each of those.

        Raises:
            DiskError: If disk or archive refuse.
        """
        archive = self._archive
        assert archive is not None, "there is no archive"

        def restore_one(run_id: str) -> str:
            folder = self._folder / run_id
            try:
                with self._exclusive():
                    if not folder.exists():
                        self._create(folder, archive.parameters(run_id))
                (folder / DAMAGED_FILE).unlink(missing_ok=True)
                self._settle(self.get(run_id), archive)
            except DamagedRunError as exc:
                text = "run %s cannot be restored and is left out: %s"
                logger.error(text, run_id, exc, extra={"run": run_id})
                return str(exc)
            return ""

        run_ids = sorted({*archive.run_ids(), *self._names()})
        with ThreadPoolExecutor(RESTORED_AT_ONCE) as threads:
            return [problem for problem in threads.map(restore_one, run_ids) if problem]

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

    def _settle(self, run: Run, archive: RunArchive) -> None:
        """As `Run.settle`; a run that does not fit its archive is not served, also after that."""
        try:
            run.settle(archive)
        except DamagedRunError as exc:
            run_id = run.parameters.run_id
            replace_file(self._folder / run_id / DAMAGED_FILE, str(exc).encode())
            self._runs.pop(run_id, None)
            raise

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
