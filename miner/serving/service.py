"""The rpcs of MiningService: check the request, do the work off the event loop, answer.

It knows gRPC and the wire format; rounds, plans and mining are behind the parts it is given.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from miner.data.row_store import RowStore
from miner.errors import NotReadyError, RunConflictError
from miner.rounds import RoundLog
from miner.serving.assemble import BatchAssembler
from miner.serving.backend import Backend
from miner.serving.config import ServingConfig
from miner.serving.plan import RunParameters
from miner.serving.requests import (
    check_announcement,
    check_step,
    check_stream,
    read_run_parameters,
)
from miner.serving.runs import RunStore
from miner.serving.status import status_response
from miner.serving.status_codes import refusals
from miner.serving.streams import StreamSource, TripletStream
from protos.coalface.v1 import mining_pb2

__all__ = ["MiningService", "Parts"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service stands on."""

    config: ServingConfig
    log: RoundLog
    runs: RunStore
    row_store: RowStore
    backend: Backend


class MiningService:
    """Answers the rpcs of ``mining.proto``. One per server, on one event loop.

    Args:
        parts: What it serves from.
        pool: Runs everything that touches the disk.
    """

    def __init__(self, parts: Parts, pool: Executor) -> None:
        self._parts = parts
        self._pool = pool
        self._source = StreamSource(BatchAssembler(parts.log, parts.row_store), pool)
        self._streams: set[TripletStream] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work and let live streams end well; returns once they have, or in time."""
        self._draining = True
        for stream in self._streams:
            stream.end_early()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d streams did not end within %g s", len(self._streams), timeout_s)

    # gRPC prescribes the names of the methods below.

    async def OpenRun(
        self, request: mining_pb2.OpenRunRequest, context: Any
    ) -> mining_pb2.OpenRunResponse:
        """Open a run, or find it again when the values are the same."""
        async with refusals(context):
            self._refuse_when_draining()
            parameters = read_run_parameters(request)
            kept = self._parts.row_store.fingerprint
            if request.dataset_fingerprint not in ("", kept):
                raise RunConflictError(
                    f"dataset_fingerprint {request.dataset_fingerprint!r} was asked for, this "
                    f"miner serves {kept!r}: point the trainer to the miner of its dataset"
                )
            return await self._off_loop(lambda: self._open_run(parameters))

    async def StreamTriplets(self, request: mining_pb2.StreamTripletsRequest, context: Any) -> None:
        """Write the batches of the steps asked for, with heartbeats while there is none."""
        async with refusals(context):
            self._refuse_when_draining()
            check_stream(request)
            run = await self._off_loop(lambda: self._parts.runs.get(request.run_id))
            stream = TripletStream(self._source, run, request, self._parts.config.max_message_bytes)
            self._streams.add(stream)
            self._idle.clear()
            producer = asyncio.create_task(stream.produce())
            try:
                while message := await stream.next_message(self._parts.config.heartbeat_s):
                    await context.write(message)
                if not self._draining:
                    await producer
            finally:
                producer.cancel()
                self._streams.discard(stream)
                if not self._streams:
                    self._idle.set()

    async def CommitStep(
        self, request: mining_pb2.CommitStepRequest, context: Any
    ) -> mining_pb2.CommitStepResponse:
        """Note which step the run's newest checkpoint holds."""
        async with refusals(context):
            check_step(request.step)
            committed = await self._off_loop(
                lambda: self._parts.runs.get(request.run_id).commit(request.step)
            )
            return mining_pb2.CommitStepResponse(committed_step=committed)

    async def AnnounceWeights(
        self, request: mining_pb2.AnnounceWeightsRequest, context: Any
    ) -> mining_pb2.AnnounceWeightsResponse:
        """Have the backend check new weights; the answer says whether they were taken."""
        async with refusals(context):
            self._refuse_when_draining()
            check_announcement(request)
            superseded = await self._parts.backend.announce(
                request.step, request.uri, request.sha256
            )
            return mining_pb2.AnnounceWeightsResponse(superseded=superseded)

    async def GetStatus(
        self, _request: mining_pb2.GetStatusRequest, context: Any
    ) -> mining_pb2.GetStatusResponse:
        """Answer also while draining."""
        parts = self._parts
        async with refusals(context):
            refresh = parts.backend.refresh_status()
            return await self._off_loop(
                lambda: status_response(parts.log, parts.runs, parts.row_store, refresh)
            )

    async def RequestRefresh(
        self, _request: mining_pb2.RequestRefreshRequest, context: Any
    ) -> mining_pb2.RequestRefreshResponse:
        """Have the backend mine a round from the newest accepted weights."""
        async with refusals(context):
            self._refuse_when_draining()
            model_step = await self._parts.backend.request_refresh()
            return mining_pb2.RequestRefreshResponse(model_step=model_step)

    def _open_run(self, parameters: RunParameters) -> mining_pb2.OpenRunResponse:
        run, created = self._parts.runs.open(parameters)
        if created:
            logger.info("run %s opened: %s", parameters.run_id, parameters)
        return mining_pb2.OpenRunResponse(
            dataset_fingerprint=self._parts.row_store.fingerprint,
            planned_steps=run.planned_steps,
            committed_step=run.committed_step,
            stride_steps=self._parts.runs.stride_steps,
            created=created,
        )

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise NotReadyError("the miner is draining: ask its successor, or again in a moment")

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
