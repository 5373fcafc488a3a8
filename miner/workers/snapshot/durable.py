"""Files that survive a crash once they are written. It does not know what is in them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from miner.failpoints import reach_write
from miner.rounds.durable import sync_folder

__all__ = ["take_back", "write_durably", "write_in_place"]


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file as a whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def write_in_place(path: Path, offset: int, data: memoryview) -> None:
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


def take_back(path: Path) -> None:
    """Remove durably: a crash must not bring a receipt back over rows that are half written."""
    if path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
