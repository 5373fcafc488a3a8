r"""Weights that come in parts: received into a file, checked against what was promised of them.

    receiving --(all bytes, digest right)--> received --(judged)--> removed
        \--(too many, too few, wrong digest, too slow, cut off)--> removed
        \--(the miner was killed)--> abandoned: removed by a later upload

A file is locked for as long as its upload lives. It knows neither what weights are nor who sends
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import grpc.aio

from miner.errors import DiskError, LimitError, RequestError
from miner.failpoints import reach, reach_write
from miner.serving.requests import check_upload_part, read_upload_header
from protos.coalface.v1 import mining_pb2

__all__ = ["received"]

PREFIX = ".upload-"
SILENCE_S = 30.0
"""An upload that brings nothing for so long is given up."""

MIN_BYTES_PER_S = 65_536
"""One that brings less than this is `SILENCE_S` later; half a megabit."""

ABANDONED_S = 3600.0
"""An unlocked file that nothing was written to for so long belongs to a miner that was killed."""

Read = Callable[[], Awaitable[Any]]
"""The next message of the client; gRPC's end of file after the last."""


@asynccontextmanager
async def received(
    read: Read, max_bytes: int, folder: Path, pool: Executor
) -> AsyncIterator[tuple[mining_pb2.UploadHeader, Path]]:
    """What was promised of a file, and the whole file, which is removed when the block is left.

    Args:
        read: Gives the messages.
        max_bytes: The most that a file may have.
        folder: Where the file lies meanwhile; made if it is missing.
        pool: Runs what touches the disk.

    Raises:
        RequestError: The header is wrong, a message has no content, more or fewer bytes came than
            were promised, or another digest.
        LimitError: The file is larger than ``max_bytes``, or it comes too slowly.
        DiskError: The disk refuses.
    """
    loop = asyncio.get_running_loop()
    paced = _Paced(read)
    first = await paced.next_message() or mining_pb2.UploadWeightsRequest()
    header = read_upload_header(first, max_bytes)
    upload = _Upload(folder / f"{PREFIX}{uuid.uuid4().hex}", header.total_bytes)
    try:
        try:
            await loop.run_in_executor(pool, upload.write, first.content)
            while (message := await paced.next_message()) is not None:
                check_upload_part(message)
                await loop.run_in_executor(pool, upload.write, message.content)
            await loop.run_in_executor(pool, upload.finish, header.sha256)
        except OSError as exc:
            raise DiskError(f"an upload cannot be written to {folder}: {exc}") from exc
        yield header, upload.path
    finally:
        # Not in the pool, which takes nothing more once the server has stopped.
        await asyncio.shield(asyncio.to_thread(upload.remove))


@dataclass(slots=True)
class _Paced:
    """Messages that keep up a pace; the time that the disk takes is not the client's."""

    read: Read
    _left_s: float = field(default_factory=lambda: SILENCE_S)

    async def next_message(self) -> mining_pb2.UploadWeightsRequest | None:
        """None after the last."""
        begin_s = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s):
                message: mining_pb2.UploadWeightsRequest = await self.read()
        except TimeoutError as exc:
            raise LimitError(
                f"an upload that brings nothing for {SILENCE_S:g} s, or is so far behind "
                f"{MIN_BYTES_PER_S} bytes/s, is given up"
            ) from exc
        if message is grpc.aio.EOF:
            return None
        gained_s = len(message.content) / MIN_BYTES_PER_S
        self._left_s = min(SILENCE_S, self._left_s - (time.monotonic() - begin_s) + gained_s)
        return message


@dataclass(slots=True)
class _Upload:
    """The file as far as it has come; its methods block."""

    path: Path
    total_bytes: int
    _num_bytes: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)
    _file: BinaryIO | None = None
    _is_over: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, content: bytes) -> None:
        with self._lock:
            if not self._is_over:
                self._write(content)

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.path.parent)
            self._file = self.path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._num_bytes += len(content)
        if self._num_bytes > self.total_bytes:
            raise RequestError(
                f"content: must be the header.total_bytes={self.total_bytes} that were promised, "
                f"got {self._num_bytes} or more"
            )
        reach_write("uploads.write", self._file.fileno(), content, self._num_bytes - len(content))
        self._file.write(content)
        self._digest.update(content)

    def finish(self, sha256: str) -> None:
        if self._num_bytes < self.total_bytes:
            raise RequestError(
                f"content: must be the header.total_bytes={self.total_bytes} that were promised, "
                f"got {self._num_bytes}"
            )
        found = self._digest.hexdigest()
        if found != sha256:
            raise RequestError(f"header.sha256: must be that of the content, {found}, got {sha256}")
        assert self._file is not None
        self._file.flush()
        reach("uploads.received")

    def remove(self) -> None:
        """Also a file that a cancelled request is about to make, in another thread."""
        with self._lock:
            self._is_over = True
            # A disk that refuses is told by what was written to it; the rest is abandoned.
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Whole files of weights would stay for ever otherwise, one for each kill in mid-upload."""
    for path in folder.glob(f"{PREFIX}*"):
        # Its own upload has ended just now; or it lives, and holds the lock.
        with contextlib.suppress(OSError), path.open("rb") as file:
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
