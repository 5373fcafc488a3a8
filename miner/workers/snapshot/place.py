"""Where snapshots lie: in a folder that all machines see, or below a URI of an object store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from miner.filesystems import is_uri
from miner.workers.snapshot.keys import ChunkReceipt, SnapshotKey
from miner.workers.snapshot.known import DataFile, KnownRows
from miner.workers.snapshot.local import SnapshotStore
from miner.workers.snapshot.object_store import ObjectSnapshots

__all__ = ["Snapshots", "open_snapshots"]


class Snapshots(Protocol):
    """What workers and readers share; it can be sent to any process. See `SnapshotStore`."""

    @property
    def scratch(self) -> Path:
        """A folder of this machine for what is kept beside the snapshots."""

    def write_chunk(
        self, key: SnapshotKey, chunk: int, embeddings_CD: npt.NDArray[np.float32]
    ) -> ChunkReceipt:
        """Write one chunk; on return it is durable."""

    def known_rows(self, key: SnapshotKey, files: Sequence[DataFile]) -> list[KnownRows]:
        """The rows of a snapshot that others have."""

    def read_rows(self, key: SnapshotKey, begin: int, end: int) -> npt.NDArray[np.float32] | None:
        """Rows of a snapshot; None unless they are there, sound."""

    def missing_chunks(self, key: SnapshotKey) -> list[int]:
        """The chunks that are not there or damaged, ascending."""

    def open(self, key: SnapshotKey, rows: range | None = None) -> npt.NDArray[np.float32]:
        """Map a snapshot, or successive rows of it."""

    def find(self, weights_sha256: str, dataset_fingerprint: str) -> SnapshotKey | None:
        """The snapshot of these weights that was used last."""

    def prune(self, keep: int, newest: SnapshotKey | None = None) -> list[str]:
        """Delete all but the ``keep`` snapshots used last."""

    def sweep(self, key: SnapshotKey) -> None:
        """Remove what lost workers left."""

    def note_rows(self, key: SnapshotKey, chunk: int, begin: int, end: int) -> None:
        """Leave word of rows that are embedded next."""

    def noted_rows(self, key: SnapshotKey, chunk: int) -> tuple[int, int]:
        """The rows last noted for the chunk."""


def open_snapshots(place: str | Path, cache: Path) -> Snapshots:
    """The snapshots at a place.

    Args:
        place: A folder, or a URI of any file system of `pyarrow.fs`; ``file://`` is a folder.
        cache: Where chunks of an object store are kept on this machine; not used for a folder.

    Raises:
        ConfigError: The URI cannot be understood.
    """
    if isinstance(place, Path) or not is_uri(place):
        return SnapshotStore(Path(place))
    if place.startswith("file://"):
        return SnapshotStore(Path(unquote(urlsplit(place).path)))
    return ObjectSnapshots(place, cache)
