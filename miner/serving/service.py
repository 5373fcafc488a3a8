"""The rpcs of MiningService: check the request, do the work off the event loop, answer.

It knows gRPC and the wire format; rounds, plans and mining are behind the parts it is given.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from miner.data.row_store import RowStore
from miner.errors import (
    BusyError,
    LimitError,
    NotReadyError,
    RunConflictError,
    UnknownRunError,
)
from miner.rounds import RoundLog
from miner.serving.assemble import BatchAssembler
from miner.serving.backend import Backend
from miner.serving.config import ServingConfig
from miner.serving.difficulty import DifficultyBook
from miner.serving.metrics.meters import ServingMeters
from miner.serving.plan import RunParameters
from miner.serving.queries import Queries, query_negatives
from miner.serving.requests import (
    check_announcement,
    check_query,
    check_round,
    check_step,
    check_stream,
    read_difficulty,
    read_page,
    read_queries,
    read_row_ids,
    read_run_parameters,
    watch_interval_s,
)
from miner.serving.runs import RunStore
from miner.serving.samples import sample_parts
from miner.serving.status import round_page, status_response, whole_round
from miner.serving.status_codes import refusals
from miner.serving.streams import StreamSource, TripletStream
from miner.serving.uploads import received
from miner.serving.wire import PART_FRAME
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
    difficulties: DifficultyBook
    backend: Backend
    meters: ServingMeters = field(default_factory=ServingMeters)


class MiningService:
    """Answers the rpcs of ``mining.proto``. One per server, on one event loop.

    Args:
        parts: What it serves from.
        pool: Runs everything that touches the disk.
    """

    def __init__(self, parts: Parts, pool: Executor) -> None:
        self._parts = parts
        self._pool = pool
        self._source = StreamSource(BatchAssembler(parts.log, parts.row_store), pool, parts.meters)
        self._searcher = ThreadPoolExecutor(1, thread_name_prefix="queries")
        # Each writes as much as the catalog has identities, and takes turns: not in the pool.
        self._reporter = ThreadPoolExecutor(1, thread_name_prefix="difficulties")
        self._num_queries = 0
        self._streams: set[TripletStream] = set()
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work and let live streams end well; returns once they have, or in time."""
        self._draining.set()
        for stream in self._streams:
            stream.end_early()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d streams did not end within %g s", len(self._streams), timeout_s)
        self._searcher.shutdown(wait=False)  # the few that wait are answered
        self._reporter.shutdown(wait=False)

    # gRPC prescribes the names of the methods below.

    async def OpenRun(
        self, request: mining_pb2.OpenRunRequest, context: Any
    ) -> mining_pb2.OpenRunResponse:
        """Open a run, or find it again when the values are the same."""
        async with refusals(context):
            self._refuse_when_draining()
            parameters = read_run_parameters(request, self._parts.config.max_batch_rows)
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
            self._refuse_when_draining()  # or the drain, begun meanwhile, would not know of it
            stream = TripletStream(self._source, run, request, self._parts.config.max_message_bytes)
            self._streams.add(stream)
            self._idle.clear()
            producer = asyncio.create_task(stream.produce())
            try:
                while message := await stream.next_message(self._parts.config.heartbeat_s):
                    await context.write(message)
                if not self._draining.is_set():
                    await producer
            finally:
                producer.cancel()
                self._streams.remove(stream)
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
            with self._parts.meters.refused_weights():
                superseded = await self._parts.backend.announce(
                    request.step, request.uri, request.sha256
                )
            return mining_pb2.AnnounceWeightsResponse(superseded=superseded)

    async def UploadWeights(
        self, requests: AsyncIterator[mining_pb2.UploadWeightsRequest], context: Any
    ) -> mining_pb2.AnnounceWeightsResponse:
        """Receive weights into a file; the backend checks them as if they were announced."""
        del requests  # read by way of the context, with a limit to silence
        async with refusals(context):
            self._refuse_when_draining()
            backend, most = self._parts.backend, self._parts.config.max_upload_bytes
            upload = received(context.read, most, backend.uploads_folder, self._pool)
            async with upload as (header, path):
                with self._parts.meters.refused_weights():
                    superseded = await backend.announce(header.step, str(path), header.sha256)
            return mining_pb2.AnnounceWeightsResponse(superseded=superseded)

    async def QueryNegatives(
        self, request: mining_pb2.QueryNegativesRequest, context: Any
    ) -> mining_pb2.QueryNegativesResponse:
        """Search the live snapshot; one search at a time, and a few that wait."""
        async with refusals(context):
            self._refuse_when_draining()
            queries = read_queries(request)
            check_query(request, queries.num_queries)
            most = 1 + self._parts.config.max_waiting_queries
            if self._num_queries >= most:
                raise BusyError(f"{most} queries are being searched already: ask again later")
            self._num_queries += 1
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._searcher, self._query, request, queries)
            finally:
                self._num_queries -= 1

    async def GetSamples(self, request: mining_pb2.GetSamplesRequest, context: Any) -> None:
        """Write the samples as one Arrow stream, part by part."""
        async with refusals(context):
            self._refuse_when_draining()
            store, config = self._parts.row_store, self._parts.config
            row_ids_R = read_row_ids(request, store.num_rows)
            parts = sample_parts(store, row_ids_R, config.max_message_bytes - PART_FRAME)
            while (content := await self._off_loop(lambda: next(parts, None))) is not None:
                await context.write(mining_pb2.GetSamplesResponse(content=content))

    async def ReportDifficulty(
        self, request: mining_pb2.ReportDifficultyRequest, context: Any
    ) -> mining_pb2.ReportDifficultyResponse:
        """Note the losses of some identities, for the quotas of the next round."""
        async with refusals(context):
            self._refuse_when_draining()
            book = self._parts.difficulties
            identity_ids_I, losses_I = read_difficulty(request, book.num_identities)

            def report() -> int:
                self._parts.runs.get(request.run_id)
                return book.report(request.run_id, request.step, identity_ids_I, losses_I)

            known = await asyncio.get_running_loop().run_in_executor(self._reporter, report)
            return mining_pb2.ReportDifficultyResponse(num_identities=known)

    async def GetStatus(
        self, _request: mining_pb2.GetStatusRequest, context: Any
    ) -> mining_pb2.GetStatusResponse:
        """Answer also while draining."""
        async with refusals(context):
            return await self._status()

    async def WatchStatus(self, request: mining_pb2.WatchStatusRequest, context: Any) -> None:
        """Write the status now and when it has changed, until the drain."""
        async with refusals(context):
            self._refuse_when_draining()
            interval_s, shown = watch_interval_s(request), None
            while not self._draining.is_set():
                status = await self._status()
                if status != shown:
                    await context.write(status)
                    shown = status
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await self._draining.wait()

    async def ListRounds(
        self, request: mining_pb2.ListRoundsRequest, context: Any
    ) -> mining_pb2.ListRoundsResponse:
        """Sealed rounds, newest first, a page at a time."""
        async with refusals(context):
            most, before = read_page(request)
            return await self._off_loop(lambda: round_page(self._parts.log, most, before))

    async def GetRound(
        self, request: mining_pb2.GetRoundRequest, context: Any
    ) -> mining_pb2.GetRoundResponse:
        """All that is written about a round."""
        async with refusals(context):
            check_round(request)
            return await self._off_loop(lambda: whole_round(self._parts.log, request.round_id))

    async def RequestRefresh(
        self, _request: mining_pb2.RequestRefreshRequest, context: Any
    ) -> mining_pb2.RequestRefreshResponse:
        """Have the backend mine a round from the newest accepted weights."""
        async with refusals(context):
            self._refuse_when_draining()
            model_step = await self._parts.backend.request_refresh()
            return mining_pb2.RequestRefreshResponse(model_step=model_step)

    async def Drain(
        self, _request: mining_pb2.DrainRequest, context: Any
    ) -> mining_pb2.DrainResponse:
        """Have the service stopped; asking again does no harm."""
        async with refusals(context):
            num_streams = len(self._streams)
            await self._parts.backend.request_drain()
            return mining_pb2.DrainResponse(num_streams=num_streams)

    async def _status(self) -> mining_pb2.GetStatusResponse:
        parts = self._parts
        refresh = parts.backend.refresh_status()
        return await self._off_loop(
            lambda: status_response(parts.log, parts.runs, parts.row_store, refresh)
        )

    def _query(
        self, request: mining_pb2.QueryNegativesRequest, queries: Queries
    ) -> mining_pb2.QueryNegativesResponse:
        live = self._parts.backend.live_snapshot()
        ceiling = request.max_similarity if request.HasField("max_similarity") else math.inf
        found = query_negatives(live, queries, request.num_negatives, ceiling)
        return mining_pb2.QueryNegativesResponse(
            round_id=live.round_id,
            model_step=live.model_step,
            num_negatives=request.num_negatives,
            row_ids=found.row_ids_QK.astype("<i8").tobytes(),
            identity_ids=found.identity_ids_QK.astype("<i4").tobytes(),
            similarities=found.similarities_QK.astype("<f4").tobytes(),
        )

    def _open_run(self, parameters: RunParameters) -> mining_pb2.OpenRunResponse:
        self._refuse_more_runs(parameters.run_id)
        run, created = self._parts.runs.open(parameters)
        if created:
            extra = {"run": parameters.run_id}
            logger.info("run %s opened: %s", parameters.run_id, parameters, extra=extra)
        return mining_pb2.OpenRunResponse(
            dataset_fingerprint=self._parts.row_store.fingerprint,
            planned_steps=run.planned_steps,
            committed_step=run.committed_step,
            stride_steps=self._parts.runs.stride_steps,
            created=created,
        )

    def _refuse_when_draining(self) -> None:
        if self._draining.is_set():
            raise NotReadyError("the miner is draining: ask its successor, or again in a moment")

    def _refuse_more_runs(self, run_id: str) -> None:
        runs, most = self._parts.runs, self._parts.config.max_runs
        try:
            runs.get(run_id)
        except UnknownRunError:
            if len(runs.all()) >= most:
                raise LimitError(
                    f"run {run_id!r} would be one more than the {most} that serving.max_runs "
                    "allows: stop the miner and remove folders of ended runs from `runs` in its "
                    "state folder, or raise the limit"
                ) from None

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
