"""Which chunks are still to be embedded, and how often each was tried. It does not know Ray.

pending -> taken -> done
   ^         |
   +-- lost -+   at most ``max_attempts`` times taken
   +-- late -+   once, and not counted

A chunk is late after some times the median, if a worker has nothing to do or a minute has passed.
One that was late before, and one of which nobody knows how long it takes, is lost after a time that
is long for any chunk: a sample that hangs must not be waited for without end.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable

__all__ = ["ChunkLedger"]

MIN_DONE = 3
"""Chunks that say how long one takes; the first also loads the weights."""
LATE_S = 1.0
"""Nothing is late sooner: a chunk of a moment may wait that long for a disk."""
LATE_ALONE_S = 60.0
"""Nor while all workers have work: another one must be started first."""


class ChunkLedger:
    """Hands out chunks, each at most ``max_attempts`` times. Times are of any steady clock."""

    def __init__(
        self,
        chunks: Iterable[int],
        max_attempts: int,
        late_factor: float | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Take the chunks in their order.

        Args:
            chunks: All that are to be embedded.
            max_attempts: How often each is handed out, late ones apart.
            late_factor: A chunk is late after so many times the median of those done; None: never.
            timeout_s: After so long one is lost; None: never.
        """
        self._pending = deque(chunks)
        self._unfinished = set(self._pending)
        self._attempts: Counter[int] = Counter()
        self._max_attempts = max_attempts
        self._late_factor, self._timeout_s = late_factor, timeout_s
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

    def next_overdue(self, *, is_anyone_idle: bool) -> tuple[int, float] | None:
        """The chunk that will be late or lost next, and when; None if none ever will."""
        taken = [
            (begun_s + self._allowed_s(chunk, is_anyone_idle), chunk)
            for chunk, begun_s in self._begun_s.items()
        ]
        at_s, chunk = min(taken, default=(math.inf, 0))
        return None if at_s == math.inf else (chunk, at_s)

    def overdue(self, chunk: int) -> bool:
        """The chunk is taken from its worker, as `next_overdue` said: True if it is tried again."""
        if not self._can_be_late(chunk):
            return self.lost(chunk)
        self._were_late.add(chunk)
        self._attempts[chunk] -= 1
        del self._begun_s[chunk]
        self._pending.appendleft(chunk)
        return True

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

    def _can_be_late(self, chunk: int) -> bool:
        is_known = self._late_factor is not None and len(self._took_s) >= MIN_DONE
        return is_known and chunk not in self._were_late

    def _allowed_s(self, chunk: int, is_anyone_idle: bool) -> float:
        late_s = 0.0
        if self._late_factor is not None and self._took_s:
            late_s = self._late_factor * statistics.median(self._took_s) + LATE_S
        if self._can_be_late(chunk):
            return late_s if is_anyone_idle else max(late_s, LATE_ALONE_S)
        return math.inf if self._timeout_s is None else max(late_s, self._timeout_s)
