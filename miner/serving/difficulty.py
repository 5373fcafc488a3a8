"""How well the model does on each identity, as trainers report it; kept over restarts.

<root>/difficulty.safetensors   the mean of each identity, and what it takes to repeat a report

    unknown --report--> its loss --report of a later step--> halfway to the new loss ...

It knows no quotas: what comes of it is the selection's. Shape legend: I = identities of the
catalog, J = identities of a report.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from miner.errors import DiskError
from miner.failpoints import reach
from miner.rounds.durable import replace_file

__all__ = ["DifficultyBook", "read_difficulties"]

FILE_NAME = "difficulty.safetensors"
NEW_SHARE = np.float32(0.5)
"""Weight of a new report beside all before it: a mean over the last few."""

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class DifficultyBook:
    """The losses reported so far. Safe among threads; one process writes."""

    def __init__(self, root: Path, num_identities: int) -> None:
        """Take up what is there; a damaged file, or one of other identities, is begun anew."""
        self._path = root / FILE_NAME
        self._lock = threading.Lock()
        kept = _read(self._path, num_identities)
        self._run_id = kept[0] if kept else ""
        unknown_I = np.full(num_identities, np.nan, np.float32)
        self._losses_I, self._before_I = kept[1:3] if kept else (unknown_I, unknown_I.copy())
        self._steps_I: I64 = kept[3] if kept else np.full(num_identities, -1, np.int64)

    @property
    def num_identities(self) -> int:
        """Of the catalog, I."""
        return len(self._losses_I)

    def report(self, run_id: str, step: int, identity_ids_J: I32, losses_J: F32) -> int:
        """Take the losses of some identities; durable on return. A repeated report changes nothing.

        Each identity's mean moves halfway to its new loss. What is told of an earlier step than an
        identity was reported at is passed over; steps of another run begin anew.

        Returns:
            Of how many identities a difficulty is known by now.

        Raises:
            DiskError: The disk refuses; nothing has changed then.
        """
        with self._lock:
            steps_I = (
                self._steps_I.copy() if run_id == self._run_id else np.full_like(self._steps_I, -1)
            )
            losses_I, before_I = self._losses_I.copy(), self._before_I.copy()
            later_J = step > steps_I[identity_ids_J]
            begun = identity_ids_J[later_J]
            before_I[begun] = losses_I[begun]
            taken_J = step >= steps_I[identity_ids_J]
            taken, new = identity_ids_J[taken_J], losses_J[taken_J]
            old = before_I[taken]
            losses_I[taken] = np.where(np.isnan(old), new, old + NEW_SHARE * (new - old))
            steps_I[taken] = step
            self._write(run_id, losses_I, before_I, steps_I)
            self._run_id, self._losses_I = run_id, losses_I
            self._before_I, self._steps_I = before_I, steps_I
            return int(np.count_nonzero(~np.isnan(losses_I)))

    def _write(self, run_id: str, losses_I: F32, before_I: F32, steps_I: I64) -> None:
        tensors: dict[str, npt.NDArray[Any]] = {
            "losses": losses_I,
            "before": before_I,
            "steps": steps_I,
        }
        try:
            reach("difficulty.write.begin")
            replace_file(self._path, save(tensors, {"run_id": run_id}))
            reach("difficulty.write.kept")
        except OSError as exc:
            raise DiskError(f"difficulties cannot be kept in {self._path}: {exc}") from exc


def read_difficulties(root: Path, num_identities: int) -> F32 | None:
    """[I] the mean loss of each identity, NaN where none is known; None if nothing was reported."""
    kept = _read(root / FILE_NAME, num_identities)
    return kept[1] if kept else None


def _read(path: Path, num_identities: int) -> tuple[str, F32, F32, I64] | None:
    try:
        with safe_open(path, "numpy") as file:
            run_id = (file.metadata() or {})["run_id"]
            losses_I, before_I, steps_I = (
                file.get_tensor(name) for name in ("losses", "before", "steps")
            )
    except (OSError, SafetensorError, KeyError):
        return None
    if {len(losses_I), len(before_I), len(steps_I)} != {num_identities}:
        return None
    return run_id, losses_I, before_I, steps_I
