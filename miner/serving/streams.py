"""One stream of batches: plans and assembles ahead of the writer, off the event loop.

It knows neither gRPC contexts nor any other request. What it keeps per client is what is made and
not sent, and as much again that is being made; all else follows from the request, so a stream can
be broken anywhere and asked for again.

    being made -> held -> outbox -> sent        what is held goes on while the next is being made
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from miner.failpoints import reach
from miner.serving.assemble import BatchAssembler, Made
from miner.serving.metrics.meters import ServingMeters
from miner.serving.outbox import Outbox, Wait
from miner.serving.plan import Waiting
from miner.serving.runs import Run
from miner.serving.wire import joined
from protos.coalface.v1 import mining_pb2

__all__ = ["StreamSource", "TripletStream"]

POLL_S = 0.25
"""How soon a stream that waits notices a new round."""
ROW_BYTES = 64
"""Of a batch without samples, as a rule at most; a round of many triplets has more."""
AHEAD = 4
"""Messages that are made at a time, while as many are sent."""
HELD_S = 0.02
"""How long made messages wait at most for the moment at which the next are only copied."""


@dataclass(frozen=True, slots=True)
class StreamSource:
    """Where the batches of all streams come from; ``pool`` runs what reads the disk."""

    assembler: BatchAssembler
    pool: Executor
    meters: ServingMeters


class TripletStream:
    """The batches of one request, in step order, as fast as the writer takes them."""

    def __init__(
        self,
        source: StreamSource,
        run: Run,
        request: mining_pb2.StreamTripletsRequest,
        max_message_bytes: int,
    ) -> None:
        self._source = source
        self._run = run
        self._request = request
        self._max_message_bytes = max_message_bytes
        self._outbox = Outbox()
        self._held: list[bytes] = []  # made, and not handed over yet
        self._held_s = 0.0 if request.with_payload else HELD_S  # samples take longer to copy
        largest = (
            max_message_bytes if request.with_payload else run.parameters.batch_rows * ROW_BYTES
        )
        self._at_a_time = max(1, max_message_bytes // largest)  # until it is known
        self._due: deque[bytes] = deque()
        self._wait = Wait(request.first_step, "its batch is being read")
        self._ended_early = False

    async def produce(self) -> None:
        """Fill the outbox with every step of the request, then close it.

        Raises:
            RunError, RoundLogError: What makes a step impossible; the steps before it still go.
        """
        step = self._request.first_step
        stop = step + self._request.num_steps
        try:
            while step < stop and not self._ended_early:
                made = await self._next(step, min(stop - step, self._at_a_time))
                step += made.steps.num_steps
                num_bytes = sum(map(len, made.messages))
                self._at_a_time = self._enough_after(made, num_bytes)
                await self._outbox.taken()
                self._held = made.messages
                del made
                if num_bytes > (AHEAD + 1) * self._max_message_bytes:  # nothing is made beside it
                    self._hand_over()
                    await self._outbox.taken()
        finally:
            self._hand_over()  # the steps before one that is impossible
            self._outbox.close()

    async def next_message(self, heartbeat_s: float) -> bytes | None:
        """The next message, encoded; a heartbeat if no batch is ready in time; None at the end."""
        if self._due:
            return self._due.popleft()
        ready = await self._outbox.take(heartbeat_s, self._max_message_bytes)
        if ready is None:
            return None
        if len(ready) == 1:
            return ready[0]
        if ready:
            self._due.extend(joined(ready))
            return self._due.popleft()
        heartbeat = mining_pb2.Heartbeat(next_step=self._wait.step, reason=self._wait.reason)
        message: bytes = mining_pb2.StreamTripletsResponse(heartbeat=heartbeat).SerializeToString()
        return message

    def end_early(self) -> None:
        """Let the stream end well after what is ready: the server is draining."""
        self._ended_early = True
        self._hand_over()
        self._outbox.close()

    def _hand_over(self) -> None:
        """Let the writer have what is made."""
        messages, self._held = self._held, []
        self._outbox.put(messages)

    def _enough_after(self, made: Made, num_bytes: int) -> int:
        """Steps for as many messages as are made at a time, if they are like those."""
        num_messages = min(AHEAD, 1 + len(made.messages))  # few at first: the client waits
        step_bytes = -(-num_bytes // made.steps.num_steps)
        in_a_message = max(1, self._max_message_bytes // step_bytes)
        message_bytes = step_bytes * in_a_message
        return in_a_message * max(1, num_messages * self._max_message_bytes // message_bytes)

    async def _next(self, step: int, most: int) -> Made:
        """This step and some that follow it; what was made before goes out meanwhile.

        It goes out when copying begins, or else the writer would keep the interpreter's lock and
        copying would not begin before all is written. It does not wait for a slow disk, though.
        """
        loop = asyncio.get_running_loop()
        self._wait = Wait(step, "its batch is being read")
        while True:
            begin_s = time.monotonic()
            going_out = loop.call_later(self._held_s, self._hand_over)
            try:
                made = await loop.run_in_executor(self._source.pool, self._make, step, most, loop)
            finally:
                going_out.cancel()
            if not isinstance(made, Waiting):
                return made
            self._hand_over()
            self._wait = Wait(step, made.reason)
            await asyncio.sleep(POLL_S)
            self._source.meters.waited("round", time.monotonic() - begin_s)

    def _make(self, step: int, most: int, loop: asyncio.AbstractEventLoop) -> Made | Waiting:
        """Plan (durably) and assemble some steps. Blocks; runs in the pool."""
        reach("streams.batch.begin")
        source, request = self._source, self._request
        steps = self._run.plan_some(step, most, source.assembler.log)
        if isinstance(steps, Waiting):
            return steps
        made = source.assembler.messages(
            steps,
            request.rank,
            request.world_size,
            request.with_payload,
            max_bytes=self._max_message_bytes,
            enough_bytes=AHEAD * self._max_message_bytes,
            before_copying=lambda: _in_loop(loop, self._hand_over),
        )
        reach("streams.batch.made")
        source.meters.made_steps(made.steps.staleness_B, made.steps.over_stale_B)
        return made


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop ended
        loop.call_soon_threadsafe(call)
