"""Where the user's arrays are: .npy files (mapped), columns of Parquet and Arrow files, memory.

It gives them as they are; it knows neither embeddings nor identities.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from miner.errors import DatasetError

__all__ = ["Source", "open_source"]

PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".ipc", ".feather")
FORMS = f"FILE.npy, or FILE:column with a FILE that ends in {', '.join((*PARQUET, *ARROW))}"
_COLUMN = re.compile(rf"\.(?:npy|{'|'.join(s[1:] for s in (*PARQUET, *ARROW))})(:)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One array of the user's.

    Attributes:
        name: What messages call it: file and column, or its role where it came from memory.
        values: As it was found. Of a ``.npy`` file a read-only memory map.
    """

    name: str
    values: npt.NDArray[Any] | pa.ChunkedArray


def open_source(given: object, role: str) -> Source:
    """Open what the user gave.

    Args:
        given: ``"FILE.npy"``, ``"FILE:column"`` of a Parquet or Arrow file (IPC file or stream), a
            path, or an array: NumPy, Arrow, or whatever ``numpy.asarray`` takes.
        role: "embeddings", "identities"...: the name of an array that came from memory.

    Raises:
        DatasetError: The file is missing, cannot be read, holds Python objects (they are never
            unpickled) or has no such column; the text says which columns there are.

    Cost: a ``.npy`` file is mapped, an uncompressed Arrow file too; of a Parquet file the column is
    read whole.
    """
    if isinstance(given, str | os.PathLike):
        path, column = _split(os.fspath(given))
        return _open_file(path.expanduser(), column)
    if isinstance(given, pa.Array):
        given = pa.chunked_array([given])
    if isinstance(given, pa.ChunkedArray):
        return Source(role, given)
    try:
        return Source(role, np.asarray(given))
    except RuntimeError as exc:  # a torch tensor that requires grad
        raise DatasetError(
            f"{role}: {exc}; of a tensor pass tensor.detach().cpu().numpy()"
        ) from exc
    except (ValueError, TypeError) as exc:
        raise DatasetError(f"{role}: they do not form an array: {exc}") from exc


def _split(text: str) -> tuple[Path, str | None]:
    """File and column; a colon in a folder's or column's name does no harm."""
    found = None if Path(text).is_file() else _COLUMN.search(text)
    if found is None:
        return Path(text), None
    return Path(text[: found.start(1)]), text[found.end(1) :] or None


def _open_file(path: Path, column: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix not in (".npy", *PARQUET, *ARROW):
        raise DatasetError(f"file {path} is of no known form: give {FORMS}")
    if not path.is_file():
        raise DatasetError(f"there is no file {path}; give {FORMS}")
    if suffix == ".npy":
        if column is not None:
            raise DatasetError(f"file {path} has no columns, so no {column!r}: give the file alone")
        return Source(f"file {path}", _map_npy(path))
    with _reading(path):
        values = (_read_parquet if suffix in PARQUET else _read_arrow)(path, column)
        values.validate(full=True)
    return Source(f"file {path}: column {column!r}", values)


def _map_npy(path: Path) -> npt.NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError) as exc:
        if "Python objects" in str(exc):
            raise DatasetError(
                f"file {path} holds Python objects, which are never loaded: save numbers, or text "
                "as array.astype(str)"
            ) from exc
        raise DatasetError(
            f"file {path} cannot be read as a .npy file, it may be truncated or of another format: "
            f"{' '.join(str(exc).split())}"
        ) from exc


def _read_parquet(path: Path, column: str | None) -> pa.ChunkedArray:
    with pq.ParquetFile(pa.memory_map(str(path))) as file:  # a path with a colon is no URI
        wanted = _require(path, column, file.schema_arrow.names)
        return file.read(columns=[wanted])[wanted]


def _read_arrow(path: Path, column: str | None) -> pa.ChunkedArray:
    """Of an IPC file, or of an IPC stream, which often has the same suffix."""
    try:
        opened, names = pa.ipc.open_file, pa.ipc.open_file(pa.memory_map(str(path))).schema.names
    except pa.ArrowInvalid:
        opened = pa.ipc.open_stream
        names = pa.ipc.open_stream(pa.memory_map(str(path))).schema.names
    wanted = _require(path, column, names)
    options = pa.ipc.IpcReadOptions(included_fields=[names.index(wanted)])
    return opened(pa.memory_map(str(path)), options=options).read_all()[wanted]


def _require(path: Path, column: str | None, names: list[str]) -> str:
    if column is None:
        raise DatasetError(f"file {path}: name one of its columns, as {path}:column: {names}")
    if names.count(column) != 1:
        problem = "has no column" if column not in names else "has more than one column"
        raise DatasetError(f"file {path} {problem} {column!r}, it has {names}")
    return column


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        raise DatasetError(
            f"file {path} cannot be read, it may be truncated or of another format: "
            f"{' '.join(str(exc).split())}"
        ) from exc
