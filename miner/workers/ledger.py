"""Which chunks are still to be embedded, and how often each was tried. It does not know Ray.

pending -> taken -> done
   ^         |
   +-- lost -+   at most ``max_attempts`` times taken
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

__all__ = ["ChunkLedger"]


class ChunkLedger:
    """Hands out chunks, each at most ``max_attempts`` times."""

    def __init__(self, chunks: Iterable[int], max_attempts: int) -> None:
        self._pending = deque(chunks)
        self._unfinished = set(self._pending)
        self._attempts: Counter[int] = Counter()
        self._max_attempts = max_attempts

    @property
    def finished(self) -> bool:
        """Whether every chunk is done."""
        return not self._unfinished

    @property
    def has_pending(self) -> bool:
        """Whether `take` has a chunk to give."""
        return bool(self._pending)

    def take(self) -> int:
        """The next chunk; lost ones come first."""
        chunk = self._pending.popleft()
        self._attempts[chunk] += 1
        return chunk

    def is_last_retry(self, chunk: int) -> bool:
        """Whether the chunk has been lost before and may not be lost again."""
        return 1 < self._attempts[chunk] == self._max_attempts

    def done(self, chunk: int) -> None:
        """The chunk has been written."""
        self._unfinished.remove(chunk)

    def lost(self, chunk: int) -> bool:
        """The chunk's worker was lost: True if it will be tried again."""
        if self._attempts[chunk] >= self._max_attempts:
            return False
        self._pending.appendleft(chunk)
        return True
