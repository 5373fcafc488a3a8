"""The newest accepted weights, on disk, so that a restarted service still knows what to mine.

The announcer may delete its file once it has its answer: what is mined from is a copy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from miner.errors import ConfigError, DiskError
from miner.failpoints import reach
from miner.rounds.checked import decode_object, encode_object
from miner.rounds.durable import replace_file

__all__ = [
    "AcceptedWeights",
    "copies_folder",
    "drop_older_copies",
    "keep_copy",
    "read_accepted",
    "write_accepted",
]

FILE_NAME = "weights.json"
KEYS = ("step", "uri", "sha256")


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
        DiskError: It cannot be read.
    """
    path = state_dir / FILE_NAME
    try:
        return AcceptedWeights(**decode_object(path.read_bytes(), KEYS))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise DiskError(f"{path} cannot be read: {exc}") from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError(
            f"{path} is damaged ({exc}): remove it, and the next announcement takes its place"
        ) from exc


def write_accepted(state_dir: Path, weights: AcceptedWeights) -> None:
    """Replace the file atomically; durable on return.

    Raises:
        DiskError: The disk refuses; the weights before are still the newest.
    """
    try:
        replace_file(state_dir / FILE_NAME, encode_object(asdict(weights)))
    except OSError as exc:
        raise DiskError(f"good weights cannot be noted in {state_dir}: {exc}") from exc
    reach("accepted.note.written")


def copies_folder(state_dir: Path) -> Path:
    """Where :func:`keep_copy` puts weights."""
    return state_dir / "weights"


def keep_copy(state_dir: Path, content: bytes, sha256: str) -> Path:
    """Keep weights under their digest; durable on return.

    Raises:
        DiskError: The disk refuses; announced again later, the same weights may be kept.
    """
    copy = copies_folder(state_dir) / f"{sha256}.safetensors"
    try:
        reach("accepted.copy.begin")
        copy.parent.mkdir(exist_ok=True)
        replace_file(copy, content)
    except OSError as exc:
        raise DiskError(f"good weights cannot be kept in {copy.parent}: {exc}") from exc
    reach("accepted.copy.kept")
    return copy


def drop_older_copies(state_dir: Path, sha256: str) -> None:
    """Remove the copies that are older than this one, and older halves of some; later ones stay."""
    reach("accepted.drop.begin")
    folder = copies_folder(state_dir)
    newest_ns = (folder / f"{sha256}.safetensors").stat().st_mtime_ns
    for copy in (*folder.glob("*.safetensors"), *folder.glob(".*.safetensors.tmp")):
        if copy.stat().st_mtime_ns < newest_ns:
            copy.unlink()
