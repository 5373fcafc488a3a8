"""One stream of batches: plans and assembles ahead of the writer, off the event loop.

It knows neither gRPC contexts nor any other request. What it keeps per client is its outbox; all
else follows from the request, so a stream can be broken anywhere and asked for again.
"""

import asyncio
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass, fields

from miner.failpoints import reach
from miner.serving.assemble import BatchAssembler, BatchColumns
from miner.serving.outbox import Outbox, Wait
from miner.serving.parts import messages_of
from miner.serving.plan import Waiting
from miner.serving.runs import Run
from protos.coalface.v1 import mining_pb2

__all__ = ["StreamSource", "TripletStream"]

POLL_S = 0.25  # how soon a stream that waits notices a new round


@dataclass(frozen=True, slots=True)
class StreamSource:
    """Where the batches of all streams come from; ``pool`` runs what reads the disk."""

    assembler: BatchAssembler
    pool: Executor


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
        self._outbox = Outbox(max_message_bytes)
        self._cut: deque[mining_pb2.StreamTripletsResponse] = deque()
        self._wait = Wait(request.first_step, "its batch is being read")
        self._ended_early = False

    async def produce(self) -> None:
        """Fill the outbox with every step of the request, then close it.

        Raises:
            RunError, RoundLogError: What makes a step impossible; the steps before it still go.
        """
        begin = self._request.first_step
        try:
            for step in range(begin, begin + self._request.num_steps):
                if self._ended_early:
                    return
                await self._outbox.put(await self._next(step))
        finally:
            self._outbox.close()

    async def next_message(self, heartbeat_s: float) -> mining_pb2.StreamTripletsResponse | None:
        """What to write next; a heartbeat if no batch is ready for so long; None at the end."""
        if self._cut:
            return self._cut.popleft()
        batches = await self._outbox.take(heartbeat_s)
        if batches is None:
            return None
        if batches:
            self._cut.extend(messages_of(batches, self._max_message_bytes))
            return self._cut.popleft()
        heartbeat = mining_pb2.Heartbeat(next_step=self._wait.step, reason=self._wait.reason)
        return mining_pb2.StreamTripletsResponse(heartbeat=heartbeat)

    def end_early(self) -> None:
        """Let the stream end well after what is ready: the server is draining."""
        self._ended_early = True
        self._outbox.close()

    async def _next(self, step: int) -> mining_pb2.Batch:
        loop = asyncio.get_running_loop()
        self._wait = Wait(step, "its batch is being read")
        while True:
            made = await loop.run_in_executor(self._source.pool, self._make, step)
            if isinstance(made, mining_pb2.Batch):
                return made
            self._wait = Wait(step, made.reason)
            await asyncio.sleep(POLL_S)

    def _make(self, step: int) -> mining_pb2.Batch | Waiting:
        """Plan (durably) and assemble one step. Blocks; runs in the pool."""
        reach("streams.batch.begin")
        plan = self._run.plan(step, self._source.assembler.log)
        if isinstance(plan, Waiting):
            return plan
        request = self._request
        columns = self._source.assembler.batch(
            plan, request.rank, request.world_size, request.with_payload
        )
        reach("streams.batch.made")
        return _encode(columns)


def _encode(columns: BatchColumns) -> mining_pb2.Batch:
    names = (field.name for field in fields(columns))
    return mining_pb2.Batch(**{name: getattr(columns, name) for name in names})
