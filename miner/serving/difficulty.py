"""How well the model does on each identity, as trainers report it; kept over restarts.

<root>/difficulty.safetensors   the mean of each identity, and up to which step the newest runs
                                have reported each of them

    unknown --report--> its loss --report of a later step--> halfway to the new loss ...

It knows no quotas: what comes of it is the selection's. Shape legend: I = identities of the
catalog, J = identities of a report, K = runs.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from miner.errors import DiskError
from miner.failpoints import reach
from miner.rounds.durable import replace_file

__all__ = ["DifficultyBook", "read_difficulties"]

logger = logging.getLogger(__name__)

FILE_NAME = "difficulty.safetensors"
NEW_SHARE = np.float32(0.5)
"""Weight of a new report beside all before it: a mean over the last few."""

MAX_RUNS = 8
"""Runs whose steps are remembered, 8 bytes an identity each; the one that reported last stays."""

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Page:
    """What a file holds.

    Attributes:
        losses_I: The means; NaN where none is known.
        steps_KI: By run, the last to report being the last here; up to which step it has, or -1.
    """

    losses_I: F32
    steps_KI: dict[str, I64]


class DifficultyBook:
    """The losses reported so far. Safe among threads; one process writes."""

    def __init__(self, root: Path, num_identities: int) -> None:
        """Nothing is read before the first report."""
        self.num_identities = num_identities
        self._path = root / FILE_NAME
        self._lock = threading.Lock()
        self._page: _Page | None = None

    def report(self, run_id: str, step: int, identity_ids_J: I32, losses_J: F32) -> int:
        """Take the losses of some identities; durable on return. A repeated report changes nothing.

        Each identity's mean moves halfway to its new loss. What a run tells of a step that it has
        reported for an identity, or of an earlier one, is passed over; so it is for the `MAX_RUNS`
        runs that reported last. A damaged file, or one of other identities, is begun anew.

        Returns:
            Of how many identities a difficulty is known by now.

        Raises:
            DiskError: The disk refuses; nothing has changed then.

        Cost: O(K I) bytes are written and synced.
        """
        with self._lock:
            page = self._page = self._page or self._taken_up()
            steps_I = page.steps_KI.get(run_id)
            steps_I = np.full(len(page.losses_I), -1, np.int64) if steps_I is None else steps_I
            is_new_J = step > steps_I[identity_ids_J]
            if is_new_J.any():
                taken, new = identity_ids_J[is_new_J], losses_J[is_new_J]
                losses_I, steps_I = page.losses_I.copy(), steps_I.copy()
                old = losses_I[taken]
                losses_I[taken] = np.where(np.isnan(old), new, old + NEW_SHARE * (new - old))
                steps_I[taken] = step
                others = [(run, each) for run, each in page.steps_KI.items() if run != run_id]
                page = _Page(losses_I, dict([*others[-MAX_RUNS + 1 :], (run_id, steps_I)]))
                self._write(page)
                self._page = page
            return int(np.count_nonzero(~np.isnan(page.losses_I)))

    def _taken_up(self) -> _Page:
        try:
            page = _read(self._path, self.num_identities)
        except OSError as exc:
            raise DiskError(f"difficulties cannot be read from {self._path}: {exc}") from exc
        return page or _Page(np.full(self.num_identities, np.nan, np.float32), {})

    def _write(self, page: _Page) -> None:
        runs = json.dumps([*page.steps_KI]).encode()
        tensors: dict[str, npt.NDArray[Any]] = {
            "losses": page.losses_I,
            "steps": np.stack([*page.steps_KI.values()]),
            "runs": np.frombuffer(runs, np.uint8),
        }
        try:
            reach("difficulty.write.begin")
            replace_file(self._path, save(tensors))
            reach("difficulty.write.kept")
        except OSError as exc:
            raise DiskError(f"difficulties cannot be kept in {self._path}: {exc}") from exc


def read_difficulties(root: Path, num_identities: int) -> F32 | None:
    """[I] the mean loss of each identity, NaN where none is known; None if nothing was reported.

    Also None, with a warning, where the file cannot be used.
    """
    path = root / FILE_NAME
    try:
        page = _read(path, num_identities)
    except OSError as exc:
        logger.warning("difficulties cannot be read from %s, for now: %s", path, exc)
        return None
    return page.losses_I if page else None


def _read(path: Path, num_identities: int) -> _Page | None:
    """None where nothing was kept, or nothing that can be used."""
    try:
        tensors = load(path.read_bytes())
        losses_I, steps_KI = tensors["losses"], tensors["steps"]
        run_ids: list[str] = json.loads(tensors["runs"].tobytes())
        if (losses_I.shape, steps_KI.shape) != ((num_identities,), (len(run_ids), num_identities)):
            raise ValueError(f"it is not of {num_identities} identities")
        known_J = losses_I[~np.isnan(losses_I)]
        if not (np.isfinite(known_J) & (known_J >= 0)).all():
            raise ValueError("it holds losses that nobody can have reported")
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError, TypeError) as exc:
        logger.warning("%s cannot be used, difficulties begin anew: %r", path, exc)
        return None
    return _Page(losses_I, dict(zip(run_ids, steps_KI, strict=True)))
