"""The hand-over between the assembler of one stream and its writer, bounded in bytes.

It knows nothing of plans, nor of what is in a message. One task puts, one takes; both on the event
loop.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

__all__ = ["Outbox", "Wait"]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a stream waits for when it has nothing to send."""

    step: int
    reason: str


class Outbox:
    """Messages that are ready to be sent.

    A writer that keeps up gets each at once; for one that does not, messages gather up to
    ``max_bytes`` (or one, if that is larger), which is what a stalled client costs here.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: deque[bytes] = deque()
        self._num_bytes = 0
        self._closed = False
        self._ready = asyncio.Event()  # something to take, or closed
        self._room = asyncio.Event()  # something was taken, or closed

    async def put(self, message: bytes) -> None:
        """Add a message, waiting until it fits; dropped if the outbox is closed."""
        while self._messages and self._num_bytes + len(message) > self._max_bytes:
            self._room.clear()
            await self._room.wait()
        if not self._closed:
            self._messages.append(message)
            self._num_bytes += len(message)
            self._ready.set()

    async def take(self, timeout_s: float, max_bytes: int) -> list[bytes] | None:
        """The next message and what is ready behind it, up to ``max_bytes`` together.

        Returns:
            Empty if nothing came for ``timeout_s``; None at the end.
        """
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ready.wait()
            except TimeoutError:
                return []
        if not self._messages:
            return None
        taken = [self._messages.popleft()]
        num_bytes = len(taken[0])
        while self._messages and num_bytes + len(self._messages[0]) <= max_bytes:
            taken.append(self._messages.popleft())
            num_bytes += len(taken[-1])
        self._num_bytes -= num_bytes
        self._room.set()
        if not self._messages and not self._closed:
            self._ready.clear()
        return taken

    def close(self) -> None:
        """Accept no more; what is ready can still be taken."""
        self._closed = True
        self._ready.set()
        self._room.set()
