"""What the service counts while it serves; one registry per server, nothing global.

It knows neither gRPC nor disk. Counting is safe among threads and raises nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from miner.errors import WeightsRefusedError
from miner.serving.metrics.histogram import StepHistogram

__all__ = ["RpcCall", "ServingMeters"]

PREFIX = "coalface_miner"
RPC_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STALENESS_BUCKETS = (0, 10, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)


class RpcCall:
    """One rpc under way.

    Attributes:
        code: Name of its gRPC status as it stands.
    """

    def __init__(self) -> None:
        self.code = "OK"
        self._begin_s = time.monotonic()
        self._answered_s: float | None = None

    def answered(self) -> None:
        """Note that the answer, or the first message of it, is there."""
        if self._answered_s is None:
            self._answered_s = time.monotonic() - self._begin_s

    @property
    def latency_s(self) -> float:
        """Seconds from the request to the answer, or to the first message of it."""
        self.answered()
        assert self._answered_s is not None
        return self._answered_s


class ServingMeters:
    """The counters of one server.

    Attributes:
        registry: What is scraped; others may add their collectors to it.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        self._rpcs = counter(
            "rpcs", "Requests that have ended, by rpc and gRPC status.", "method", "code"
        )
        self._rpc_seconds = Histogram(
            f"{PREFIX}_rpc_seconds",
            "Seconds from a request to its answer; of a stream, to its first message.",
            ["method"],
            buckets=RPC_BUCKETS_S,
            registry=registry,
        )
        self._streams = Gauge(
            f"{PREFIX}_streams_open", "StreamTriplets under way.", registry=registry
        )
        self._stream_bytes = counter(
            "stream_bytes", "Bytes of messages written to StreamTriplets, without gRPC's framing."
        )
        self._steps = counter(
            "stream_steps", "Batches made for StreamTriplets: one per step and rank."
        )
        self._over_stale = counter(
            "stream_steps_over_stale", "Those of them that were above their run's staleness bound."
        )
        self._staleness = StepHistogram(
            f"{PREFIX}_step_staleness_steps",
            "Staleness of the batches made for StreamTriplets: step minus the round's model step.",
            STALENESS_BUCKETS,
            registry,
        )
        self._stalled = counter(
            "stream_stalled_seconds",
            "Seconds that streams waited for their client to read, or for a round to be sealed.",
            "waiting_for",
        )
        self._stalls = {what: self._stalled.labels(what) for what in ("client", "round")}
        self._refused = counter(
            "weights_refused", "Announced or uploaded weights that were not accepted.", "kind"
        )
        for kind in WeightsRefusedError.KINDS:
            self._refused.labels(kind)

    @contextmanager
    def rpc(self, method: str) -> Iterator[RpcCall]:
        """Count an rpc, by the status that its call has when the block ends."""
        call = RpcCall()
        try:
            yield call
        finally:
            self._rpcs.labels(method, call.code).inc()
            self._rpc_seconds.labels(method).observe(call.latency_s)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream as open."""
        with self._streams.track_inprogress():
            yield

    def waited(self, what: Literal["client", "round"], seconds: float) -> None:
        """Count the seconds that a stream has waited."""
        self._stalls[what].inc(seconds)

    @contextmanager
    def refused_weights(self) -> Iterator[None]:
        """Count weights that are refused in the block."""
        try:
            yield
        except WeightsRefusedError as exc:
            self._refused.labels(exc.kind).inc()
            raise

    def made_steps(
        self, staleness_B: npt.NDArray[np.int64], over_stale_B: npt.NDArray[np.bool_]
    ) -> None:
        """Count batches that are made for a stream: [B] of each."""
        self._steps.inc(len(staleness_B))
        self._staleness.observe(staleness_B)
        self._over_stale.inc(int(np.count_nonzero(over_stale_B)))

    def sent_bytes(self, num_bytes: int) -> None:
        """Count a message of a stream."""
        self._stream_bytes.inc(num_bytes)
