"""Snapshots on disk: the embeddings of the whole catalog under one set of weights, in chunks.

    <root>/<digest of the key>/KEY.json             what the snapshot was made from
                               chunk-00000007.f32   raw float32 rows, little-endian
                               chunk-00000007.json  its receipt: rows, dimensions, sha256
                               chunk-00000007.at    rows being embedded, while a worker is at it

    missing -> written -> verified on every read; a damaged chunk is missing again

The receipt is written after the data, so a chunk exists whole or not at all. It knows neither Ray
nor encoders. Shape legend: N = rows of the catalog, C = rows of a chunk, D = dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.errors import SnapshotError

__all__ = ["ChunkReceipt", "SnapshotKey", "SnapshotStore"]

ROW_DTYPE = np.dtype("<f4")
KEY_FILE = "KEY.json"


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """All that the content of a snapshot depends on: another value is another snapshot."""

    weights_sha256: str
    preprocessing_fingerprint: str
    dataset_fingerprint: str
    num_rows: int
    chunk_rows: int

    @property
    def digest(self) -> str:
        """sha256 over the fields, hex: the snapshot's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def num_chunks(self) -> int:
        """Chunks, the last one may be shorter."""
        return -(-self.num_rows // self.chunk_rows)

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """Half-open range of the chunk's row ids."""
        assert 0 <= chunk < self.num_chunks, f"no {chunk=} in {self.num_chunks}"
        return chunk * self.chunk_rows, min(self.num_rows, (chunk + 1) * self.chunk_rows)


@dataclass(frozen=True, slots=True)
class ChunkReceipt:
    """What was written as one chunk."""

    chunk: int
    num_rows: int
    dim: int
    sha256: str


class SnapshotStore:
    """The snapshots below one folder, which all workers and readers share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write_chunk(
        self, key: SnapshotKey, chunk: int, embeddings_CD: npt.NDArray[np.float32]
    ) -> ChunkReceipt:
        """Write one chunk durably; on return it survives a crash. Writing it again replaces it.

        Raises:
            SnapshotError: The rows are not as many as the chunk has, or the disk refuses.
        """
        begin, end = key.rows_of(chunk)
        if embeddings_CD.ndim != 2 or len(embeddings_CD) != end - begin:
            raise SnapshotError(
                f"chunk {chunk} has rows {begin} to {end - 1}, got an array "
                f"{list(embeddings_CD.shape)}"
            )
        data = np.ascontiguousarray(embeddings_CD, ROW_DTYPE).data.cast("B")
        sha256 = hashlib.sha256(data).hexdigest()
        receipt = ChunkReceipt(chunk, end - begin, embeddings_CD.shape[1], sha256)
        folder = self._folder(key)
        try:
            self._write_key(key)
            _write_durably(_data_path(folder, chunk), data)
            _write_durably(_receipt_path(folder, chunk), json.dumps(asdict(receipt)).encode())
        except OSError as exc:
            raise SnapshotError(f"chunk {chunk} cannot be written to {folder}: {exc}") from exc
        _note_path(folder, chunk).unlink(missing_ok=True)
        return receipt

    def missing_chunks(self, key: SnapshotKey) -> list[int]:
        """The chunks that are not there or do not match their receipt, ascending.

        Cost: reads and digests all that is there, about 1 GB/s.
        """
        folder = self._folder(key)
        return [chunk for chunk in range(key.num_chunks) if not _is_sound(folder, key, chunk)]

    def open(self, key: SnapshotKey) -> npt.NDArray[np.float32]:
        """Read the whole snapshot: [N, D] float32, row ``i`` is the embedding of row id ``i``.

        Raises:
            SnapshotError: A chunk is missing or damaged, or chunks differ in their dimensions; the
                text names the first.

        Cost: N D 4 bytes of memory; every byte is verified while it is read.
        """
        folder = self._folder(key)
        embeddings_ND: npt.NDArray[np.float32] | None = None
        for chunk in range(key.num_chunks):
            receipt = _read_receipt(folder, key, chunk)
            if receipt is None:
                raise _incomplete(key, folder, chunk, "is missing or truncated")
            if embeddings_ND is None:
                embeddings_ND = np.empty((key.num_rows, receipt.dim), ROW_DTYPE)
            if receipt.dim != embeddings_ND.shape[1]:
                what = f"has {receipt.dim} dimensions, chunk 0 has {embeddings_ND.shape[1]}"
                raise _incomplete(key, folder, chunk, what)
            begin, end = key.rows_of(chunk)
            if not _read_into(_data_path(folder, chunk), embeddings_ND[begin:end], receipt.sha256):
                raise _incomplete(key, folder, chunk, "does not match its digest")
        assert embeddings_ND is not None, "a catalog has rows"
        self._write_key(key)
        return embeddings_ND

    def prune(self, keep: int) -> list[str]:
        """Delete all but the ``keep`` snapshots used last, and return the names of the deleted."""
        folders = [path for path in self.root.glob("*") if path.is_dir()]
        deleted = sorted(folders, key=_last_used_ns, reverse=True)[keep:]
        for folder in deleted:
            # What cannot be deleted now has lost its key, so it is the first to go next time.
            (folder / KEY_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return [folder.name for folder in deleted]

    def sweep(self, key: SnapshotKey) -> None:
        """Remove what lost workers left half-written; call it when nobody writes the snapshot."""
        for pattern in (".*.tmp", "*.at"):
            for path in self._folder(key).glob(pattern):
                path.unlink(missing_ok=True)

    def note_rows(self, key: SnapshotKey, chunk: int, begin: int, end: int) -> None:
        """Leave word that rows ``[begin, end)`` are embedded next, should the process die of it."""
        if not (self._folder(key) / KEY_FILE).exists():
            self._write_key(key)
        _note_path(self._folder(key), chunk).write_text(f"{begin} {end}", "utf-8")

    def noted_rows(self, key: SnapshotKey, chunk: int) -> tuple[int, int]:
        """The rows last noted for the chunk; all of its rows if none were."""
        try:
            begin, end = _note_path(self._folder(key), chunk).read_text("utf-8").split()
            return int(begin), int(end)
        except (OSError, ValueError):
            return key.rows_of(chunk)

    def _folder(self, key: SnapshotKey) -> Path:
        return self.root / key.digest

    def _write_key(self, key: SnapshotKey) -> None:
        """Also marks the snapshot as used now."""
        folder = self._folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / KEY_FILE
        if path.exists():
            os.utime(path)
        else:
            _write_durably(path, json.dumps(asdict(key), indent=1).encode())


def _data_path(folder: Path, chunk: int) -> Path:
    return folder / f"chunk-{chunk:08d}.f32"


def _receipt_path(folder: Path, chunk: int) -> Path:
    return folder / f"chunk-{chunk:08d}.json"


def _note_path(folder: Path, chunk: int) -> Path:
    return folder / f"chunk-{chunk:08d}.at"


def _last_used_ns(folder: Path) -> int:
    try:
        return (folder / KEY_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _write_durably(path: Path, data: bytes | memoryview) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_receipt(folder: Path, key: SnapshotKey, chunk: int) -> ChunkReceipt | None:
    """None unless it is there, well-formed, of this chunk's rows and of its data's size."""
    begin, end = key.rows_of(chunk)
    try:
        receipt = ChunkReceipt(**json.loads(_receipt_path(folder, chunk).read_bytes()))
        num_bytes = receipt.num_rows * receipt.dim * ROW_DTYPE.itemsize
        fits = num_bytes == _data_path(folder, chunk).stat().st_size > 0
    except (OSError, ValueError, TypeError):
        return None
    return receipt if fits and (receipt.chunk, receipt.num_rows) == (chunk, end - begin) else None


def _is_sound(folder: Path, key: SnapshotKey, chunk: int) -> bool:
    receipt = _read_receipt(folder, key, chunk)
    if receipt is None:
        return False
    rows_CD = np.empty((receipt.num_rows, receipt.dim), ROW_DTYPE)
    return _read_into(_data_path(folder, chunk), rows_CD, receipt.sha256)


def _read_into(path: Path, rows_CD: npt.NDArray[np.float32], sha256: str) -> bool:
    """Fill ``rows_CD`` from the file; False if its content is not what the digest says."""
    try:
        with path.open("rb") as file:
            file.readinto(rows_CD.data.cast("B"))
    except OSError:
        return False
    return hashlib.sha256(rows_CD.data).hexdigest() == sha256


def _incomplete(key: SnapshotKey, folder: Path, chunk: int, what: str) -> SnapshotError:
    begin, end = key.rows_of(chunk)
    return SnapshotError(
        f"snapshot {folder} cannot be read: chunk {chunk} of {key.num_chunks} (rows {begin} to "
        f"{end - 1}) {what}; embed it again, only missing chunks are made"
    )
