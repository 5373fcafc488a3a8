"""What a training process tells Prometheus; loaded only where ``metrics.port`` is set.

    open_meters --> listening --(end of the block)--> closed

One registry per process of a run, nothing global. It knows neither torch nor gRPC.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from trainer.config import MetricsConfig
from trainer.errors import ConfigError
from trainer.feed import FeedFigures, TripletBatch

__all__ = ["TrainingMeters", "open_meters"]

logger = logging.getLogger(__name__)

PREFIX = "coalface_trainer"
STEP_BUCKETS_S = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
STALENESS_BUCKETS = (0, 10, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)
OUTCOMES = ("accepted", "superseded", "refused", "failed", "replaced")


class StepFigures(Protocol):
    """What is told of a step; :class:`trainer.step.StepResult` has it."""

    @property
    def loss(self) -> float:
        """Of the global batch."""

    @property
    def gradient_norm(self) -> float:
        """Before the step."""

    @property
    def lr(self) -> float:
        """Learning rate of the step."""


class TrainingMeters(Collector):
    """The figures of one rank. Counting is safe among threads and raises nothing.

    Attributes:
        registry: What is scraped.
    """

    def __init__(self, run_id: str, rank: int) -> None:
        self.registry = registry = CollectorRegistry()
        self._who = {"run_id": run_id, "rank": str(rank)}
        self._outcomes: Callable[[], Mapping[str, int]] = dict
        self._figures: Callable[[], FeedFigures] = FeedFigures

        def counter(name: str, text: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, registry=registry)

        self._steps = counter("steps", "Optimizer steps taken by this process.")
        self._next_step = gauge("next_step", "The step of the run that comes next.")
        self._rows = counter("rows", "Rows embedded, of this rank's share.")
        self._triplets = counter("triplets", "Triplets in the batches, of this rank's share.")
        self._over_stale = counter("batches_over_stale", "Batches above the run's staleness bound.")
        self._rounds = counter("rounds", "Rounds begun; one that is repeated counts once.")
        self._round_id = gauge("round_id", "The round of the last batch.")
        self._stalled = counter("stalled_seconds", "Seconds spent waiting for batches.")
        self._loss = gauge("loss", "Loss of the last step, of the global batch.")
        self._gradient_norm = gauge("gradient_norm", "Norm of the gradient of the last step.")
        self._lr = gauge("learning_rate", "Of the last step.")
        self._step_seconds = Histogram(
            f"{PREFIX}_step_seconds",
            "Seconds of a step, without the wait for its batch.",
            buckets=STEP_BUCKETS_S,
            registry=registry,
        )
        self._staleness = Histogram(
            f"{PREFIX}_batch_staleness_steps",
            "Staleness of the batches trained on: step minus the round's model step.",
            buckets=STALENESS_BUCKETS,
            registry=registry,
        )
        self._last_round: int | None = None
        registry.register(self)

    def step(
        self, batch: TripletBatch, result: StepFigures, stalled_s: float, step_s: float
    ) -> None:
        """Count a step that was taken."""
        self._steps.inc()
        self._next_step.set(batch.step + 1)
        self._rows.inc(batch.num_rows)
        self._triplets.inc(batch.num_triplets)
        self._over_stale.inc(int(batch.over_stale))
        self._rounds.inc(int(batch.round_id != self._last_round))
        self._last_round = batch.round_id
        self._round_id.set(batch.round_id)
        self._stalled.inc(stalled_s)
        self._loss.set(result.loss)
        self._gradient_norm.set(result.gradient_norm)
        self._lr.set(result.lr)
        self._step_seconds.observe(step_s)
        self._staleness.observe(batch.staleness_steps)

    def follow_announcements(self, outcomes: Callable[[], Mapping[str, int]]) -> None:
        """Tell, at each scrape, how many announcements had which outcome."""
        self._outcomes = outcomes

    def follow_feed(self, figures: Callable[[], FeedFigures]) -> None:
        """Tell, at each scrape, how the connection to the miner does."""
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """What is read when it is scraped."""
        yield InfoMetricFamily(PREFIX, "Which process this is.", value=self._who)
        counts = dict(self._outcomes())
        announcements = CounterMetricFamily(
            f"{PREFIX}_announcements",
            "Weights offered to the miner, by outcome.",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            announcements.add_metric([outcome], counts.get(outcome, 0))
        yield announcements
        figures = self._figures()
        text = "Connections to the miner given up for a new one."
        yield CounterMetricFamily(f"{PREFIX}_reconnects", text, value=figures.num_reconnects)
        text = "Batches read ahead that are at hand."
        yield GaugeMetricFamily(f"{PREFIX}_buffered_batches", text, value=figures.num_buffered)


@contextmanager
def open_meters(config: MetricsConfig, run_id: str, rank: int) -> Iterator[TrainingMeters]:
    """Serve a rank's figures while the block runs, on ``config.port + rank`` (0: any free port).

    Raises:
        ConfigError: The port is taken, or there is no such host on this machine.
    """
    assert config.port is not None
    meters = TrainingMeters(run_id, rank)
    port = config.port + rank if config.port else 0
    try:
        server, thread = start_http_server(port, config.host, meters.registry)
    except (OSError, OverflowError) as exc:
        raise ConfigError(
            f"rank {rank} cannot serve metrics on metrics.host={config.host!r}, port {port} "
            f"(metrics.port + rank): {exc}; choose another port, or leave metrics.port out"
        ) from exc
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{server.server_port}"
    logger.info("metrics are on http://%s/metrics", address, extra={"address": address})
    try:
        yield meters
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
