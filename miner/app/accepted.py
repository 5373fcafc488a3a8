"""The newest accepted weights, on disk, so that a restarted service still knows what to mine."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from miner.errors import ConfigError

__all__ = ["AcceptedWeights", "read_accepted", "write_accepted"]

FILE_NAME = "weights.json"


@dataclass(frozen=True, slots=True)
class AcceptedWeights:
    """Weights that passed every check.

    Attributes:
        step: Optimizer step they were taken at.
        uri: Safetensors file.
        sha256: Hex digest of the file.
    """

    step: int
    uri: str
    sha256: str


def read_accepted(state_dir: Path) -> AcceptedWeights | None:
    """The weights that :func:`write_accepted` wrote last, or None.

    Raises:
        ConfigError: The file is there but cannot be understood.
    """
    path = state_dir / FILE_NAME
    try:
        return AcceptedWeights(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as exc:
        raise ConfigError(
            f"{path} is damaged ({exc}): remove it, and the next announcement takes its place"
        ) from exc


def write_accepted(state_dir: Path, weights: AcceptedWeights) -> None:
    """Replace the file atomically; durable on return."""
    partial = state_dir / f"{FILE_NAME}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(asdict(weights), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(state_dir / FILE_NAME)
