r"""Weights that come in parts: received into a file, checked against what was promised of them.

    receiving --(all bytes, digest right)--> received
        \--(too many, too few, wrong digest, silence, cut off)--> removed
        \--(the miner was killed)--> abandoned: removed by a later upload

It knows neither what weights are nor who sends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
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
from protos.coalface.v1 import mining_pb2

__all__ = ["received"]

PREFIX = ".upload-"
SILENCE_S = 30.0
"""An upload that brings nothing for so long is given up."""

ABANDONED_S = 3600.0
"""A file that nothing was written to for so long belongs to a miner that was killed."""

Read = Callable[[], Awaitable[Any]]
"""The next message of the client; gRPC's end of file after the last."""


@asynccontextmanager
async def received(
    read: Read, header: mining_pb2.UploadHeader, first: bytes, folder: Path, pool: Executor
) -> AsyncIterator[Path]:
    """The whole file, which is removed when the block is left.

    Args:
        read: Gives the messages after the first.
        header: What is promised of the file.
        first: The content of the first message.
        folder: Where the file lies meanwhile; made if it is missing.
        pool: Runs what touches the disk.

    Raises:
        RequestError: More or fewer bytes than were promised, or another digest.
        LimitError: Nothing came for `SILENCE_S`.
        DiskError: The disk refuses.
    """
    loop = asyncio.get_running_loop()
    upload = _Upload(folder / f"{PREFIX}{uuid.uuid4().hex}", header.total_bytes)
    try:
        try:
            await loop.run_in_executor(pool, upload.write, first)
            while (content := await _next(read)) is not None:
                await loop.run_in_executor(pool, upload.write, content)
            await loop.run_in_executor(pool, upload.finish, header.sha256)
        except OSError as exc:
            raise DiskError(f"an upload cannot be written to {folder}: {exc}") from exc
        yield upload.path
    finally:
        await asyncio.shield(loop.run_in_executor(pool, upload.remove))


async def _next(read: Read) -> bytes | None:
    """The content of the next message; None after the last."""
    try:
        async with asyncio.timeout(SILENCE_S):
            message = await read()
    except TimeoutError as exc:
        raise LimitError(f"an upload that brings nothing for {SILENCE_S:g} s is given up") from exc
    if message is grpc.aio.EOF:
        return None
    if message.HasField("header"):
        raise RequestError("header: must be in the first message only, got another one")
    content: bytes = message.content
    return content


@dataclass(slots=True)
class _Upload:
    """The file as far as it has come; its methods block."""

    path: Path
    total_bytes: int
    _num_bytes: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)
    _file: BinaryIO | None = None

    def write(self, content: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.path.parent)
            self._file = self.path.open("xb")
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
        self._file.close()
        reach("uploads.received")

    def remove(self) -> None:
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Whole files of weights would stay for ever otherwise, one for each kill in mid-upload."""
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # its own upload has ended just now
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()
