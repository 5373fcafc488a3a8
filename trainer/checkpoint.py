"""The state of a training run in one file that is there whole or not at all.

A checkpoint at step ``s`` holds what training needs to go on with step ``s`` as if it had never
stopped; steps ``[0, s)`` are in it. The file is what ``torch.save`` writes, read back without
unpickling objects, and the sha256 of that, 32 bytes, for torch does not notice a changed bit. It
knows neither the loop nor the miner.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from trainer.errors import CheckpointError
from trainer.files import write_atomically

__all__ = [
    "Checkpoint",
    "RandomState",
    "capture_random_state",
    "load_newest",
    "restore_random_state",
    "save_checkpoint",
]

FORMAT = 1
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"checkpoint-(\d{8,})\.pt")

RandomState = dict[str, Any]
"""State of Python's, NumPy's and torch's global generators, in tensors and plain tuples."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        step: The next step to train; also what the miner is told as committed.
        config: The configuration keys that decide what is learned.
        model, optimizer, schedule: ``state_dict`` of each.
        random_states: One per rank, in rank order; the world size may change over a resume.
    """

    step: int
    config: Mapping[str, object]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    random_states: list[RandomState]

    def check_config(self, config: Mapping[str, object]) -> None:
        """Make sure that the run at hand is the one that was saved.

        Raises:
            CheckpointError: Names each key that differs, with both values.
        """
        kept, given = _flatten(self.config), _flatten(config)
        changed = [
            f"{key} is {given.get(key)!r}, was {kept.get(key)!r}"
            for key in sorted(kept.keys() | given.keys())
            if kept.get(key) != given.get(key)
        ]
        if changed:
            raise CheckpointError(
                f"the checkpoint of step {self.step} was made with other settings: "
                f"{'; '.join(changed)}. Restore them, or start a new run in another folder"
            )


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``checkpoint`` durably, then remove all but the ``keep`` newest of the folder.

    Guarantees that, whatever is killed when, the newest readable checkpoint is this one or the one
    before.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    path = folder / f"checkpoint-{checkpoint.step:08d}.pt"
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    try:
        write_atomically(path, lambda file: _write({"format": FORMAT, **content}, file))
        for outdated in _list(folder)[:-keep]:
            outdated.unlink(missing_ok=True)
    except OSError as exc:
        raise CheckpointError(f"cannot write the checkpoint {path}: {exc}") from exc
    return path


def load_newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint of ``folder``, on the CPU; None where there is none.

    Raises:
        CheckpointError: The newest one is damaged or of another format. An older one is never taken
            in its place unasked, for that would train steps twice.
    """
    present = _list(folder)
    if not present:
        return None
    path = present[-1]
    try:
        content = _read(path)
        if content.pop("format") != FORMAT:
            raise CheckpointError(f"{path} is of another format than {FORMAT}")
        return path, Checkpoint(**content)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, pickle.UnpicklingError) as exc:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({' '.join(str(exc).split())[:200]}); "
            "delete it to go on from the one before"
        ) from exc


def capture_random_state() -> RandomState:
    """The state of every global generator of this process."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: RandomState = {
        "python": random.getstate(),
        "numpy": (
            kind,
            torch.from_numpy(np.asarray(keys, np.int64)),
            position,
            has_gauss,
            float(cached),
        ),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: RandomState) -> None:
    """Undo every draw since ``state`` was captured."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class _HashingFile:
    """Passes on what is written, and hashes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    hashing = _HashingFile(file)
    # The zip writer asks for nothing but `write` and `flush`.
    torch.save(content, hashing)  # type: ignore[arg-type]
    file.write(hashing.sha256.digest())


def _read(path: Path) -> dict[str, Any]:
    blob = memoryview(path.read_bytes())
    saved, digest = blob[:-_DIGEST_BYTES], blob[-_DIGEST_BYTES:]
    if hashlib.sha256(saved).digest() != digest:
        raise ValueError("its sha256 does not match its content")
    content: dict[str, Any] = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    return content


def _list(folder: Path) -> list[Path]:
    """Checkpoints by ascending step."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pt"))
    return [path for _, path in sorted((int(m[1]), path) for m, path in named if m)]


def _flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
