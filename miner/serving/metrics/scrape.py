"""Puts together what is read at a scrape: a part that fails is marked, the others are told.

It knows neither disk nor network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from miner.serving.metrics.meters import PREFIX

__all__ = ["ScrapedParts"]

logger = logging.getLogger(__name__)


class ScrapedParts(Collector):
    """A collector made of named parts. A part that raises is missing whole from that scrape."""

    def __init__(self, parts: Mapping[str, Callable[[], Iterable[Metric]]]) -> None:
        self._parts = dict(parts)
        self._told: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """Every part's figures, and ``scrape_failed`` by part."""
        failed = GaugeMetricFamily(
            f"{PREFIX}_scrape_failed",
            "1 for a part of these figures that could not be read; the log says why.",
            labels=["part"],
        )
        for name, read in self._parts.items():
            metrics = self._read(name, read)
            failed.add_metric([name], float(metrics is None))
            yield from metrics or ()
        yield failed

    def _read(self, name: str, read: Callable[[], Iterable[Metric]]) -> list[Metric] | None:
        try:
            metrics = list(read())
        except Exception as exc:  # whatever it is, the other figures must be told
            text = repr(exc)
            if self._told.get(name) != text:  # once, not at every scrape
                logger.exception("the figures of %s cannot be read", name)
            self._told[name] = text
            return None
        self._told.pop(name, None)
        return metrics
