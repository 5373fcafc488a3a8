"""Snapshots below a URI of an object store: nobody needs a disk that others see.

    <uri>/<digest of the key>/KEY.json                     as in a folder; put again at each use
                              FILES.json                   as in a folder
                              chunk-00000007-<sha256>.f32  rows of the chunk, as <f4
                              chunk-00000007.json          receipt of its rows
                              chunk-00000007.at            the row at work, while one is rehearsed

    missing -> rows put -> receipt put -> fetched into the cache and verified by who reads it

Rows are named by their digest, so that a receipt always speaks of rows that are there whole: of two
workers that put the same chunk, the later receipt counts. Readers map a folder of their machine, a
`SnapshotStore` that holds the chunks they have asked for; any of its rows are those of the store's
receipt. Shape legend: N = rows of the catalog, R = rows asked for, C = rows of a chunk,
D = dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.errors import SnapshotError
from miner.filesystems import shown
from miner.workers.snapshot.cache import SnapshotCache
from miner.workers.snapshot.keys import (
    FILES_FILE,
    KEY_FILE,
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
from miner.workers.snapshot.objects import Objects, in_parallel

__all__ = ["ObjectSnapshots", "rows_path"]

_ROWS = re.compile(r"chunk-(\d{8})-[0-9a-f]{64}\.f32")
Receipts = dict[int, ChunkReceipt]


class ObjectSnapshots:
    """As `SnapshotStore`, below a URI; what a method of both promises is told there.

    Small and sent to other processes as it is; each opens the store for itself.

    Raises of all methods:
        SnapshotError: The store is away or refuses; names the URI, without its secrets.
    """

    def __init__(self, uri: str, cache: Path) -> None:
        """Use a store, and a folder of this machine for what is read of it.

        Raises:
            ConfigError: The URI cannot be understood.
        """
        self.objects = Objects(uri)
        self.cache = SnapshotCache(cache)
        self._named: set[str] = set()
        self._noted: set[tuple[str, int]] = set()

    def __reduce__(self) -> tuple[type[ObjectSnapshots], tuple[str, Path]]:
        return ObjectSnapshots, (self.objects.uri, self.cache.root)

    def __repr__(self) -> str:
        return f"ObjectSnapshots({shown(self.objects.uri)!r}, {self.cache.root})"

    @property
    def scratch(self) -> Path:
        """A folder of this machine for what is kept beside the snapshots."""
        return self.cache.root

    def write_chunk(
        self, key: SnapshotKey, chunk: int, embeddings_CD: npt.NDArray[np.float32]
    ) -> ChunkReceipt:
        """Put one chunk; on return it is durable. Written again, it replaces the one before."""
        receipt, data = ChunkReceipt.of(key, chunk, embeddings_CD)
        if key.digest not in self._named:
            self._mark(key)
            self._named.add(key.digest)
        self.objects.put(rows_path(key, receipt), data)
        self.objects.put(f"{key.digest}/{receipt_name(chunk)}", receipt.encode())
        self._drop_note(key, chunk)
        return receipt

    def known_rows(self, key: SnapshotKey, files: Sequence[DataFile]) -> list[KnownRows]:
        """The rows that other snapshots have; notes what this one is made of."""
        self._mark(key)
        self.objects.put(f"{key.digest}/{FILES_FILE}", encode_files(files))
        others = [other for other in self.keys() if other != key and other.makes_rows_of(key)]
        contents = [self.objects.get(f"{other.digest}/{FILES_FILE}") or b"" for other in others]
        return match_files(files, zip(others, map(decode_files, contents), strict=True))

    def read_rows(self, key: SnapshotKey, begin: int, end: int) -> npt.NDArray[np.float32] | None:
        """[end - begin, D] rows of a snapshot; None unless their chunks are there, sound."""
        parts = []
        for chunk in key.chunks_of(range(begin, end)):
            receipt = self.receipt(key, chunk)
            rows_CD = None if receipt is None else self.fetch(key, receipt)
            if rows_CD is None:
                return None
            first, stop = key.rows_of(chunk)
            parts.append(rows_CD[max(begin, first) - first : min(end, stop) - first])
        return np.concatenate(parts) if len({part.shape[1] for part in parts}) == 1 else None

    def missing_chunks(self, key: SnapshotKey) -> list[int]:
        """The chunks that are not there or do not match their receipt, ascending.

        Cost: fetches all that is there, and keeps it in the cache, from which it is read next.
        """
        there = self.objects.sizes(key.digest)
        chunks = [chunk for chunk in range(key.num_chunks) if receipt_name(chunk) in there]
        with self.cache.alone():
            receipts = self._receipts(key, chunks)
            sound = self._bring(key, receipts.values())
        return [chunk for chunk in range(key.num_chunks) if chunk not in sound]

    def open(self, key: SnapshotKey, rows: range | None = None) -> npt.NDArray[np.float32]:
        """Map the snapshot, [N, D], or just some of its rows, [R, D], from the cache.

        Guarantee: each row matches the receipt that the store has now. Only the chunks of these
        rows are fetched, and those that the cache has with this receipt are not fetched again.

        Raises:
            SnapshotError: A chunk is missing or damaged, or the cache's disk refuses.
        """
        rows = range(key.num_rows) if rows is None else rows
        chunks = key.chunks_of(rows)
        with self.cache.alone():
            receipts = self._receipts(key, chunks)
            for chunk in chunks:
                if chunk not in receipts:
                    raise self._incomplete(key, chunk, "is missing")
            new = [r for r in receipts.values() if self.cache.receipt(key, r.chunk) != r]
            self._require(key, new)
            try:
                mapped = self.cache.open(key, rows)
            except SnapshotError:  # the cache is damaged, or chunks do not go together
                old = [r for r in receipts.values() if not self.cache.is_sound(key, r.chunk)]
                self._require(key, old)
                mapped = self.cache.open(key, rows)
            self._mark(key)
            self.cache.keep_only(self.objects.sizes(""))
        return mapped

    def find(self, weights_sha256: str, dataset_fingerprint: str) -> SnapshotKey | None:
        """The key of the snapshot of these weights that was used last; None if there is none."""
        sought = (weights_sha256, dataset_fingerprint)
        found = [k for k in self.keys() if (k.weights_sha256, k.dataset_fingerprint) == sought]
        return found[-1] if found else None

    def prune(self, keep: int, newest: SnapshotKey | None = None) -> list[str]:
        """Delete all but the ``keep`` snapshots used last, as the store's clock tells."""
        names = self.names()
        if newest is not None and newest.digest in names:
            names.remove(newest.digest)
            names.append(newest.digest)
        deleted = names[: max(0, len(names) - keep)]
        for name in deleted:
            # What cannot be deleted now has lost its key, so it is the first to go next time.
            self.objects.remove(f"{name}/{KEY_FILE}")
            self.objects.remove(name, is_folder=True)
        return deleted

    def sweep(self, key: SnapshotKey) -> None:
        """Remove notes, and rows without a receipt; call it when nobody writes the snapshot."""
        rows: dict[int, list[str]] = {}
        for name in self.objects.sizes(key.digest):
            if name.endswith(".at"):
                self.objects.remove(f"{key.digest}/{name}")
            elif found := _ROWS.fullmatch(name):
                rows.setdefault(int(found[1]), []).append(name)
        for chunk, names in rows.items():
            receipt = self.receipt(key, chunk) if len(names) > 1 else None
            for name in names if receipt else []:
                if receipt and f"{key.digest}/{name}" != rows_path(key, receipt):
                    self.objects.remove(f"{key.digest}/{name}")

    def note_rows(self, key: SnapshotKey, chunk: int, begin: int, end: int) -> None:
        """Leave word of a row that is embedded next by itself; a batch is not worth a request."""
        if end - begin == 1:
            self._noted.add((key.digest, chunk))
            self.objects.put(f"{key.digest}/{note_name(chunk)}", f"{begin} {end}".encode())
        else:
            self._drop_note(key, chunk)

    def noted_rows(self, key: SnapshotKey, chunk: int) -> tuple[int, int]:
        """The row last noted for the chunk; all of its rows if none was."""
        try:
            content = self.objects.get(f"{key.digest}/{note_name(chunk)}") or b""
            begin, end = content.decode().split()
            return int(begin), int(end)
        except ValueError:
            return key.rows_of(chunk)

    def names(self) -> list[str]:
        """Folders of snapshots, the one used last at the end."""
        names = sorted(name for name, size in self.objects.sizes("").items() if size < 0)
        used = self.objects.changed([f"{name}/{KEY_FILE}" for name in names]) if names else []
        return [name for _, name in sorted(zip(used, names, strict=True))]

    def keys(self) -> list[SnapshotKey]:
        """Of the snapshots that are there, the one used last at the end."""
        contents = in_parallel(lambda n: self.objects.get(f"{n}/{KEY_FILE}"), self.names())
        return [key for content in contents if content and (key := SnapshotKey.decode(content))]

    def receipt(self, key: SnapshotKey, chunk: int) -> ChunkReceipt | None:
        """Of a chunk; None unless it is there and well-formed."""
        content = self.objects.get(f"{key.digest}/{receipt_name(chunk)}")
        return None if content is None else ChunkReceipt.decode(content, key, chunk)

    def fetch(self, key: SnapshotKey, receipt: ChunkReceipt) -> npt.NDArray[np.float32] | None:
        """[C, D] rows of a chunk; None unless they are there and match the receipt."""
        data = self.objects.get(rows_path(key, receipt), receipt.num_bytes)
        return None if data is None else receipt.rows(data)

    def _receipts(self, key: SnapshotKey, chunks: Iterable[int]) -> Receipts:
        found = in_parallel(lambda chunk: self.receipt(key, chunk), chunks)
        return {receipt.chunk: receipt for receipt in found if receipt is not None}

    def _bring(self, key: SnapshotKey, receipts: Iterable[ChunkReceipt]) -> set[int]:
        """Fetch chunks and write those into the cache that it lacks; the chunks that are sound."""

        def brought(receipt: ChunkReceipt) -> int | None:
            rows_CD = self.fetch(key, receipt)
            if rows_CD is None:
                return None
            self.cache.write_chunk(key, receipt.chunk, rows_CD)
            return receipt.chunk

        found = in_parallel(brought, receipts)
        return {chunk for chunk in found if chunk is not None}

    def _require(self, key: SnapshotKey, receipts: Sequence[ChunkReceipt]) -> None:
        sound = self._bring(key, receipts)
        for receipt in receipts:
            if receipt.chunk not in sound:
                raise self._incomplete(key, receipt.chunk, "does not match its digest")

    def _incomplete(self, key: SnapshotKey, chunk: int, what: str) -> SnapshotError:
        return incomplete(key, self.objects.shown(key.digest), chunk, what)

    def _mark(self, key: SnapshotKey) -> None:
        """Put the key: the snapshot is used now."""
        self.objects.put(f"{key.digest}/{KEY_FILE}", key.encode())

    def _drop_note(self, key: SnapshotKey, chunk: int) -> None:
        if (key.digest, chunk) in self._noted:
            self._noted.discard((key.digest, chunk))
            self.objects.remove(f"{key.digest}/{note_name(chunk)}")


def rows_path(key: SnapshotKey, receipt: ChunkReceipt) -> str:
    """Of the object with a chunk's rows."""
    return f"{key.digest}/chunk-{receipt.chunk:08d}-{receipt.sha256}.f32"
