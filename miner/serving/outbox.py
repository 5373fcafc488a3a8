"""The hand-over between the assembler of one stream and its writer, bounded in bytes.

It knows nothing of plans, nor of what is in a batch. One task puts, one takes; both on the event
loop.
"""

import asyncio
from dataclasses import dataclass

__all__ = ["Outbox", "Wait"]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a stream waits for when it has nothing to send."""

    step: int
    reason: str


class Outbox:
    """Batches that are ready for the next message.

    A writer that keeps up gets each batch at once; for one that does not, batches gather up to
    ``max_bytes`` and then go as one message. So no ready batch is delayed, small batches share
    messages as soon as that helps, and a stalled client costs at most ``max_bytes`` here (or one
    batch, if that is larger).
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._batches: list[bytes] = []
        self._num_bytes = 0
        self._closed = False
        self._ready = asyncio.Event()  # something to take, or closed
        self._room = asyncio.Event()  # something was taken, or closed

    async def put(self, batch: bytes) -> None:
        """Add a batch, waiting until it fits; dropped if the outbox is closed."""
        while self._batches and self._num_bytes + len(batch) > self._max_bytes:
            self._room.clear()
            await self._room.wait()
        if not self._closed:
            self._batches.append(batch)
            self._num_bytes += len(batch)
            self._ready.set()

    async def take(self, timeout_s: float) -> list[bytes] | None:
        """All that is ready; empty if nothing came for ``timeout_s``; None at the end."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return []
        batches, self._batches, self._num_bytes = self._batches, [], 0
        self._room.set()
        if not self._closed:
            self._ready.clear()
        return batches or None

    def close(self) -> None:
        """Accept no more; what is ready can still be taken."""
        self._closed = True
        self._ready.set()
        self._room.set()
