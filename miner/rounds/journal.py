"""An append-only file of JSON records, each with its checksum; knows nothing of what they mean.

A record is one line, ``<16 hex digits of sha256> <json>``. It counts once its newline is there:

    absent --(write, fsync)--> recorded
       ^ killed in between: an unfinished last line, dropped by the next reader under the lock
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miner.errors import DamagedRunError, DiskError
from miner.failpoints import reach, reach_write

__all__ = ["Journal", "is_record"]

_DIGEST_DIGITS = 16


class Journal:
    """Records of one file, addressed by their offset in bytes.

    `catch_up` and `append` take the descriptor that `durable.locked` gives for `path`: whoever
    holds the lock sees every record of every process before adding one.

    Attributes:
        path: The file.
        size: Bytes read or written so far, always whole records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0

    def catch_up(self, descriptor: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield ``(offset, record)`` for all that was added since, by this process or another.

        An unfinished last record is cut off: nobody was told of it.

        Raises:
            DamagedRunError: If a finished record does not match its checksum, or records are gone.
        """
        length = os.fstat(descriptor).st_size
        if length < self.size:
            raise DamagedRunError(
                f"{self.path} has shrunk from {self.size} to {length} bytes: records are lost; "
                "restore the file from a copy"
            )
        tail = os.pread(descriptor, length - self.size, self.size)
        *lines, rest = tail.split(b"\n")
        if not rest and lines and b"\0" in lines[-1]:
            rest = lines.pop()  # its blocks reached the disk out of order
        for line in lines:
            record = self._decode(line, self.size)
            offset, self.size = self.size, self.size + len(line) + 1
            yield offset, record
        if rest:
            os.ftruncate(descriptor, self.size)
        if tail:
            os.fsync(descriptor)  # whoever wrote it may have been killed before doing so

    def append(self, descriptor: int, record: dict[str, Any]) -> int:
        """Add a record after `catch_up`; it is on the disk when this returns its offset."""
        text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        line = _digest(text) + b" " + text + b"\n"
        try:
            reach_write("journal.append.begin", descriptor, line, self.size)
            written = os.pwrite(descriptor, line, self.size)
            if written < len(line):
                raise DiskError(f"{self.path}: {written} of {len(line)} bytes written")
            reach("journal.append.unsynced")
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, self.size)
            raise
        offset, self.size = self.size, self.size + len(line)
        return offset

    def read(self, offset: int) -> dict[str, Any]:
        """The record at an offset that `catch_up` or `append` gave.

        Raises:
            DamagedRunError: If it does not match its checksum any more.
        """
        with self.path.open("rb") as file:
            file.seek(offset)
            return self._decode(file.readline().removesuffix(b"\n"), offset)

    def _decode(self, line: bytes, offset: int) -> dict[str, Any]:
        digest, _, text = line.partition(b" ")
        if digest != _digest(text):
            raise DamagedRunError(
                f"{self.path}: the record at byte {offset} does not match its checksum; restore "
                "the file from a copy, or start a run under another run_id"
            )
        record: dict[str, Any] = json.loads(text)
        return record


def is_record(line: bytes) -> bool:
    """Whether a line, without its newline, is a whole record."""
    digest, _, text = line.partition(b" ")
    return digest == _digest(text)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGEST_DIGITS].encode()
