"""The row store: any sample by its row id, from memory-mapped Arrow IPC, uncompressed.

A store is a folder that `miner.data.ingest` writes once and nobody changes. It knows nothing of the
dataset it came from but its catalog. Shape legend: R = rows asked for.

    payload.arrow      the payload columns of every row, in record batches of bounded bytes
    samples.arrow      sample id and identity id of every row
    identities.arrow   identity names
    STORE.json         fingerprint, dataset files, bytes and sha256 of the three above
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from miner.data.catalog import Catalog, CatalogFile
from miner.data.gather import ColumnGather, Items, Scattered
from miner.errors import DatasetError
from miner.types import IdentityTable

__all__ = ["RowStore", "StoreManifest", "StoredFile", "manifest_text"]

MANIFEST = "STORE.json"
PAYLOAD, SAMPLES, IDENTITIES = "payload.arrow", "samples.arrow", "identities.arrow"
STORE_VERSION = 2
ROW_ID = pa.field("row_id", pa.int64(), nullable=False)


class StoredFile(BaseModel):
    """Size and digest of one of the store's files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class _Versioned(BaseModel):
    version: int


class StoreManifest(BaseModel):
    """The content of ``STORE.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = STORE_VERSION
    fingerprint: str
    num_rows: int
    num_identities: int
    dataset_files: tuple[CatalogFile, ...]
    payload_sha256s: tuple[str, ...]
    """Of each dataset file's kept rows, their payload alone, with the names and types of columns:
    equal files are found again in another dataset."""
    stored_files: dict[str, StoredFile]
    sha256: str = ""
    """Of the text without this field; empty in stores of earlier versions."""


class RowStore:
    """Samples by row id. Safe to share between threads; a pickle holds the path alone."""

    def __init__(self, root: Path, manifest: StoreManifest, batches: list[pa.RecordBatch]) -> None:
        self.root = root
        self.manifest = manifest
        self._batches = batches
        self._begins = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._gathers = [
            ColumnGather.of([batch.column(index) for batch in batches])
            for index in range(batches[0].num_columns)
        ]
        self._mean_bytes = {
            index: np.array([_mean_bytes(batch.column(index)) for batch in batches])
            for index, gather in enumerate(self._gathers)
            if gather is None
        }

    @classmethod
    def open(cls, root: Path) -> "RowStore":
        """Map the store of folder ``root``.

        Raises:
            DatasetError: There is no store, it is of another version, or a file is missing,
                truncated or damaged at its ends (`verify` reads every byte).

        Cost: some 20 us a record batch; no payload is read.
        """
        manifest = _read_manifest(root)
        for name, stored in manifest.stored_files.items():
            path = root / name
            num_bytes = path.stat().st_size if path.is_file() else 0
            if num_bytes != stored.num_bytes:
                raise _damaged(root, f"{name} has {num_bytes} bytes of {stored.num_bytes}")
        batches = _map_batches(root, PAYLOAD)
        num_rows = sum(batch.num_rows for batch in batches)
        if num_rows != manifest.num_rows:
            raise _damaged(root, f"{PAYLOAD} holds {num_rows} rows of {manifest.num_rows}")
        try:
            return cls(root, manifest, batches)
        except ValueError as exc:
            raise _damaged(root, f"{PAYLOAD}: {exc}") from exc

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return RowStore.open, (self.root,)

    @property
    def num_rows(self) -> int:
        """Rows of the store, as many as the catalog has."""
        return self.manifest.num_rows

    @property
    def fingerprint(self) -> str:
        """The dataset's fingerprint, without loading the catalog."""
        return self.manifest.fingerprint

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of what `read` and `scan` give: ``row_id`` int64, then the payload columns."""
        return self._batches[0].schema.insert(0, ROW_ID)

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog as it was at ingestion; the dataset itself is not needed.

        Cost: O(N log N) at first use.
        """
        samples = pa.Table.from_batches(_map_batches(self.root, SAMPLES)).combine_chunks()
        names = pa.Table.from_batches(_map_batches(self.root, IDENTITIES)).combine_chunks()
        identity_ids_N = samples["identity_id"].to_numpy()
        return Catalog(
            IdentityTable.from_ids(identity_ids_N, self.manifest.num_identities),
            samples["sample_id"].chunk(0),
            names["identity_name"].chunk(0),
            self.fingerprint,
            self.manifest.dataset_files,
        )

    def read(self, row_ids_R: npt.NDArray[np.int64]) -> pa.RecordBatch:
        """The samples of ``row_ids_R``, in that order, repeats included.

        Raises:
            DatasetError: A row id is below 0 or not below `num_rows`, or the store is damaged.

        Cost: O(R log B) for B record batches; only pages that hold the rows are touched.
        """
        (samples,), scattered = self.lay_out(row_ids_R, np.array([0, len(row_ids_R)]))
        scattered.write()
        return samples

    def lay_out(
        self, row_ids_R: npt.NDArray[np.int64], ends_P1: npt.NDArray[np.int64]
    ) -> tuple[list[pa.RecordBatch], Scattered]:
        """For each part ``[ends_P1[p], ends_P1[p + 1])`` of the rows what `read` gives for it.

        Byte strings and texts are not in there yet: ``write()`` of what comes with them puts them
        there, and ``copy(...)`` takes from where they lie what would be copied from there. So what
        is sent is copied once.

        Raises, Cost: As `read`, once for all.
        """
        row_ids_R = np.asarray(row_ids_R, np.int64)
        batch_R, place_R = self._places(row_ids_R)
        columns = [
            self._column(index, batch_R, place_R, ends_P1) for index in range(len(self._gathers))
        ]
        arrays = [arrays for arrays, _ in columns]
        parts = [
            pa.RecordBatch.from_arrays([pa.array(row_ids_R[begin:end]), *parts], schema=self.schema)
            for (begin, end), *parts in zip(pairwise(ends_P1.tolist()), *arrays, strict=True)
        ]
        return parts, Scattered([items for _, items in columns if items is not None])

    def row_bytes(self, row_ids_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[R] int64 the bytes of each row's samples.

        Of columns with nulls or nested values it is the mean over the store's record batch.

        Raises:
            DatasetError: As `read`.

        Cost: of `read`, but for the samples themselves.
        """
        batch_R, place_R = self._places(np.asarray(row_ids_R, np.int64))
        num_bytes_R = np.zeros(len(batch_R), np.int64)
        for index, gather in enumerate(self._gathers):
            if gather is None:
                num_bytes_R += self._mean_bytes[index][batch_R]
                continue
            try:
                num_bytes_R += gather.item_bytes(batch_R, place_R)
            except ValueError as exc:
                raise _damaged(self.root, f"{PAYLOAD}: {exc}") from exc
        return num_bytes_R

    def scan(self, begin: int, end: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of ``[begin, end)`` in order, ``batch_rows`` at a time, the last batch shorter.

        Raises:
            DatasetError: The range is not within the store, or ``batch_rows`` is below 1.

        Cost: copies only the batches that straddle two of the store's own.
        """
        if not 0 <= begin <= end <= self.num_rows or batch_rows < 1:
            raise DatasetError(
                f"cannot scan rows {begin} to {end} of row store {self.root} in batches of "
                f"{batch_rows}: rows are 0 to {self.num_rows}, a batch has at least one"
            )
        return (
            self._slice(first, min(first + batch_rows, end))
            for first in range(begin, end, batch_rows)
        )

    def verify(self) -> list[str]:
        """Read every byte; return a line for each file that does not match its digest."""
        return [
            f"{self.root / name} does not match its sha256 {stored.sha256}; ingest again"
            for name, stored in self.manifest.stored_files.items()
            if sha256_of(self.root / name) != stored.sha256
        ]

    def _places(
        self, row_ids_R: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """[R] the record batch of each row, and its place in there."""
        if len(row_ids_R) and not 0 <= row_ids_R.min() <= row_ids_R.max() < self.num_rows:
            outside = row_ids_R[(row_ids_R < 0) | (row_ids_R >= self.num_rows)]
            raise DatasetError(
                f"{len(outside)} row ids are outside the row store {self.root}, the first are "
                f"{outside[:3].tolist()}: its rows are 0 to {self.num_rows - 1}"
            )
        batch_R = np.searchsorted(self._begins, row_ids_R, side="right") - 1
        return batch_R, row_ids_R - self._begins[batch_R]

    def _column(
        self,
        index: int,
        batch_R: npt.NDArray[np.int64],
        place_R: npt.NDArray[np.int64],
        ends_P1: npt.NDArray[np.int64],
    ) -> tuple[list[pa.Array], Items | None]:
        gather = self._gathers[index]
        try:
            taken = gather.take(batch_R, place_R, ends_P1) if gather else None
        except ValueError as exc:
            raise _damaged(self.root, f"{PAYLOAD}: {exc}") from exc
        if taken is not None:
            return taken
        parts = [
            self._taken_by_arrow(index, batch_R[begin:end], place_R[begin:end])
            for begin, end in pairwise(ends_P1.tolist())
        ]
        return parts, None

    def _taken_by_arrow(
        self, index: int, batch_R: npt.NDArray[np.int64], place_R: npt.NDArray[np.int64]
    ) -> pa.Array:
        # One take per touched batch: Arrow's take on a chunked array copies the whole first.
        order_R = np.argsort(batch_R, kind="stable")
        edges = np.flatnonzero(np.diff(batch_R[order_R])) + 1
        pieces = [
            self._batches[batch_R[part_r[0]]].column(index).take(pa.array(place_R[part_r]))
            for part_r in np.split(order_R, edges)
            if len(part_r)
        ]
        pieces = pieces or [self._batches[0].column(index).slice(0, 0)]
        return pa.concat_arrays(pieces).take(pa.array(np.argsort(order_R)))

    def _slice(self, begin: int, end: int) -> pa.RecordBatch:
        pieces = []
        first = int(np.searchsorted(self._begins, begin, side="right")) - 1
        last = int(np.searchsorted(self._begins, end, side="left"))
        for index in range(first, last):
            low, high = self._begins[index], self._begins[index + 1]
            low, high = max(begin, int(low)) - int(low), min(end, int(high)) - int(low)
            pieces.append(self._batches[index].slice(low, high - low))
        samples = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
        return _with_row_ids(samples, np.arange(begin, end, dtype=np.int64))


def _mean_bytes(column: pa.Array) -> int:
    """Of an item, rounded up."""
    return int(-(-column.nbytes // max(1, len(column))))


def manifest_text(manifest: StoreManifest) -> str:
    """The content of ``STORE.json``; its last field is the digest of the others."""
    body = manifest.model_dump_json(indent=2, exclude={"sha256"})
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    return manifest.model_copy(update={"sha256": sha256}).model_dump_json(indent=2) + "\n"


def sha256_of(path: Path) -> str:
    """The digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_row_ids(samples: pa.RecordBatch, row_ids_R: npt.NDArray[np.int64]) -> pa.RecordBatch:
    columns = [pa.array(row_ids_R), *samples.columns]
    return pa.RecordBatch.from_arrays(columns, schema=samples.schema.insert(0, ROW_ID))


def _read_manifest(root: Path) -> StoreManifest:
    try:
        content = (root / MANIFEST).read_bytes()
        version = _Versioned.model_validate_json(content).version  # others have other fields
        if version == STORE_VERSION:
            return StoreManifest.model_validate_json(content)
    except FileNotFoundError as exc:
        raise DatasetError(f"there is no row store in {root}; ingest the dataset first") from exc
    except (OSError, ValidationError) as exc:
        raise _damaged(root, f"{MANIFEST} cannot be read: {exc}") from exc
    raise DatasetError(
        f"row store {root} has version {version}, this program reads version {STORE_VERSION}; "
        "ingest again into another folder"
    )


def _map_batches(root: Path, name: str) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(root / name)))
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as exc:
        raise _damaged(root, f"{name} cannot be mapped: {exc}") from exc


def _damaged(root: Path, what: str) -> DatasetError:
    return DatasetError(f"row store {root} is damaged: {what}; delete the folder and ingest again")
