r"""The composition root of ``serve``: ingest, Ray, workers, serving actor, and the refresh loop.

ingest -> ray -> first round -> serving --(work)--> refreshing --(sealed | failed)--> serving
                                   \--(SIGTERM, Ctrl-C)--> draining -> stopped
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miner.app.accepted import AcceptedWeights, copies_folder, drop_older_copies, keep_copy
from miner.app.refresher import Refresher
from miner.app.schedule import RefreshSchedule, Work
from miner.app.service_actor import Announcement, MiningServiceActor
from miner.config import MinerConfig
from miner.data import Catalog, RowStore, ingest
from miner.embedding.fetch import fetch_weights
from miner.errors import CoalfaceError, NotReadyError, StaleWriterError, WeightsRefusedError
from miner.rounds import RoundLog, RoundWriter
from miner.serving.backend import RefreshState
from miner.workers.embed import EmbedPool
from miner.workers.snapshot import SnapshotStore

__all__ = ["ACTOR_NAME", "ENDPOINT_FILE", "run_service"]

logger = logging.getLogger(__name__)

ACTOR_NAME = "coalface-service"
ENDPOINT_FILE = "endpoint.json"
POLL_S = 0.5
RESTART_PAUSE_S = 0.3
DRAIN_TIMEOUT_S = 10.0


def run_service(config: MinerConfig) -> None:
    """Serve until SIGTERM or SIGINT; the last good round is served whatever a refresh does.

    Writes ``endpoint.json`` (address, pid) into the state folder once trainers can connect.

    Raises:
        CoalfaceError: The service could not be brought up.
    """
    config.state_dir.mkdir(parents=True, exist_ok=True)
    ingest(config.dataset, config.store_path)
    catalog = RowStore.open(config.store_path).catalog
    # In this order: Ray's own SIGTERM handler ends the driver without draining.
    with _local_or_cluster_ray(config), _stop_on_signals() as stop:
        _Service(config, catalog, stop).run()


class _Service:
    """What one ``serve`` holds together."""

    def __init__(self, config: MinerConfig, catalog: Catalog, stop: threading.Event) -> None:
        self._stop = stop
        self._config = config = _resolved(config)
        self._log = RoundLog(config.state_dir)
        self._snapshots = SnapshotStore(config.state_dir / "snapshots")
        self._pool = EmbedPool(
            config.workers, config.encoder, config.store_path, self._snapshots.root
        )
        self._actor: Any = None
        self._refresher = Refresher(
            config=config,
            catalog=catalog,
            writer=RoundWriter.open(self._log, config.rounds),
            pool=self._pool,
            snapshots=self._snapshots,
            show=self._show,
        )

    def run(self) -> None:
        try:
            newest = self._log.newest()
            if newest is None:
                self._refresher.refresh(None)
            self._actor = _start_actor(self._config)
            self._publish()
            threading.Thread(target=self._judge_announcements, name="judge", daemon=True).start()
            mined = self._log.manifest(self._log.newest() or 1).weights_sha256
            schedule = RefreshSchedule(self._config.refresh, mined, time.monotonic())
            while not self._stop.is_set():
                self._serve_once(schedule)
        finally:
            self._shut_down()

    def _serve_once(self, schedule: RefreshSchedule) -> None:
        """Wait a moment for work; do it."""
        work: Work | None = self._call("poll", POLL_S)
        if work is None:
            return
        reason = schedule.due(time.monotonic(), work)
        if reason is None:
            return
        schedule.started(time.monotonic(), work)
        logger.info("refresh: %s", reason)
        try:
            self._refresher.refresh(work.weights)
            self._retain(work)
        except StaleWriterError:
            raise  # another service mines now; this one must not go on beside it
        except CoalfaceError as exc:
            logger.error("refresh failed, the last good round stays: %s", exc)
        except Exception:
            logger.exception("refresh failed, the last good round stays")

    def _judge_announcements(self) -> None:
        """Have a worker try whatever is announced; runs beside a refresh."""
        while not self._stop.is_set():
            announced: Announcement | None = self._call("next_announcement", POLL_S)
            if announced is None:
                continue
            self._call("judge", announced.announcement_id, self._try(announced.weights))

    def _try(self, weights: AcceptedWeights) -> Path | CoalfaceError:
        """The service's own copy of good weights, or why they are refused."""
        try:
            self._pool.validate(weights.uri, weights.sha256)
            content = fetch_weights(weights.uri, weights.sha256, self._config.encoder)
            return keep_copy(self._config.state_dir, content, weights.sha256)
        except CoalfaceError as exc:
            return exc
        except Exception as exc:
            logger.exception("weights of step %d could not be checked", weights.step)
            return WeightsRefusedError(f"these weights could not be checked: {exc!r}")

    def _retain(self, work: Work) -> None:
        """Remove what is not needed any more; rounds only if the serving actor can be asked."""
        if work.weights is not None:
            drop_older_copies(self._config.state_dir, work.weights.sha256)
        needed: set[int] | None = self._call("needed_rounds")
        if needed is not None:
            self._refresher.writer.retain(self._config.rounds.keep_rounds, needed)

    def _show(self, state: RefreshState) -> None:
        if self._actor is not None:
            self._actor.show.remote(state)

    def _call(self, method: str, *arguments: Any) -> Any:
        """One call of the serving actor; None while Ray is restarting it."""
        import ray
        from ray.exceptions import RayActorError

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except RayActorError as exc:
            if not self._stop.wait(RESTART_PAUSE_S):
                logger.warning("the serving actor is away: %s", type(exc).__name__)
                self._show(self._refresher.state)  # the new one has forgotten it
            return None

    def _publish(self) -> None:
        import ray

        try:
            address = ray.get(self._actor.address.remote())
        except ray.exceptions.RayError as exc:
            reason = str(exc).strip().splitlines()[-1].removeprefix("miner.errors.")
            raise NotReadyError(f"the serving actor cannot start: {reason}") from exc
        endpoint = self._config.state_dir / ENDPOINT_FILE
        partial = endpoint.with_suffix(".partial")
        partial.write_text(json.dumps({"address": address, "pid": os.getpid()}), "utf-8")
        partial.replace(endpoint)
        logger.info("trainers connect to %s", address)

    def _shut_down(self) -> None:
        import ray

        (self._config.state_dir / ENDPOINT_FILE).unlink(missing_ok=True)
        if self._actor is not None:
            try:
                ray.get(self._actor.drain.remote(), timeout=DRAIN_TIMEOUT_S)
            except ray.exceptions.RayError as exc:
                logger.warning("streams were cut off, not drained: %s", exc)
            ray.kill(self._actor)
        self._pool.shutdown()


def _start_actor(config: MinerConfig) -> Any:
    """The serving actor, restarted by Ray for as long as the driver lives."""
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 8}
    return ray.remote(MiningServiceActor).options(name=ACTOR_NAME, **options).remote(config)


def _resolved(config: MinerConfig) -> MinerConfig:
    """Fill in what is only known at the start.

    Port 0 becomes a free one: a restarted actor must come back where its clients look. The workers
    may also read the service's own copies of weights.
    """
    serving, encoder = config.serving, config.encoder
    if serving.port == 0:
        with socket.socket() as probe:
            probe.bind((serving.host, 0))
            serving = serving.model_copy(update={"port": probe.getsockname()[1]})
    prefixes = (*encoder.weights_prefixes, str(copies_folder(config.state_dir).absolute()))
    encoder = encoder.model_copy(update={"weights_prefixes": prefixes})
    state_dir = config.state_dir.absolute()
    return config.model_copy(
        update={"serving": serving, "encoder": encoder, "state_dir": state_dir}
    )


@contextmanager
def _local_or_cluster_ray(config: MinerConfig) -> Iterator[None]:
    """Join the cluster of ``ray_address``, or start Ray on this machine; leave it at the end."""
    import ray

    address = config.ray_address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "local")
    # Ray's own default for its workers is 15: a trainer beside them would starve the stream.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address=address,
        namespace="coalface",
        include_dashboard=False if address == "local" else None,
        log_to_driver=True,
        logging_level=logging.WARNING,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
