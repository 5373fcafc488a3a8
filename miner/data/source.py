"""The dataset's files: found through any filesystem of `pyarrow.fs`, opened, their columns checked.

It reads footers only, no rows, and does not know what an identity is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from miner.data.config import DatasetConfig
from miner.data.filters import RowFilter, parse_filter
from miner.errors import DatasetError
from miner.filesystems import is_uri, open_filesystem, reason_of, shown

__all__ = ["Source", "SourceFile", "open_source", "reading"]

SUFFIXES: dict[str, Literal["parquet", "arrow"]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
FORMATS = {"parquet": ds.ParquetFileFormat, "arrow": ds.IpcFileFormat}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the dataset."""

    name: str
    """Path below the dataset's folder, with forward slashes."""
    path: str
    num_bytes: int
    fragment: ds.Fragment


@dataclass(frozen=True, slots=True)
class Source:
    """All files of a dataset, sorted by name, with columns that agree in type."""

    local_root: Path | None
    """The dataset's file or folder, None if it is not on this machine's file system."""
    files: tuple[SourceFile, ...]
    row_filter: RowFilter | None
    id_type: pa.DataType
    """int64 or string, whatever width or encoding the files use."""
    identity_type: pa.DataType
    """int64 or string."""
    payload_schema: pa.Schema
    """Payload columns as the row store keeps them: dictionaries decoded, metadata dropped."""


def open_source(config: DatasetConfig) -> Source:
    """Find the dataset's files and check their columns; names that begin with . or _ are hidden.

    Raises:
        DatasetError: The place or its scheme does not exist, there is no data file, a file cannot
            be opened, a column is missing or of a wrong type, files disagree, or the filter does
            not fit the columns.

    Cost: one listing, and one footer a file.
    """
    row_filter = None if config.filter is None else parse_filter(config.filter)
    filesystem, root = _filesystem_of(config.uri)
    files = tuple(_open_files(config, filesystem, root))
    schemas = [_schema_of(file) for file in files]
    wanted = [config.id_column, config.identity_column, *config.payload_columns]
    for file, schema in zip(files, schemas, strict=True):
        for column in (*wanted, *(row_filter.columns if row_filter else ())):
            if schema.get_all_field_indices(column) != [schema.get_field_index(column)]:
                raise DatasetError(_column_problem(file, schema, column))
        if row_filter is not None:
            _check_filter(row_filter, file, schema)
    for column in wanted:
        is_key = column in (config.id_column, config.identity_column)
        for file, schema in zip(files, schemas, strict=True):
            _check_type(column, is_key, (file, schema), (files[0], schemas[0]))
    payload = [
        pa.field(name, _plain(schemas[0].field(name).type)) for name in config.payload_columns
    ]
    return Source(
        Path(root) if isinstance(filesystem, fs.LocalFileSystem) else None,
        files,
        row_filter,
        _key_type(schemas[0].field(config.id_column).type),
        _key_type(schemas[0].field(config.identity_column).type),
        pa.schema(payload),
    )


@contextmanager
def reading(file: SourceFile) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file into a DatasetError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        reason = reason_of(exc, file.path)
        if "AWS Error" in reason:
            raise DatasetError(
                f"file {file.path} cannot be read from its store: {reason}; ingest again when the "
                "store can be reached and gives it to these credentials"
            ) from exc
        raise DatasetError(
            f"file {file.path} cannot be read, it may be truncated or of another format: {reason}; "
            "write it again or take it out of the dataset"
        ) from exc


def _open_files(
    config: DatasetConfig, filesystem: fs.FileSystem, root: str
) -> Iterator[SourceFile]:
    try:
        top = filesystem.get_file_info(root)
        if top.type == fs.FileType.NotFound:
            raise DatasetError(f"dataset {shown(config.uri)} does not exist; check dataset.uri")
        if top.type == fs.FileType.File:
            infos = {PurePosixPath(root).name: top}
        else:
            listing = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
            infos = {str(PurePosixPath(info.path).relative_to(root)): info for info in listing}
    except OSError as exc:
        raise DatasetError(
            f"dataset {shown(config.uri)} cannot be listed: {reason_of(exc, config.uri)}; check "
            "dataset.uri, and whether its place can be reached and read from here"
        ) from exc
    found = False
    for name, info in sorted(infos.items()):
        kind = SUFFIXES.get(PurePosixPath(name).suffix.lower())
        if config.format != "auto":
            kind = config.format if kind == config.format or info is top else None
        hidden = any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
        if kind is None or info.type != fs.FileType.File or (hidden and info is not top):
            continue
        found = True
        fragment = FORMATS[kind]().make_fragment(info.path, filesystem)
        yield SourceFile(name, info.path, info.size, fragment)
    if not found:
        raise DatasetError(
            f"dataset {shown(config.uri)} holds no data file of format {config.format}: expected "
            f"names ending in {', '.join(SUFFIXES)}; for a single file of another name set "
            "dataset.format"
        )


def _filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    if not is_uri(uri):
        return fs.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    try:
        filesystem, root = open_filesystem(uri)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise DatasetError(
            f"dataset URI {shown(uri)!r} cannot be opened: {reason_of(exc, uri)}; give dataset.uri "
            "a path or a URI that pyarrow.fs knows, such as s3://, gs:// or file://"
        ) from None  # its text quotes the URI
    return filesystem, root


def _schema_of(file: SourceFile) -> pa.Schema:
    with reading(file):
        return file.fragment.physical_schema


def _column_problem(file: SourceFile, schema: pa.Schema, column: str) -> str:
    if column in schema.names:
        return f"file {file.path} has column {column!r} more than once; rename one of them"
    return (
        f"file {file.path} has no column {column!r}, it has {schema.names}; "
        "name the right columns in the dataset's configuration"
    )


def _check_filter(row_filter: RowFilter, file: SourceFile, schema: pa.Schema) -> None:
    try:
        schema.empty_table().filter(row_filter.expression)
    except pa.ArrowException as exc:
        types = ", ".join(f"{name}: {schema.field(name).type}" for name in row_filter.columns)
        raise DatasetError(
            f"filter {row_filter.text!r} does not fit file {file.path}, whose columns are "
            f"{types}: {exc}; compare each column with a literal of its own type"
        ) from exc


def _check_type(
    column: str,
    is_key: bool,
    given: tuple[SourceFile, pa.Schema],
    first: tuple[SourceFile, pa.Schema],
) -> None:
    reduced = _key_type if is_key else _plain
    (file, schema), (first_file, first_schema) = given, first
    kind, first_kind = schema.field(column).type, first_schema.field(column).type
    if is_key and _key_type(kind) is None:
        raise DatasetError(
            f"file {file.path}: column {column!r} is of type {kind}, but an id or identity must be "
            "an integer or a string; convert it or name another column"
        )
    if reduced(kind) != reduced(first_kind):
        raise DatasetError(
            f"column {column!r} is {kind} in file {file.path} but {first_kind} in file "
            f"{first_file.path}; write all files with one schema"
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _key_type(kind: pa.DataType) -> pa.DataType | None:
    kind = _plain(kind)
    if pa.types.is_integer(kind):
        return pa.int64()
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.string() if is_text else None
