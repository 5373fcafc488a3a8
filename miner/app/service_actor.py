"""The serving actor: a gRPC server on an event loop of its own, inside a named Ray actor.

Ray restarts the actor when its process dies, and the constructor alone brings everything back: log,
runs and accepted weights are on disk, the port is an argument. It neither mines nor judges weights:
the driver asks it what there is to do, and tells it what came out.

    constructor --> serving --drain()--> drained
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import uuid
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from miner.app.accepted import AcceptedWeights, copies_folder, read_accepted, write_accepted
from miner.app.archive import open_runs
from miner.app.live import LiveRound
from miner.app.schedule import Work
from miner.config import MinerConfig
from miner.data import RowStore
from miner.errors import CoalfaceError, ConfigError, WeightsRefusedError
from miner.logs import LogFormat, set_up_worker_logs
from miner.rounds import RoundLog
from miner.serving.backend import RefreshState
from miner.serving.metrics.endpoint import MetricsEndpoint
from miner.serving.queries import LiveSnapshot
from miner.serving.server import MiningServer, start_server
from miner.workers.snapshot import open_snapshots

__all__ = ["Announcement", "MiningServiceActor"]

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """Weights that wait for the driver's judgement."""

    announcement_id: str
    weights: AcceptedWeights


class MiningServiceActor:
    """Serves rounds over gRPC; :mod:`miner.app.serve` makes a Ray actor of it.

    Its public methods are called by the driver, each on a thread of Ray's; those of
    :class:`miner.serving.backend.Backend` by the server, on its event loop, where nothing may wait
    for the disk, but for ``live_snapshot``, which has a thread.

    Args:
        config: The resolved configuration, with the port that clients know.
        log_format: Of the driver.
    """

    def __init__(self, config: MinerConfig, log_format: LogFormat = LogFormat.TEXT) -> None:
        set_up_worker_logs(log_format, "serving")
        self._config = config
        self._log = RoundLog(config.state_dir)
        self._runs = open_runs(config)
        self._refresh = RefreshState()
        self._weights = read_accepted(config.state_dir)
        self._request_id = ""
        self._drain_requested = False
        self._store = RowStore.open(config.store_path)
        snapshots = open_snapshots(config.snapshots_place, config.cache_path)
        self._live = LiveRound(self._log, snapshots, self._store)
        self._changed = threading.Event()
        self._announced: queue.Queue[Announcement] = queue.Queue()
        self._verdicts: dict[str, Future[Path]] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True).start()
        self._announcing = asyncio.Lock()
        self._server: MiningServer = self._run(self._start()).result(START_TIMEOUT_S)
        self._metrics = self._open_metrics()

    def address(self) -> str:
        """host:port that trainers connect to."""
        return self._server.address

    def metrics_address(self) -> str:
        """host:port that Prometheus scrapes; empty: nowhere."""
        return self._metrics.address if self._metrics else ""

    def poll(self, timeout_s: float) -> Work:
        """What there is to mine; returns at once on news, otherwise after ``timeout_s``."""
        self._changed.wait(timeout_s)
        self._changed.clear()
        planned = max((run.planned_steps for run in self._runs.all()), default=0)
        return Work(self._weights, self._request_id, planned)

    def next_announcement(self, timeout_s: float) -> Announcement | None:
        """The oldest announcement that nobody has judged; None if there is none in time."""
        try:
            return self._announced.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def judge(self, announcement_id: str, verdict: Path | CoalfaceError) -> None:
        """Hand over the copy of good weights, or why they are refused; nobody may be waiting."""
        waiting = self._verdicts.pop(announcement_id, None)
        if waiting is None or not waiting.set_running_or_notify_cancel():
            return
        if isinstance(verdict, CoalfaceError):
            waiting.set_exception(verdict)
        else:
            waiting.set_result(verdict)

    def is_drain_requested(self) -> bool:
        """Whether a client has asked for the service to be stopped."""
        return self._drain_requested

    def show(self, state: RefreshState) -> None:
        """Take over what GetStatus tells about the refresh."""
        self._refresh = state

    def needed_rounds(self) -> set[int]:
        """Rounds that a run may still ask for."""
        return self._runs.needed_rounds(idle_run_s=self._config.serving.idle_run_s)

    def drain(self) -> None:
        """End every stream at a step boundary and stop; returns when that is done."""
        grace_s = self._config.serving.drain_grace_s
        self._run(self._server.drain(grace_s)).result(grace_s + 5.0)

    async def announce(self, step: int, uri: str, sha256: str) -> bool:
        """Have weights judged and keep them as the newest; True if newer ones wait to be mined.

        Raises:
            WeightsRefusedError: With the reason.
            DiskError: Good weights cannot be kept, for now.
        """
        announced = AcceptedWeights(step, uri, sha256.lower())
        async with self._announcing:  # in the order of arrival
            newest = self._weights
            if newest and (newest.step, newest.sha256) == (step, announced.sha256):
                return False
            copy = await self._judgement(announced)
            if newest and newest.step > step:
                is_waiting = not await asyncio.to_thread(self._is_mined, newest)
                if is_waiting:
                    return True
            weights = replace(announced, uri=str(copy))
            await asyncio.to_thread(write_accepted, self._config.state_dir, weights)
            self._weights = weights
        extra = {"model_step": step, "sha256": weights.sha256}
        logger.info("accepted weights of step %d (%s)", step, weights.sha256[:12], extra=extra)
        self._changed.set()
        return False

    async def request_refresh(self) -> int:
        """Ask the driver for a round; the step of the weights that it will be mined with.

        Raises:
            WeightsRefusedError: No weights have been accepted yet.
        """
        if self._weights is None:
            raise WeightsRefusedError(
                "no weights have been accepted yet, so there is nothing to mine with: "
                "announce weights, and they are mined by themselves"
            )
        self._request_id = uuid.uuid4().hex
        self._changed.set()
        return self._weights.step

    async def request_drain(self) -> None:
        """Have the driver end the service, as SIGTERM does."""
        logger.info("a client has asked for the service to be stopped")
        self._drain_requested = True
        self._changed.set()

    def refresh_status(self) -> RefreshState:
        """What the driver showed last."""
        return self._refresh

    def live_snapshot(self) -> LiveSnapshot:
        """The snapshot of the newest mined round."""
        return self._live.snapshot()

    @property
    def uploads_folder(self) -> Path:
        """Where announced weights may lie: beside the service's own copies."""
        return copies_folder(self._config.state_dir)

    async def _start(self) -> MiningServer:
        return await start_server(self._config.serving, self._log, self._runs, self._store, self)

    def _open_metrics(self) -> MetricsEndpoint | None:
        """The driver has tried the port; should it be taken by now, serving matters more."""
        if self._config.metrics.port is None:
            return None
        try:
            return MetricsEndpoint(self._config.metrics, self._server.registry)
        except ConfigError as exc:
            logger.error("serving without metrics: %s", exc)
            return None

    async def _judgement(self, weights: AcceptedWeights) -> Path:
        announcement = Announcement(uuid.uuid4().hex, weights)
        verdict: Future[Path] = Future()
        self._verdicts[announcement.announcement_id] = verdict
        self._announced.put(announcement)
        try:
            return await asyncio.wrap_future(verdict)
        except WeightsRefusedError as exc:
            extra = {"model_step": weights.step, "sha256": weights.sha256, "kind": exc.kind}
            logger.warning("refused weights of step %d: %s", weights.step, exc, extra=extra)
            raise
        finally:
            self._verdicts.pop(announcement.announcement_id, None)

    def _is_mined(self, weights: AcceptedWeights) -> bool:
        newest = self._log.newest()
        return newest is not None and self._log.manifest(newest).weights_sha256 == weights.sha256

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
