"""Writes that survive a crash of the process or the machine; knows nothing of rounds or runs.

A file or folder appears under its final name only when its content is on the disk:

    write + fsync -> rename -> fsync of the folder that holds the name
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.errors import DiskError
from miner.failpoints import reach, reach_write

__all__ = ["locked", "publish_folder", "replace_file", "sync_folder", "write_file"]

LOCK_PATIENCE_S = 30.0
"""Locks are held for milliseconds; one held for longer belongs to a process that is stopped."""


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file and put its content, but not yet its name, on the disk."""
    with path.open("wb") as file:
        reach_write("durable.write.begin", file.fileno(), content, 0)
        file.write(content)
        file.flush()
        reach("durable.write.unsynced")
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Give ``path`` new content: readers, and a restart, see the old or the new, never a mixture.

    Writers of one path take turns: hold its lock.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write_file(temporary, content)
    reach("durable.replace.written")
    os.replace(temporary, path)
    reach("durable.replace.renamed")
    sync_folder(path.parent)


def publish_folder(building: Path, final: Path) -> None:
    """Let a finished folder appear under its final name, durably and in one step.

    The files in it must have been put on the disk already.

    Raises:
        OSError: If a folder with content is there under that name; it is left as it is.
    """
    sync_folder(building)
    reach("durable.publish.finished")
    os.rename(building, final)
    reach("durable.publish.renamed")
    sync_folder(final.parent)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the exclusive lock of a file, made if it is missing; gives its descriptor.

    The lock also holds among threads, and ends with the process however that dies.

    Raises:
        DiskError: If another process holds it for `LOCK_PATIENCE_S`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() >= deadline_s:
                raise DiskError(
                    f"{path} has been locked by another process for {LOCK_PATIENCE_S:g} s: end "
                    "the other service that uses this folder, or give this one another"
                ) from exc
            time.sleep(0.005)
