"""Which chunks are still to be embedded, and how often each was tried. It does not know Ray.

pending -> taken -> done
   ^         |
   +-- lost -+   at most ``max_attempts`` times taken
   +-- late -+   once, and not counted
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterable

__all__ = ["ChunkLedger"]

MIN_DONE = 3
"""Chunks that say how long one takes; the first also loads the weights."""
LATE_S = 1.0
"""Nothing is late sooner: a chunk of a moment may wait that long for a disk."""


class ChunkLedger:
    """Hands out chunks, each at most ``max_attempts`` times. Times are of any steady clock."""

    def __init__(
        self, chunks: Iterable[int], max_attempts: int, late_factor: float | None = None
    ) -> None:
        """A chunk is late after ``late_factor`` times the median of those done; None: never."""
        self._pending = deque(chunks)
        self._unfinished = set(self._pending)
        self._attempts: Counter[int] = Counter()
        self._max_attempts = max_attempts
        self._late_factor = late_factor
        self._begun_s: dict[int, float] = {}
        self._took_s: list[float] = []
        self._were_late: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether every chunk is done."""
        return not self._unfinished

    @property
    def has_pending(self) -> bool:
        """Whether `take` has a chunk to give."""
        return bool(self._pending)

    def take(self, now_s: float) -> int:
        """The next chunk; lost ones come first."""
        chunk = self._pending.popleft()
        self._attempts[chunk] += 1
        self._begun_s[chunk] = now_s
        return chunk

    def next_late(self) -> tuple[int, float] | None:
        """The chunk that will be late next, and when.

        None if none can be: it is not known how long one takes, or all taken ones were late before.
        """
        if self._late_factor is None or len(self._took_s) < MIN_DONE:
            return None
        allowed_s = self._late_factor * statistics.median(self._took_s) + LATE_S
        taken = [(s, chunk) for chunk, s in self._begun_s.items() if chunk not in self._were_late]
        if not taken:
            return None
        begun_s, chunk = min(taken)
        return chunk, begun_s + allowed_s

    def late(self, chunk: int) -> None:
        """The chunk was taken from its worker because it is late."""
        self._were_late.add(chunk)
        self._attempts[chunk] -= 1
        del self._begun_s[chunk]
        self._pending.appendleft(chunk)

    def is_last_retry(self, chunk: int) -> bool:
        """Whether the chunk has been lost before and may not be lost again."""
        return 1 < self._attempts[chunk] == self._max_attempts

    def done(self, chunk: int, now_s: float) -> None:
        """The chunk has been written."""
        self._unfinished.remove(chunk)
        self._took_s.append(now_s - self._begun_s.pop(chunk))

    def lost(self, chunk: int) -> bool:
        """The chunk's worker was lost: True if it will be tried again."""
        del self._begun_s[chunk]
        if self._attempts[chunk] >= self._max_attempts:
            return False
        self._pending.appendleft(chunk)
        return True
