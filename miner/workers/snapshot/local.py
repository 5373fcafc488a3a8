"""Snapshots in a folder: the embeddings of the whole catalog under one set of weights.

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

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.errors import SnapshotError
from miner.failpoints import reach
from miner.workers.snapshot.chunk_files import data_path, is_sound, map_rows, read_receipt
from miner.workers.snapshot.durable import take_back, write_durably, write_in_place
from miner.workers.snapshot.keys import (
    FILES_FILE,
    KEY_FILE,
    ROW_DTYPE,
    ChunkReceipt,
    SnapshotKey,
    incomplete,
    note_name,
    receipt_name,
)
from miner.workers.snapshot.known import (
    DataFile,
    KnownRows,
    decode_files,
    encode_files,
    match_files,
)

__all__ = ["SnapshotStore"]


class SnapshotStore:
    """The snapshots below one folder, which all workers and readers share."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def scratch(self) -> Path:
        """A folder for what is kept beside the snapshots."""
        return self.root

    def receipt(self, key: SnapshotKey, chunk: int) -> ChunkReceipt | None:
        """Of a chunk whose rows may be there; None if they cannot be."""
        return read_receipt(self._folder(key), key, chunk)

    def is_sound(self, key: SnapshotKey, chunk: int) -> bool:
        """Whether the chunk is there as it was written."""
        return is_sound(self._folder(key), key, chunk)

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
        receipt, data = ChunkReceipt.of(key, chunk, embeddings_CD)
        folder = self._folder(key)
        try:
            self._write_key(key)
            if read_receipt(folder, key, chunk) != receipt or not is_sound(folder, key, chunk):
                take_back(folder / receipt_name(chunk))
                reach("snapshot.receipt.taken_back")
                offset = key.rows_of(chunk)[0] * receipt.row_bytes
                write_in_place(data_path(folder, receipt.dim), offset, data)
                reach("snapshot.rows.written")
                write_durably(folder / receipt_name(chunk), receipt.encode())
                reach("snapshot.receipt.written")
        except OSError as exc:
            raise SnapshotError(f"chunk {chunk} cannot be written to {folder}: {exc}") from exc
        (folder / note_name(chunk)).unlink(missing_ok=True)
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
            write_durably(self._folder(key) / FILES_FILE, encode_files(files))
        except OSError as exc:
            raise SnapshotError(f"snapshot {self._folder(key)} cannot be made: {exc}") from exc
        others = []
        for folder in sorted(self.root.glob("*"), key=_last_used_ns):  # the newest one wins
            other = _read_key(folder)
            if other is not None and other != key and other.makes_rows_of(key):
                others.append((other, _read_files(folder)))
        return match_files(files, others)

    def read_rows(self, key: SnapshotKey, begin: int, end: int) -> npt.NDArray[np.float32] | None:
        """[end - begin, D] float32 rows of a snapshot; None unless their chunks are there, sound.

        Cost: reads and digests these chunks whole.
        """
        folder, parts = self._folder(key), []
        for chunk in range(begin // key.chunk_rows, -(-end // key.chunk_rows)):
            receipt = read_receipt(folder, key, chunk)
            if receipt is None or not is_sound(folder, key, chunk):
                return None
            first, stop = key.rows_of(chunk)
            first, stop = max(first, begin), min(stop, end)
            count = (stop - first) * receipt.dim
            path = data_path(folder, receipt.dim)
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
        return [chunk for chunk in range(key.num_chunks) if not is_sound(folder, key, chunk)]

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
        chunk = key.chunks_of(rows)[0]
        first = read_receipt(folder, key, chunk)
        if first is None:
            raise incomplete(key, folder, chunk, "is missing or truncated")
        try:
            embeddings_ND = map_rows(folder, key, rows, first)
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

    def prune(self, keep: int, newest: SnapshotKey | None = None) -> list[str]:
        """Delete all but the ``keep`` snapshots used last, and return the names of the deleted.

        Args:
            keep: How many stay.
            newest: The one that is counted as used last, whenever it was.
        """
        folders = [path for path in self.root.glob("*") if path.is_dir()]
        first = self._folder(newest) if newest else None
        folders.sort(key=lambda folder: (folder == first, _last_used_ns(folder)), reverse=True)
        for folder in folders[keep:]:
            # What cannot be deleted now has lost its key, so it is the first to go next time.
            (folder / KEY_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return [folder.name for folder in folders[keep:]]

    def sweep(self, key: SnapshotKey) -> None:
        """Remove what lost workers left half-written; call it when nobody writes the snapshot."""
        for pattern in (".*.tmp", "*.at"):
            for path in self._folder(key).glob(pattern):
                path.unlink(missing_ok=True)

    def note_rows(self, key: SnapshotKey, chunk: int, begin: int, end: int) -> None:
        """Leave word that rows ``[begin, end)`` are embedded next, should the process die of it."""
        if not (self._folder(key) / KEY_FILE).exists():
            self._write_key(key)
        (self._folder(key) / note_name(chunk)).write_text(f"{begin} {end}", "utf-8")

    def noted_rows(self, key: SnapshotKey, chunk: int) -> tuple[int, int]:
        """The rows last noted for the chunk; all of its rows if none were."""
        try:
            begin, end = (self._folder(key) / note_name(chunk)).read_text("utf-8").split()
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
            write_durably(path, key.encode())


def _read_key(folder: Path) -> SnapshotKey | None:
    try:
        return SnapshotKey.decode((folder / KEY_FILE).read_bytes())
    except OSError:
        return None


def _read_files(folder: Path) -> list[DataFile]:
    try:
        return decode_files((folder / FILES_FILE).read_bytes())
    except OSError:
        return []


def _last_used_ns(folder: Path) -> int:
    try:
        return (folder / KEY_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
