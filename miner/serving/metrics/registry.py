"""All the figures of one server in one registry."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric

import miner
from miner.serving.metrics.meters import PREFIX
from miner.serving.metrics.progress import refresh_metrics, run_metrics
from miner.serving.metrics.rounds import round_metrics
from miner.serving.metrics.scrape import ScrapedParts
from miner.serving.service import Parts

__all__ = ["registry_of"]


def registry_of(parts: Parts) -> CollectorRegistry:
    """The registry of the server's meters, with all that is read when it is scraped. Call once."""
    registry = parts.meters.registry
    idle_run_s, num_rows = parts.config.idle_run_s, parts.row_store.num_rows
    scraped = ScrapedParts(
        {
            "service": lambda: _service_metrics(parts.row_store.fingerprint),
            "rounds": lambda: round_metrics(parts.log, num_rows),
            "runs": lambda: run_metrics(parts.runs, idle_run_s),
            "refresh": lambda: refresh_metrics(parts.backend.refresh_status()),
        }
    )
    registry.register(scraped)
    ProcessCollector(namespace=PREFIX, registry=registry)
    return registry


def _service_metrics(fingerprint: str) -> Iterator[Metric]:
    values = {"version": miner.__version__, "dataset_fingerprint": fingerprint}
    yield InfoMetricFamily(f"{PREFIX}_service", "What serves what.", value=values)
