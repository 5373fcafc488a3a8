"""The hand-over between the assembler of one stream and its writer, and the wait for it.

It knows nothing of plans, nor of what is in a message. One task puts, one takes; both on the event
loop.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Outbox", "Wait"]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a stream waits for when it has nothing to send."""

    step: int
    reason: str


class Outbox:
    """Messages that are ready to be sent; its producer waits until they are taken."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._closed = False
        self._ready = asyncio.Event()  # something to take, or closed
        self._taken = asyncio.Event()  # nothing to take, or closed
        self._taken.set()

    def put(self, messages: Iterable[bytes]) -> None:
        """Add messages; they are dropped if the outbox is closed."""
        if not self._closed:
            self._messages.extend(messages)
        if self._messages:
            self._ready.set()
        if self._messages and not self._closed:
            self._taken.clear()

    async def taken(self) -> None:
        """Wait until all was taken, or the outbox is closed."""
        await self._taken.wait()

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
        if not self._messages:
            self._taken.set()
        if not self._messages and not self._closed:
            self._ready.clear()
        return taken

    def close(self) -> None:
        """Accept no more; what is ready can still be taken."""
        self._closed = True
        self._ready.set()
        self._taken.set()
