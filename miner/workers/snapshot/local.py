"""Snapshots on disk: the embeddings of the whole catalog under one set of weights.

    <root>/<digest of the key>/KEY.json             what the snapshot was made from
                               FILES.json           digests of the dataset's files, in row order
                               rows-128d.f32        row i at byte i * 128 * 4, as <f4
                               chunk-00000007.json  receipt of its rows: their number, D, sha256
                               chunk-00000007.at    rows being embedded, while a worker is at it

    missing -> rows written in place -> receipt written -> verified at every open
       ^                                                            |
       +------- receipt taken back <- damaged, and written again ---+

Workers write their chunks into one file, at once and in any order, so that readers can map it: the
readers of a machine share its memory, and it may be larger than that. A chunk counts only under a
receipt, which is on the disk after the rows and is gone before they are touched again. So a chunk
exists whole or not at all; what a crash leaves, holes of chunks to come included, has no receipt,
and whatever else happens to the rows, they no longer match it. Chunks of other dimensions lie in a
file of their own: they do no harm to their neighbours.

It knows neither Ray nor encoders. Shape legend: N = rows of the catalog, C = rows of a chunk,
D = dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.errors import SnapshotError
from miner.failpoints import reach, reach_write

__all__ = ["ChunkReceipt", "DataFile", "KnownRows", "SnapshotKey", "SnapshotStore"]

ROW_DTYPE = np.dtype("<f4")
KEY_FILE, FILES_FILE = "KEY.json", "FILES.json"
READ_BYTES = 2**20


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

    def makes_rows_of(self, other: SnapshotKey) -> bool:
        """Whether a sample has the same embedding in both snapshots."""
        return (self.weights_sha256, self.preprocessing_fingerprint) == (
            other.weights_sha256,
            other.preprocessing_fingerprint,
        )

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

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return self.dim * ROW_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of the dataset: its kept rows' number, and the digest of their payload."""

    num_rows: int
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class KnownRows:
    """Rows ``[begin, end)`` whose embeddings another snapshot has, from its row ``first`` on."""

    begin: int
    end: int
    key: SnapshotKey
    first: int


class SnapshotStore:
    """The snapshots below one folder, which all workers and readers share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write_chunk(
        self, key: SnapshotKey, chunk: int, embeddings_CD: npt.NDArray[np.float32]
    ) -> ChunkReceipt:
        """Write one chunk durably; on return it survives a crash. Writing it again replaces it.

        Any process may write any chunk at any time. Two that write the same one leave it whole, or
        damaged if their rows differ. A chunk that is there with the same content is left alone.

        Raises:
            SnapshotError: The rows are not as many as the chunk has, or the disk refuses; the
                chunk is then missing.
        """
        begin, end = key.rows_of(chunk)
        if embeddings_CD.ndim != 2 or len(embeddings_CD) != end - begin or not embeddings_CD.size:
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
            if _read_receipt(folder, key, chunk) != receipt or not _is_sound(folder, key, chunk):
                _take_back(_receipt_path(folder, chunk))
                reach("snapshot.receipt.taken_back")
                _write_in_place(_data_path(folder, receipt.dim), begin * receipt.row_bytes, data)
                reach("snapshot.rows.written")
                _write_durably(_receipt_path(folder, chunk), json.dumps(asdict(receipt)).encode())
                reach("snapshot.receipt.written")
        except OSError as exc:
            raise SnapshotError(f"chunk {chunk} cannot be written to {folder}: {exc}") from exc
        _note_path(folder, chunk).unlink(missing_ok=True)
        return receipt

    def known_rows(self, key: SnapshotKey, files: Sequence[DataFile]) -> list[KnownRows]:
        """The rows of a snapshot that others have: of equal files, weights and preprocessing.

        Notes which files the snapshot is made of, so that it can serve others in turn.

        Args:
            key: The snapshot's.
            files: Those of its dataset, in row order.

        Returns:
            Ascending, without overlap. Whether these rows are sound is not looked at.
        """
        try:
            self._write_key(key)
            content = json.dumps([asdict(file) for file in files])
            _write_durably(self._folder(key) / FILES_FILE, content.encode())
        except OSError as exc:
            raise SnapshotError(f"snapshot {self._folder(key)} cannot be made: {exc}") from exc
        there: dict[DataFile, tuple[SnapshotKey, int]] = {}
        for folder in sorted(self.root.glob("*"), key=_last_used_ns):  # the newest one wins
            other = _read_key(folder)
            if other is not None and other != key and other.makes_rows_of(key):
                for file, begin in _read_files(folder):
                    there[file] = other, begin
        known, begin = [], 0
        for file in files:
            if file in there:
                known.append(KnownRows(begin, begin + file.num_rows, *there[file]))
            begin += file.num_rows
        return known

    def read_rows(self, key: SnapshotKey, begin: int, end: int) -> npt.NDArray[np.float32] | None:
        """[end - begin, D] float32 rows of a snapshot; None unless their chunks are there, sound.

        Cost: reads and digests these chunks whole.
        """
        folder, parts = self._folder(key), []
        for chunk in range(begin // key.chunk_rows, -(-end // key.chunk_rows)):
            receipt = _read_receipt(folder, key, chunk)
            if receipt is None or not _is_sound(folder, key, chunk):
                return None
            first, stop = key.rows_of(chunk)
            first, stop = max(first, begin), min(stop, end)
            count = (stop - first) * receipt.dim
            path = _data_path(folder, receipt.dim)
            try:
                rows = np.fromfile(path, ROW_DTYPE, count, offset=first * receipt.row_bytes)
                parts.append(rows.reshape(stop - first, receipt.dim))
            except (OSError, ValueError):
                return None
        return np.concatenate(parts) if len({part.shape[1] for part in parts}) == 1 else None

    def missing_chunks(self, key: SnapshotKey) -> list[int]:
        """The chunks that are not there or do not match their receipt, ascending.

        Cost: reads and digests all that is there, about 1 GB/s.
        """
        folder = self._folder(key)
        return [chunk for chunk in range(key.num_chunks) if not _is_sound(folder, key, chunk)]

    def open(self, key: SnapshotKey, rows: range | None = None) -> npt.NDArray[np.float32]:
        """Map the whole snapshot: [N, D] float32, row ``i`` is the embedding of row id ``i``.

        Or map just ``rows``, successive ones: row ``i`` is then that of row id ``rows[i]``, and
        only their chunks are read.

        Every byte was verified when this returns. The array cannot be written to, and stays
        readable when the snapshot is pruned on this machine. Should a chunk be damaged later, its
        rows change here too, until it is written again. Nothing here ever truncates a file of rows:
        who does it from outside kills the readers that have it mapped.

        Raises:
            SnapshotError: A chunk is missing or damaged, or chunks differ in their dimensions: the
                text names the first. Or the filesystem does not allow maps.

        Cost: reads and digests all rows, about 1 GB/s; 1 MiB of memory. The map is of the page
            cache, which all processes of a machine share and the kernel reclaims.
        """
        folder = self._folder(key)
        rows = range(key.num_rows) if rows is None else rows
        assert rows, "no rows"
        assert rows.step == 1, f"{rows=} are not successive"
        chunks = range(rows.start // key.chunk_rows, rows[-1] // key.chunk_rows + 1)
        first = _read_receipt(folder, key, chunks[0])
        if first is None:
            raise _incomplete(key, folder, chunks[0], "is missing or truncated")
        try:
            # What is mapped is the file that was verified, whatever its name leads to by then.
            with FileIO(_data_path(folder, first.dim)) as file:
                for chunk in chunks:
                    _require_sound(file, folder, key, chunk, first)
                offset, shape = rows.start * first.row_bytes, (len(rows), first.dim)
                embeddings_ND = np.memmap(file, ROW_DTYPE, "r", offset, shape)
            self._write_key(key)
        except (OSError, ValueError) as exc:
            raise SnapshotError(f"snapshot {folder} cannot be mapped: {exc}") from exc
        return embeddings_ND

    def find(self, weights_sha256: str, dataset_fingerprint: str) -> SnapshotKey | None:
        """The key of the snapshot of these weights that was used last; None if there is none."""
        for folder in sorted(self.root.glob("*"), key=_last_used_ns, reverse=True):
            key = _read_key(folder)
            sought = (weights_sha256, dataset_fingerprint)
            if key is not None and (key.weights_sha256, key.dataset_fingerprint) == sought:
                return key
        return None

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


def _read_key(folder: Path) -> SnapshotKey | None:
    try:
        return SnapshotKey(**json.loads((folder / KEY_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _read_files(folder: Path) -> Iterator[tuple[DataFile, int]]:
    """The files of a snapshot, each with its first row; none if that was not noted."""
    try:
        files = [DataFile(**entry) for entry in json.loads((folder / FILES_FILE).read_bytes())]
    except (OSError, ValueError, TypeError):
        return
    begin = 0
    for file in files:
        yield file, begin
        begin += file.num_rows


def _data_path(folder: Path, dim: int) -> Path:
    return folder / f"rows-{dim}d.f32"


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
    _sync_folder(path.parent)


def _write_in_place(path: Path, offset: int, data: memoryview) -> None:
    """Durable on return but for the file's name, which comes with the receipt's.

    O_DSYNC puts just these bytes on the disk, not what others write at the same time. It also makes
    NFS send just these: else whole pages, with a stale copy of what another machine wrote in them.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o666)
    try:
        reach_write("snapshot.rows.begin", file, data, offset)
        while data:
            num_written = os.pwrite(file, data, offset)
            data, offset = data[num_written:], offset + num_written
    finally:
        os.close(file)


def _take_back(receipt_path: Path) -> None:
    """Durably, for a crash must not bring it back over rows that are half written."""
    if receipt_path.exists():
        receipt_path.unlink(missing_ok=True)
        _sync_folder(receipt_path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_receipt(folder: Path, key: SnapshotKey, chunk: int) -> ChunkReceipt | None:
    """None unless it is there, well-formed, of this chunk's rows, and the file reaches so far."""
    begin, end = key.rows_of(chunk)
    try:
        receipt = ChunkReceipt(**json.loads(_receipt_path(folder, chunk).read_bytes()))
        size = _data_path(folder, receipt.dim).stat().st_size
        fits = end * receipt.row_bytes <= size
    except (OSError, ValueError, TypeError):
        return None
    return receipt if fits and (receipt.chunk, receipt.num_rows) == (chunk, end - begin) else None


def _is_sound(folder: Path, key: SnapshotKey, chunk: int) -> bool:
    receipt = _read_receipt(folder, key, chunk)
    if receipt is None:
        return False
    try:
        with FileIO(_data_path(folder, receipt.dim)) as file:
            return _matches(file, key, receipt)
    except OSError:
        return False


def _require_sound(
    file: FileIO, folder: Path, key: SnapshotKey, chunk: int, first: ChunkReceipt
) -> None:
    receipt = _read_receipt(folder, key, chunk)
    if receipt is None:
        raise _incomplete(key, folder, chunk, "is missing or truncated")
    if receipt.dim != first.dim:
        what = f"has {receipt.dim} dimensions, chunk {first.chunk} has {first.dim}"
        raise _incomplete(key, folder, chunk, what)
    if not _matches(file, key, receipt):
        raise _incomplete(key, folder, chunk, "does not match its digest")


def _matches(file: FileIO, key: SnapshotKey, receipt: ChunkReceipt) -> bool:
    """Whether the rows are those of the receipt.

    They are read, not mapped: of a disk that cannot read them a map makes a signal, not an error.
    """
    begin, end = key.rows_of(receipt.chunk)
    left, digest = (end - begin) * receipt.row_bytes, hashlib.sha256()
    buffer = memoryview(bytearray(min(left, READ_BYTES)))
    try:
        file.seek(begin * receipt.row_bytes)
        while left and (num_read := file.readinto(buffer[:left])):
            digest.update(buffer[:num_read])
            left -= num_read
    except OSError:
        return False
    return digest.hexdigest() == receipt.sha256


def _incomplete(key: SnapshotKey, folder: Path, chunk: int, what: str) -> SnapshotError:
    begin, end = key.rows_of(chunk)
    return SnapshotError(
        f"snapshot {folder} cannot be read: chunk {chunk} of {key.num_chunks} (rows {begin} to "
        f"{end - 1}) {what}; embed it again, only missing chunks are made"
    )
