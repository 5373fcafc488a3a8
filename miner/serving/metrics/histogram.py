"""A histogram that takes many values at once: the client library's takes one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["StepHistogram"]


class StepHistogram(Collector):
    """Whole numbers, counted by bucket. Safe among threads."""

    def __init__(
        self, name: str, text: str, buckets: tuple[int, ...], registry: CollectorRegistry
    ) -> None:
        """Start empty; ``buckets`` are upper bounds, ascending."""
        self._name, self._text = name, text
        self._bounds = np.array(buckets, np.int64)
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: npt.NDArray[np.int64]) -> None:
        """Count some values."""
        places = np.searchsorted(self._bounds, values, side="left")
        counts = np.bincount(places, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += int(values.sum())

    def collect(self) -> Iterator[Metric]:
        """What is scraped."""
        with self._lock:
            below, total = np.cumsum(self._counts).tolist(), self._sum
        names = [*map(str, self._bounds.astype(float).tolist()), "+Inf"]
        buckets = list(zip(names, below, strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=total)
