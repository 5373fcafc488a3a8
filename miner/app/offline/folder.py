r"""The folder of offline rounds: a round log, and which sample each row id is.

    absent --(samples.parquet)--> prepared --(round log, round 1)--> holds rounds --> ...

Killed at any point it is in one of these states, whole. Other rows never enter it: row ids of all
its rounds mean the same samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.app.offline.inputs import Samples
from miner.errors import DatasetError, RoundLogError
from miner.rounds import RoundDraft, RoundLog, RoundManifest, RoundsConfig, RoundWriter
from miner.rounds.durable import locked, sync_folder
from miner.types import Groups

if TYPE_CHECKING:
    from miner.index.warm_start import WarmFile

__all__ = [
    "SAMPLES_FILE",
    "open_log",
    "publishing",
    "read_fingerprint",
    "read_samples",
    "seal_round",
    "warm_file",
]

SAMPLES_FILE = "samples.parquet"
_FINGERPRINT = b"coalface.fingerprint"


def open_log(root: Path, samples: Samples) -> RoundLog | None:
    """The log to which a round over ``samples`` can be added; None where there is none yet.

    Writes nothing.

    Raises:
        RoundLogError: The folder cannot be written, or a service keeps its log there.
        DatasetError: Its rounds were mined over other rows, identities or ids.
    """
    exists = (root / "LOG.json").exists()
    if (root / SAMPLES_FILE).exists():
        _require_same(root, samples)
    elif exists or (root / "store").exists():
        raise RoundLogError(
            f"{root} is the state folder of a service, whose rounds are its own: give another "
            f"folder ({SAMPLES_FILE} is missing, which every folder of offline rounds has)"
        )
    _require_writable(root)
    return RoundLog(root, must_exist=True) if exists else None


def seal_round(
    root: Path,
    samples: Samples,
    round_id: int,
    made: tuple[Groups, RoundDraft],
    config: RoundsConfig,
) -> RoundManifest:
    """Write the round, durably and whole, and remove rounds beyond ``config.keep_rounds``.

    Raises:
        RoundLogError: The folder cannot be written, or another process has sealed a round here
            since ``round_id`` was chosen.
        DatasetError: Another process has made the folder, for other samples.
    """
    _keep_samples(root, samples)
    writer = RoundWriter.open(RoundLog(root), config)
    if writer.next_round_id != round_id:
        raise RoundLogError(
            f"another process has sealed round {writer.next_round_id - 1} in {root} while round "
            f"{round_id} was mined: mine again"
        )
    manifest = writer.seal(*made)
    writer.retain(config.keep_rounds, set())
    return manifest


def warm_file(root: Path, samples: Samples) -> WarmFile:
    """Where one search leaves to the next what speeds it up; no round depends on it."""
    from miner.index.warm_start import WarmFile

    return WarmFile(root / "search.safetensors", samples.fingerprint)


def read_fingerprint(root: Path) -> str:
    """Of the samples that all rounds in ``root`` are about.

    Raises:
        DatasetError: `SAMPLES_FILE` is damaged or not Coalface's.
    """
    path = root / SAMPLES_FILE
    with _reading(path), path.open("rb") as file:  # pyarrow takes a path with a colon for a URI
        metadata = pq.read_schema(file).metadata or {}
    if _FINGERPRINT not in metadata:
        raise DatasetError(f"{path} was not written by this program: give another folder")
    fingerprint: str = metadata[_FINGERPRINT].decode()
    return fingerprint


def read_samples(root: Path) -> pa.Table:
    """Columns ``row_id``, ``identity`` and, where the user gave ids, ``id``.

    Raises:
        DatasetError: `SAMPLES_FILE` is damaged.
    """
    with _reading(root / SAMPLES_FILE), (root / SAMPLES_FILE).open("rb") as file:
        return pq.read_table(file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        raise DatasetError(f"{path} cannot be read: {exc}; restore it from a copy") from exc


def _keep_samples(root: Path, samples: Samples) -> None:
    """Write `SAMPLES_FILE`, or see that it is of the same samples."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / "LOCK"):
            if (root / SAMPLES_FILE).exists():
                return _require_same(root, samples)
            for leftover in root.glob(f".{SAMPLES_FILE}.*.tmp"):
                leftover.unlink()
            with publishing(root / SAMPLES_FILE) as temporary, temporary.open("wb") as file:
                pq.write_table(_tabulate(samples), file)
    except OSError as exc:
        raise RoundLogError(f"a round log cannot be made in {root}: {exc}") from exc


def _tabulate(samples: Samples) -> pa.Table:
    table = samples.identities
    columns = {
        "row_id": pa.array(np.arange(table.num_rows)),
        "identity": samples.identity_names.take(pa.array(table.identity_ids_N)),
    }
    if samples.sample_ids is not None:
        columns["id"] = samples.sample_ids
    return pa.table(columns, metadata={_FINGERPRINT: samples.fingerprint})


def _require_same(root: Path, samples: Samples) -> None:
    found = read_fingerprint(root)
    if found != samples.fingerprint:
        raise DatasetError(
            f"the rounds in {root} were mined over other rows, identities or ids (fingerprint "
            f"{found[:12]}, these have {samples.fingerprint[:12]}): give another folder, or the "
            "same samples in the same order"
        )


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends without an error.

    The folder is made if it is missing.

    Raises:
        OSError: The disk refuses; what was at ``path`` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _require_writable(root: Path) -> None:
    """Before a long search, not after it."""
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RoundLogError(
            f"a round log cannot be made in {root}: {place} is not a folder that can be written to"
        )
