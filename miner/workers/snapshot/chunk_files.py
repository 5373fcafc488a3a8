"""Chunks of a snapshot's folder, read: are they there, and are they what was written?

It writes nothing. Shape legend: R = rows asked for, D = dimensions.
"""

from __future__ import annotations

import hashlib
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miner.workers.snapshot.keys import (
    ROW_DTYPE,
    ChunkReceipt,
    SnapshotKey,
    incomplete,
    receipt_name,
)

__all__ = ["data_path", "is_sound", "map_rows", "read_receipt"]

READ_BYTES = 2**20


def data_path(folder: Path, dim: int) -> Path:
    """The file of all rows of so many dimensions."""
    return folder / f"rows-{dim}d.f32"


def read_receipt(folder: Path, key: SnapshotKey, chunk: int) -> ChunkReceipt | None:
    """None unless it is there, well-formed, of this chunk's rows, and the file reaches so far."""
    try:
        content = (folder / receipt_name(chunk)).read_bytes()
        receipt = ChunkReceipt.decode(content, key, chunk)
        if receipt is None:
            return None
        size = data_path(folder, receipt.dim).stat().st_size
    except OSError:
        return None
    return receipt if key.rows_of(chunk)[1] * receipt.row_bytes <= size else None


def is_sound(folder: Path, key: SnapshotKey, chunk: int) -> bool:
    """Whether the chunk is there and matches its receipt."""
    receipt = read_receipt(folder, key, chunk)
    if receipt is None:
        return False
    try:
        with FileIO(data_path(folder, receipt.dim)) as file:
            return _matches(file, key, receipt)
    except OSError:
        return False


def map_rows(
    folder: Path, key: SnapshotKey, rows: range, first: ChunkReceipt
) -> npt.NDArray[np.float32]:
    """[R, D] successive rows, verified and mapped; ``first`` is the receipt of their first chunk.

    Raises:
        SnapshotError: A chunk is missing or damaged, or has other dimensions than the first.
        OSError, ValueError: They cannot be mapped.
    """
    # What is mapped is the file that was verified, whatever its name leads to by then.
    with FileIO(data_path(folder, first.dim)) as file:
        for chunk in key.chunks_of(rows):
            _require_sound(file, folder, key, chunk, first)
        offset, shape = rows.start * first.row_bytes, (len(rows), first.dim)
        return np.memmap(file, ROW_DTYPE, "r", offset, shape)


def _require_sound(
    file: FileIO, folder: Path, key: SnapshotKey, chunk: int, first: ChunkReceipt
) -> None:
    receipt = read_receipt(folder, key, chunk)
    if receipt is None:
        raise incomplete(key, folder, chunk, "is missing or truncated")
    if receipt.dim != first.dim:
        what = f"has {receipt.dim} dimensions, chunk {first.chunk} has {first.dim}"
        raise incomplete(key, folder, chunk, what)
    if not _matches(file, key, receipt):
        raise incomplete(key, folder, chunk, "does not match its digest")


def _matches(file: FileIO, key: SnapshotKey, receipt: ChunkReceipt) -> bool:
    """Whether the rows are those of the receipt.

    They are read, not mapped: of a disk that cannot read them a map makes a signal, not an error.
    """
    left, digest = receipt.num_bytes, hashlib.sha256()
    buffer = memoryview(bytearray(min(left, READ_BYTES)))
    try:
        file.seek(key.rows_of(receipt.chunk)[0] * receipt.row_bytes)
        while left and (num_read := file.readinto(buffer[:left])):
            digest.update(buffer[:num_read])
            left -= num_read
    except OSError:
        return False
    return digest.hexdigest() == receipt.sha256
