"""The catalog: which samples there are, in which order, and which identity each has.

It reads ids, identities and filter columns, never a payload. Shape legend: N = rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from miner.data.config import DatasetConfig
from miner.data.fingerprint import fingerprint_dataset
from miner.data.source import Source, SourceFile, open_source, reading
from miner.errors import DatasetError
from miner.filesystems import shown
from miner.types import IdentityTable

__all__ = ["Catalog", "CatalogFile", "catalog_of", "scan_catalog"]

SHOWN = 3


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One dataset file as it was when the catalog was made."""

    name: str
    """Path below the dataset's folder."""
    num_bytes: int
    num_rows: int
    """Rows that passed the filter: the file's share of the row ids."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All samples of a dataset. ``row_id`` is the position in `sample_ids`."""

    identities: IdentityTable
    sample_ids: pa.Array
    """[N] int64 or string, unique."""
    identity_names: pa.Array
    """[I] int64 or string, ascending; ``identity_names[identity_id]`` is the dataset's own name."""
    fingerprint: str
    """sha256 in hex, see `miner.data.fingerprint`."""
    files: tuple[CatalogFile, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the catalog, N."""
        return self.identities.num_rows


@dataclass(frozen=True, slots=True)
class _ScannedFile:
    file: SourceFile
    sample_ids: pa.Array
    identities: pa.Array
    positions: npt.NDArray[np.int64]
    """Row numbers within the file of the rows that passed the filter."""


def scan_catalog(config: DatasetConfig) -> Catalog:
    """Read ids and identities, and fix ``row_id`` and ``identity_id``.

    Rows are numbered by sorted file name, then by their order in the file, after the filter.
    Identities are numbered in ascending order of their names (text by its UTF-8 bytes), so the
    numbers do not depend on the order of files.

    Raises:
        DatasetError: What `miner.data.source.open_source` raises; an unreadable file, a null or
            duplicate id, a null identity, no rows, one identity only, or no identity with two
            samples. Names file, column and the first few offenders.

    Cost: O(N log I) time; the ids and identities are held in memory.
    """
    return catalog_of(open_source(config), config)


def catalog_of(source: Source, config: DatasetConfig) -> Catalog:
    """`scan_catalog` for files that are open already."""
    scanned = [_scan_file(file, source, config) for file in source.files]
    sample_ids = pa.concat_arrays([part.sample_ids for part in scanned])
    if len(sample_ids) == 0:
        kept = f" that passes the filter {config.filter!r}" if config.filter else ""
        raise DatasetError(
            f"dataset {shown(config.uri)} is empty: its {len(scanned)} files hold no row{kept}"
        )
    _check_unique(sample_ids, scanned, config)
    names, identity_ids_N = _number(pa.concat_arrays([part.identities for part in scanned]))
    identities = IdentityTable.from_ids(identity_ids_N, len(names))
    _check_trainable(identities, names, config)
    files = tuple(
        CatalogFile(part.file.name, part.file.num_bytes, len(part.positions)) for part in scanned
    )
    fingerprint = fingerprint_dataset(
        [(file.name, file.num_bytes, file.num_rows) for file in files],
        [
            (config.id_column, str(source.id_type)),
            (config.identity_column, str(source.identity_type)),
            *((field.name, str(field.type)) for field in source.payload_schema),
        ],
        [sample_ids, names],
        identity_ids_N,
    )
    return Catalog(identities, sample_ids, names, fingerprint, files)


def _scan_file(file: SourceFile, source: Source, config: DatasetConfig) -> _ScannedFile:
    columns = {"id": pc.field(config.id_column), "identity": pc.field(config.identity_column)}
    if source.row_filter is not None:
        columns["keep"] = source.row_filter.expression
    with reading(file):
        _check_messages(file, (config.id_column, config.identity_column))
        table = file.fragment.to_table(columns=columns, use_threads=False)
    positions = np.arange(table.num_rows, dtype=np.int64)
    if source.row_filter is not None:
        positions = np.flatnonzero(table["keep"].fill_null(False).to_numpy()).astype(np.int64)
        table = table.filter(table["keep"])
    keys = []
    for name, column, kind in (
        ("id", config.id_column, source.id_type),
        ("identity", config.identity_column, source.identity_type),
    ):
        values = table[name]
        if values.null_count:
            rows = positions[values.is_null().to_numpy()]
            raise DatasetError(
                f"file {file.path}: column {column!r} is null in {len(rows)} rows, the first are "
                f"{rows[:SHOWN].tolist()}; give them a value, or filter them out"
            )
        try:
            chunks = values.cast(kind).chunks
        except pa.ArrowInvalid as exc:
            raise DatasetError(
                f"file {file.path}: column {column!r} does not fit {kind}: {exc}; convert it"
            ) from exc
        keys.append(pa.concat_arrays([pa.array([], kind), *chunks]))
    return _ScannedFile(file, keys[0], keys[1], positions)


def _check_messages(file: SourceFile, columns: Sequence[str]) -> None:
    """Read the messages of an Arrow IPC file one by one, of a few columns.

    The dataset scanner's asynchronous reader may crash the process on a damaged message; this one
    raises.
    """
    if not isinstance(file.fragment.format, ds.IpcFileFormat):
        return
    with file.fragment.filesystem.open_input_file(file.fragment.path) as stream:
        names = pa.ipc.open_file(stream).schema.names
        wanted = [names.index(name) for name in columns if name in names]
        reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        for number in range(reader.num_record_batches):
            reader.get_batch(number).validate(full=True)


def _check_unique(
    sample_ids: pa.Array, scanned: Sequence[_ScannedFile], config: DatasetConfig
) -> None:
    counts = pc.value_counts(sample_ids)
    if len(counts) == len(sample_ids):
        return
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    places = []
    for value in repeated[:SHOWN]:
        rows = np.flatnonzero(pc.equal(sample_ids, value).to_numpy(zero_copy_only=False))
        where = " and ".join(_locate(row, scanned) for row in rows[:2].tolist())
        places.append(f"{value.as_py()!r} in {where}")
    raise DatasetError(
        f"dataset {shown(config.uri)}: column {config.id_column!r} holds {len(repeated)} ids more "
        f"than once, the first are {'; '.join(places)}; ids must be unique over all files"
    )


def _locate(row_id: int, scanned: Sequence[_ScannedFile]) -> str:
    ends = np.cumsum([len(part.positions) for part in scanned])
    part = scanned[int(np.searchsorted(ends, row_id, side="right"))]
    position = part.positions[row_id - int(ends[ends <= row_id].max(initial=0))]
    return f"{part.file.path} row {position}"


def _number(identities: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Ascending distinct names, and for each row the position of its own."""
    encoded = identities.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]


def _check_trainable(identities: IdentityTable, names: pa.Array, config: DatasetConfig) -> None:
    place = f"dataset {shown(config.uri)}: column {config.identity_column!r}"
    if identities.num_identities == 1:
        raise DatasetError(
            f"{place} holds one identity only, {names[0].as_py()!r} in all {identities.num_rows} "
            "rows: there is no negative; check the column and the filter"
        )
    if identities.sizes_I.max() < 2:
        raise DatasetError(
            f"{place} holds no identity with two samples: {identities.num_identities} identities, "
            f"the first are {names[:SHOWN].to_pylist()}: there is no positive; check the column, "
            "it may be an id"
        )
