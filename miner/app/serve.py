r"""The composition root of ``serve``: ingest, Ray, workers, serving actor, and the refresh loop.

ingest -> ray -> first round -> serving --(work)--> refreshing --(sealed | failed)--> serving
                                   \--(SIGTERM, Ctrl-C)--> draining -> stopped
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miner.app.accepted import AcceptedWeights, drop_older_copies, keep_copy
from miner.app.archive import open_archive, open_runs
from miner.app.cluster import joined_ray, reason_of, resolved, start_actor, told_of
from miner.app.endpoint import ENDPOINT_FILE
from miner.app.refresher import Refresher
from miner.app.schedule import RefreshSchedule, Work
from miner.app.service_actor import Announcement
from miner.config import MinerConfig
from miner.data import Catalog, RowStore, ingest
from miner.embedding.fetch import fetch_weights
from miner.errors import (
    CoalfaceError,
    DatasetError,
    NotReadyError,
    RoundLogError,
    StaleWriterError,
    WeightsRefusedError,
)
from miner.rounds import RoundLog, RoundWriter
from miner.rounds.archive import Archive
from miner.rounds.restore import restore_log
from miner.serving.backend import RefreshState
from miner.serving.binding import check_binding, check_files
from miner.workers.demand import requested
from miner.workers.embed import EmbedPool
from miner.workers.remote import result_of
from miner.workers.snapshot import open_snapshots

__all__ = ["ENDPOINT_FILE", "run_service"]

logger = logging.getLogger(__name__)

POLL_S = 0.5
RESTART_PAUSE_S = 0.3
MAX_AWAY_S = 60.0  # without a serving actor
DRAIN_TIMEOUT_S = 10.0


def run_service(config: MinerConfig) -> None:
    """Serve until SIGTERM or SIGINT; the last good round is served whatever a refresh does.

    Writes ``endpoint.json`` (address, pid) into the state folder once trainers can connect.

    Raises:
        CoalfaceError: The service could not be brought up.
    """
    # Both here: the server itself starts only after a first round.
    check_binding(config.serving, config.metrics)
    check_files(config.serving)
    config.state_dir.mkdir(parents=True, exist_ok=True)
    archive = open_archive(config.rounds)
    if archive is not None:
        restore_log(config.state_dir, archive)
    ingest(config.dataset, config.store_path)
    catalog = RowStore.open(config.store_path).catalog
    _require_same_dataset(RoundLog(config.state_dir), catalog)
    # In this order: Ray's own SIGTERM handler ends the driver without draining.
    with joined_ray(config), requested(config.workers), _stop_on_signals() as stop:
        _Service(config, catalog, stop, archive).run()


class _Service:
    """What one ``serve`` holds together."""

    def __init__(
        self,
        config: MinerConfig,
        catalog: Catalog,
        stop: threading.Event,
        archive: Archive | None = None,
    ) -> None:
        self._stop = stop
        self._config = config = resolved(config)
        self._log = RoundLog(config.state_dir)
        self._snapshots = open_snapshots(config.snapshots_place, config.cache_path)
        self._pool = EmbedPool(
            config.workers, config.encoder, config.store_path, self._snapshots, config.dataset
        )
        self._actor: Any = None
        self._draining = threading.Lock()
        self._away_since_s: float | None = None
        self._poll_failure = ""
        self._failure: Exception | None = None
        self._judge = self._thread(self._judge_announcements, "judge")
        self._refresher = Refresher(
            config=config,
            catalog=catalog,
            writer=RoundWriter.open(self._log, config.rounds, archive),
            pool=self._pool,
            snapshots=self._snapshots,
            show=self._show,
            is_stopping=stop.is_set,
        )

    def run(self) -> None:
        try:
            if self._config.rounds.archive_uri is not None:
                open_runs(self._config).restore()
            if self._log.newest() is None:
                self._refresher.refresh(None)
            self._actor = start_actor(self._config, self._log.log_id)
            self._publish()
            self._judge.start()
            self._thread(self._watch_for_drain, "watch").start()
            # At once, also in the middle of a refresh: a stopped Ray job has three seconds.
            self._thread(self._drain_on_stop, "drain").start()
            mined = self._log.manifest(self._log.newest() or 1).weights_sha256
            schedule = RefreshSchedule(self._config.refresh, mined, time.monotonic())
            while not self._stop.is_set():
                self._serve_once(schedule)
        finally:
            self._shut_down()
        if self._failure is not None:
            raise self._failure

    def _thread(self, work: Callable[[], None], name: str) -> threading.Thread:
        """A thread beside the loop; what ends it early ends the service, which raises it."""

        def run() -> None:
            try:
                work()
            except Exception as exc:
                if self._stop.is_set():
                    logger.warning("thread %s ended while the service stopped: %r", name, exc)
                    return
                self._failure = exc
                self._stop.set()

        return threading.Thread(target=run, name=name, daemon=True)

    def _serve_once(self, schedule: RefreshSchedule) -> None:
        """Wait a moment for work; do it."""
        work = self._poll()
        if work is None:
            return
        reason = schedule.due(time.monotonic(), work)
        if reason is None:
            return
        schedule.started(time.monotonic(), work)
        model_step = work.weights.step if work.weights else 0
        extra = {"reason": reason, "model_step": model_step}
        logger.info("refresh: %s", reason, extra=extra)
        try:
            self._refresher.refresh(work.weights)
        except StaleWriterError:
            raise  # another service mines now; this one must not go on beside it
        except CoalfaceError as exc:
            logger.error("refresh failed, the last good round stays: %s", exc, extra=extra)
            return
        except Exception:
            logger.exception("refresh failed, the last good round stays", extra=extra)
            return
        try:
            self._retain(work)
        except (RoundLogError, OSError) as exc:
            logger.error("what is not needed any more could not be removed: %s", exc)

    def _poll(self) -> Work | None:
        """What there is to mine; None is no news, which a poll that fails brings as well."""
        from ray.exceptions import RayTaskError

        try:
            work: Work | None = self._call("poll", POLL_S)
        except (RoundLogError, RayTaskError) as exc:
            failure = type(getattr(exc, "cause", exc)).__name__
            if failure != self._poll_failure:
                logger.error("what there is to mine cannot be seen, for now: %s", exc)
            self._poll_failure = failure
            self._stop.wait(POLL_S)
            return None
        self._poll_failure = ""
        return work

    def _judge_announcements(self) -> None:
        """Have a worker try whatever is announced; runs beside a refresh."""
        while not self._stop.is_set():
            announced: Announcement | None = self._call("next_announcement", POLL_S)
            if announced is None:
                continue
            self._call("judge", announced.announcement_id, self._try(announced.weights))

    def _watch_for_drain(self) -> None:
        """Stop when a client asks for it; by itself, as refreshes and judgements take long."""
        while not self._stop.wait(POLL_S):
            if self._call("is_drain_requested"):
                self._stop.set()

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
            return WeightsRefusedError(f"these weights could not be checked: {told_of(exc)}")

    def _retain(self, work: Work) -> None:
        """Remove what is not needed any more; rounds only if the serving actor can be asked."""
        if work.weights is not None:
            drop_older_copies(self._config.state_dir, work.weights.sha256)
        needed: set[int] | None = self._call("needed_rounds")
        if needed is not None:
            self._refresher.writer.retain(self._config.rounds.keep_rounds, needed)

    def _show(self, state: RefreshState) -> None:
        actor = self._actor
        if actor is not None:
            actor.show.remote(state)

    def _call(self, method: str, *arguments: Any) -> Any:
        """One call of the serving actor; None while Ray is restarting it.

        Raises:
            NotReadyError: It has been away for `MAX_AWAY_S`, as the threads have seen together.
            CoalfaceError: The actor raised it.
            RayTaskError: The actor raised something else.
        """
        from ray.exceptions import RayActorError

        actor = self._actor
        if actor is None:  # drained
            return None
        try:
            answer = result_of(getattr(actor, method).remote(*arguments))
        except RayActorError as exc:
            now_s = time.monotonic()
            since_s = self._away_since_s = self._away_since_s or now_s
            if now_s - since_s > MAX_AWAY_S:
                raise NotReadyError(
                    f"the serving actor does not come back: {reason_of(exc)}"
                ) from exc
            if not self._stop.wait(RESTART_PAUSE_S):
                logger.warning("the serving actor is away: %s", type(exc).__name__)
                self._show(self._refresher.state)  # the new one has forgotten it
            return None
        self._away_since_s = None
        return answer

    def _publish(self) -> None:
        import ray

        try:
            address = ray.get(self._actor.address.remote())
            metrics = ray.get(self._actor.metrics_address.remote())
        except ray.exceptions.RayError as exc:
            raise NotReadyError(f"the serving actor cannot start: {reason_of(exc)}") from exc
        endpoint = self._config.state_dir / ENDPOINT_FILE
        partial = endpoint.with_suffix(".partial")
        told = {"address": address, "pid": os.getpid(), "metrics": metrics}
        partial.write_text(json.dumps(told), "utf-8")
        partial.replace(endpoint)
        logger.info("trainers connect to %s", address, extra={"address": address})
        if metrics:
            logger.info("metrics are on http://%s/metrics", metrics, extra={"address": metrics})

    def _drain_on_stop(self) -> None:
        self._stop.wait()
        self._drain()

    def _drain(self) -> None:
        """End the streams, once; whoever comes second waits for it."""
        import ray

        with self._draining:
            actor, self._actor = self._actor, None
            if actor is None:
                return
            try:
                ray.get(actor.drain.remote(), timeout=DRAIN_TIMEOUT_S)
                logger.info("drained: every stream has ended at a step boundary")
            except ray.exceptions.RayError as exc:
                logger.warning("streams were cut off, not drained: %s", exc)
            ray.kill(actor)

    def _shut_down(self) -> None:
        self._stop.set()
        self._drain()
        if self._judge.is_alive():
            self._judge.join(DRAIN_TIMEOUT_S)
        self._pool.shutdown()
        endpoint = self._config.state_dir / ENDPOINT_FILE
        if endpoint.exists() and json.loads(endpoint.read_text("utf-8"))["pid"] == os.getpid():
            endpoint.unlink()


def _require_same_dataset(log: RoundLog, catalog: Catalog) -> None:
    """Row ids of one dataset mean nothing in another."""
    newest = log.newest()
    if newest is None:
        return
    mined = log.manifest(newest).dataset_fingerprint
    if mined != catalog.fingerprint:
        raise DatasetError(
            f"the rounds in {log.root} were mined from the dataset with fingerprint {mined[:12]}, "
            f"the row store now holds {catalog.fingerprint[:12]}: choose another state_dir; with "
            "the snapshots_dir of this one, rows of unchanged files are not embedded again"
        )


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def set_elsewhere(*_: object) -> None:
        # The main thread may hold the event's own lock at this moment, while it waits for it.
        threading.Thread(target=stop.set, daemon=True).start()

    previous = {
        number: signal.signal(number, set_elsewhere) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
