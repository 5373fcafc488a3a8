"""Scrapes an endpoint over HTTP, as Prometheus does."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from miner.serving.metrics.config import MetricsConfig
from miner.serving.metrics.endpoint import MetricsEndpoint
from tests.trainer.feed.served_miner import ServerThread


@dataclass
class Scrape:
    """What one scrape told."""

    families: dict[str, Metric]

    def get(self, name: str, prefix: str = "coalface_miner_", **labels: str) -> float | None:
        """The sample of that name and exactly these labels; None if there is none."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == prefix + name and sample.labels == labels:
                    return sample.value
        return None

    def by(self, name: str, label: str, prefix: str = "coalface_miner_") -> dict[str, float]:
        """Label -> value."""
        samples = [s for family in self.families.values() for s in family.samples]
        return {s.labels[label]: s.value for s in samples if s.name == prefix + name}


def scrape(address: str) -> Scrape:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        assert response.status == 200
        text = response.read().decode()
    return Scrape({family.name: family for family in text_string_to_metric_families(text)})


@contextmanager
def endpoint_of(miner: ServerThread) -> Iterator[str]:
    endpoint = MetricsEndpoint(MetricsConfig(port=0), miner.server.registry)
    try:
        yield endpoint.address
    finally:
        endpoint.close()
