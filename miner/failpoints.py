r"""Named points in the code at which a test can make a process die, stall or meet a bad disk.

Off unless the environment says otherwise when the process starts::

    COALFACE_FAILPOINTS="journal.append.begin=torn;3*durable.publish.renamed=kill"

A number before a name means its so-many-eth passage only; without one, every passage. The actions:

    kill           SIGKILL to this process: nothing is flushed, closed or cleaned up
    error(ENOSPC)  an OSError, as the disk would give it; also EROFS and EIO
    sleep(0.5)     so many seconds pass
    torn           half of the bytes reach the file, then SIGKILL; only where bytes are written

Where bytes are written, an error also comes after half of them, as on a disk that is full. It knows
neither rounds nor runs: only the names of places there, of which this file is the one list.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from types import MappingProxyType

from miner.errors import ConfigError

__all__ = ["ENVIRONMENT", "FAILPOINTS", "WRITE_POINTS", "arm", "reach", "reach_write"]

logger = logging.getLogger(__name__)

ENVIRONMENT = "COALFACE_FAILPOINTS"

WRITE_POINTS = MappingProxyType(
    {
        "durable.write.begin": "The file is open and empty; its content comes now.",
        "journal.append.begin": "A record is about to follow those that are there.",
        "snapshot.rows.begin": "The rows of a chunk are about to be written; it has no receipt.",
        "uploads.write": "A part of an upload has come and is about to be written.",
    }
)
"""The points at which bytes are about to be written to a file, each with a sentence."""

FAILPOINTS = MappingProxyType(
    {
        **WRITE_POINTS,
        "durable.write.unsynced": "The file has its content, which may not be on the disk.",
        "durable.replace.written": "The new content is on the disk under a temporary name.",
        "durable.replace.renamed": "The new content has its name, which may not be on the disk.",
        "durable.publish.finished": "A folder is whole, and still has its temporary name.",
        "durable.publish.renamed": "A folder has its name, which may not be on the disk.",
        "journal.append.unsynced": "The record is in the file, which may not be on the disk.",
        "writer.open.fenced": "A generation is taken; what older writers left is still there.",
        "writer.seal.begun": "The folder of a round is made, and empty.",
        "writer.chunk.begin": "A chunk is encoded, its file not made yet.",
        "writer.chunk.written": "A chunk is on the disk, others may not be.",
        "writer.manifest.begin": "Every chunk is on the disk; the log's lock is held.",
        "writer.manifest.written": "The manifest is on the disk; the round is not visible yet.",
        "writer.seal.published": "The round is visible and durable; nobody was told.",
        "writer.retain.listed": "Rounds are noted as expired, and all still there.",
        "writer.retain.renamed": "Expired rounds are out of the way, not for sure on the disk.",
        "writer.retain.removing": "Expired rounds are out of the way; their files are still there.",
        "archive.put.begin": "A file of a round is about to be put into the archive.",
        "archive.entry.begin": "All that an entry of the archive names is there; it comes now.",
        "archive.entry.put": "The entry is there, and counts; the log's folder is as it was.",
        "archive.remove.begin": "What no entry names any more is about to be removed.",
        "restore.round.written": "A round from the archive is on the disk, and not visible yet.",
        "runs.create.archived": "A new run is in the archive, and not on the disk.",
        "runs.create.begin": "The folder of a new run is made, and empty.",
        "runs.create.written": "A new run is on the disk under a temporary name.",
        "runs.plan.begin": "A stride is planned in memory only.",
        "runs.plan.archived": "A stride is in the archive, and counts; it is not on the disk.",
        "runs.plan.recorded": "A stride is on the disk; nobody was told.",
        "runs.commit.begin": "A step is about to be committed.",
        "runs.commit.archived": "A step is committed in the archive, not yet on the disk.",
        "runs.commit.written": "A step is committed; nobody was told.",
        "accepted.copy.begin": "Good weights are about to be copied.",
        "accepted.copy.kept": "The copy of good weights is on the disk, and not noted yet.",
        "accepted.note.written": "The newest accepted weights are noted; nobody was told.",
        "accepted.drop.begin": "Older copies of weights are about to go.",
        "snapshot.receipt.taken_back": "A chunk's old receipt is gone, its rows are untouched.",
        "snapshot.rows.written": "A chunk's rows are on the disk, without a receipt.",
        "snapshot.receipt.written": "A chunk has its receipt; nobody was told.",
        "streams.batch.begin": "A batch is about to be planned and read.",
        "streams.batch.made": "A batch is made and about to be sent.",
        "uploads.received": "An upload is whole and right; nobody was told.",
        "difficulty.write.begin": "Reported losses are taken in memory only.",
        "difficulty.write.kept": "Reported losses are on the disk; nobody was told.",
    }
)
"""Every point, with a sentence on how things stand there."""

_ERRORS = ("ENOSPC", "EROFS", "EIO")
_SETTING = re.compile(
    r"(?:(\d+)\*)?([a-z_.]+)=(?:(kill|torn)|error\((\w+)\)|sleep\((\d+(?:\.\d*)?|\.\d+)\))"
)


@dataclass(slots=True)
class _Failure:
    """What happens at one point, and when."""

    name: str
    text: str
    passage: int | None
    error_number: int = 0
    seconds: float | None = None
    passages: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self) -> bool:
        with self.lock:
            self.passages += 1
            return self.passage is None or self.passages == self.passage

    def happen(self) -> None:
        logger.warning("failpoint %s: %s", self.name, self.text)
        if self.seconds is not None:
            time.sleep(self.seconds)
        elif self.error_number:
            text = f"{os.strerror(self.error_number)} (failpoint {self.name})"
            raise OSError(self.error_number, text)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


_armed: dict[str, _Failure] = {}


def arm(settings: str) -> None:
    """Let the points fail as ``settings`` say, in the form above; empty: none fails any more.

    Raises:
        ConfigError: A setting is malformed, or names no point; nothing has changed then.

    Example:
        >>> arm("2*runs.plan.recorded=error(ENOSPC)")
        >>> reach("runs.plan.recorded")
        >>> reach("runs.plan.recorded")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device (failpoint runs.plan.recorded)
        >>> arm("")
    """
    failures = [_parse(part.strip()) for part in settings.split(";") if part.strip()]
    _armed.clear()
    _armed.update({failure.name: failure for failure in failures})


def reach(name: str) -> None:
    """Pass the point of that name; what it was armed with happens here.

    Raises:
        OSError: If it was armed with an error.

    Cost: some 50 ns while nothing is armed.
    """
    if _armed and (failure := _armed.get(name)) and failure.is_due():
        failure.happen()


def reach_write(name: str, descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """As `reach`, where ``content`` is about to be written at ``offset`` of an open file."""
    if _armed and (failure := _armed.get(name)) and failure.is_due():
        if failure.seconds is None and failure.text != "kill":
            os.pwrite(descriptor, content[: len(content) // 2], offset)
        failure.happen()


def _parse(text: str) -> _Failure:
    found = _SETTING.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{ENVIRONMENT}: {text!r} is not [<count>*]<name>=<action>, where an action is kill, "
            f"torn, sleep(<seconds>) or error({'|'.join(_ERRORS)})"
        )
    count, name, _, error, seconds = found.groups()
    if name not in FAILPOINTS:
        raise ConfigError(f"{ENVIRONMENT}: there is no point {name!r}: {', '.join(FAILPOINTS)}")
    if error is not None and error not in _ERRORS:
        raise ConfigError(f"{ENVIRONMENT}: {text!r}: an error is one of {', '.join(_ERRORS)}")
    if found[3] == "torn" and name not in WRITE_POINTS:
        raise ConfigError(f"{ENVIRONMENT}: {text!r}: no bytes are written there")
    return _Failure(
        name=name,
        text=text.partition("=")[2],
        passage=int(count) if count else None,
        error_number=getattr(errno, error) if error else 0,
        seconds=float(seconds) if seconds else None,
    )


arm(os.environ.get(ENVIRONMENT, ""))
