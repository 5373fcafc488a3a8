"""What a run did, as JSON lines: one file per rank, one line per event, only ever appended to.

Lines have a key ``event``: ``start`` of a process, ``step``, ``checkpoint``, ``announce``, ``end``.
A run that was killed and resumed has trained some steps twice: the later line is the one that
counts. A line that a kill has left unfinished counts for nothing.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Journal", "journal_path"]


def journal_path(out: Path, rank: int) -> Path:
    """Where the journal of ``rank`` lies in a run's ``out`` folder."""
    return out / f"journal-{rank}.jsonl"


class Journal:
    """Appends events; a line is on its way to the disk when :meth:`write` returns.

    Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        if torn:
            self._file.write("\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """Append one line; after the journal was closed, nothing."""
        line = json.dumps({"event": event, "unix_s": round(time.time(), 3), **values})
        with self._lock:
            if not self._file.closed:
                self._file.write(line + "\n")
                self._file.flush()
