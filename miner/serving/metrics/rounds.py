"""Figures of the round log, read when they are scraped: they outlive every restart.

It knows manifests and no groups. Rounds of older versions lack figures, which are then left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from miner.errors import RoundExpiredError
from miner.rounds import RoundLog, RoundManifest
from miner.serving.metrics.meters import PREFIX

__all__ = ["histogram_quantile", "round_metrics"]

ROUND = f"{PREFIX}_round"
QUANTILES = (0.1, 0.5, 0.9)
TIERS = ("strategy", "relaxed", "random")
EXPOSURES = {"anchor": "anchor_exposure", "identity": "identity_exposure"} | {
    "sample": "sample_exposure"
}


def round_metrics(log: RoundLog, num_rows: int) -> Iterator[Metric]:
    """What the log and its newest round tell.

    Args:
        log: The log.
        num_rows: Rows of the catalog.

    Raises:
        RoundLogError: The log or the newest manifest cannot be read.

    Cost: one listing of a folder, and one manifest per new round.
    """
    sealed = log.sealed_ids()
    yield CounterMetricFamily(
        f"{PREFIX}_rounds_sealed",
        "Rounds sealed since the log was made.",
        value=max(sealed, default=0),
    )
    yield GaugeMetricFamily(f"{PREFIX}_rounds_kept", "Sealed rounds on disk.", value=len(sealed))
    if not sealed:
        return
    try:
        manifest = log.manifest(sealed[-1])
    except RoundExpiredError:  # retention was quicker; a newer one is there at the next scrape
        return
    yield from _origin(manifest)
    yield from _phases(manifest, num_rows)
    yield from _selection(dict(manifest.selection))


def histogram_quantile(
    edges: Sequence[float], counts: Sequence[int], quantile: float
) -> float | None:
    """The value below which a share of what was counted lies; None if nothing was.

    Linear within a bin, so the error is below a bin's width.

    Example:
        >>> [histogram_quantile([0.0, 1.0, 2.0], [1, 3], q) for q in (0.125, 0.25, 1.0)]
        [0.5, 1.0, 2.0]
    """
    wanted = quantile * sum(counts)
    if sum(counts) == 0:
        return None
    for number, reached in enumerate(accumulate(counts)):
        if reached >= wanted and counts[number]:
            share = 1 - (reached - wanted) / counts[number]
            return edges[number] + share * (edges[number + 1] - edges[number])
    return edges[-1]


def _origin(manifest: RoundManifest) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{ROUND}_id", "The newest sealed round.", value=manifest.round_id)
    age_s = max(0.0, time.time() - manifest.created_unix_s)
    yield GaugeMetricFamily(f"{ROUND}_age_seconds", "Since it was mined.", value=age_s)
    yield GaugeMetricFamily(
        f"{ROUND}_model_step",
        "Optimizer step of the weights that mined it; 0 without weights.",
        value=manifest.model_step,
    )
    yield InfoMetricFamily(ROUND, "How it was made.", value={"strategy": manifest.strategy})
    yield GaugeMetricFamily(f"{ROUND}_groups", "Groups in it.", value=manifest.num_groups)
    if manifest.recall is not None:
        text = "Measured recall of its search; absent where an exact search needs no measuring."
        yield GaugeMetricFamily(f"{ROUND}_recall", text, value=manifest.recall)


def _phases(manifest: RoundManifest, num_rows: int) -> Iterator[Metric]:
    seconds = GaugeMetricFamily(
        f"{ROUND}_phase_seconds", "How long each phase of mining it took.", labels=["phase"]
    )
    for phase, passed_s in manifest.phases_s.items():
        seconds.add_metric([phase], passed_s)
    yield seconds
    embedding_s = manifest.phases_s.get("embedding", 0.0)
    if embedding_s > 0:
        text = "Rows of the catalog by the seconds of embedding; chunks that were there count too."
        yield GaugeMetricFamily(
            f"{ROUND}_embedded_rows_per_second", text, value=num_rows / embedding_s
        )
    searching_s = manifest.phases_s.get("searching", 0.0)
    num_anchors: Any = manifest.selection.get("num_anchors")
    if searching_s > 0 and num_anchors:
        text = "Anchors of the round by the seconds of searching."
        yield GaugeMetricFamily(
            f"{ROUND}_searched_anchors_per_second", text, value=num_anchors / searching_s
        )


def _selection(report: dict[str, Any]) -> Iterator[Metric]:
    hardness = GaugeMetricFamily(
        f"{ROUND}_hardness",
        "Quantiles of s_an - s_ap over its triplets, by the manifest's histogram.",
        labels=["quantile"],
    )
    for quantile in QUANTILES:
        value = histogram_quantile(
            report.get("hardness_edges", ()), report.get("hardness_counts", ()), quantile
        )
        if value is not None:
            hardness.add_metric([f"{quantile:g}"], value)
    yield hardness
    if (violating := report.get("violating_fraction")) is not None:
        text = "Share of its triplets that violate the margin."
        yield GaugeMetricFamily(f"{ROUND}_violating_ratio", text, value=violating)
    gini = GaugeMetricFamily(
        f"{ROUND}_exposure_gini",
        "Gini coefficient of uses: of identities as anchors, of identities and of samples as "
        "negatives. 0: all alike.",
        labels=["of"],
    )
    for kind, name in EXPOSURES.items():
        if name in report:
            gini.add_metric([kind], report[name]["gini"])
    yield gini
    triplets = GaugeMetricFamily(
        f"{ROUND}_triplets",
        "Its triplets by tier: by the strategy, relaxed, or random to fill up.",
        labels=["tier"],
    )
    for tier, count in zip(TIERS, report.get("tiers", ()), strict=False):
        triplets.add_metric([tier], count)
    yield triplets
    short = GaugeMetricFamily(
        f"{ROUND}_short_anchors",
        "Anchors that found fewer negatives than a full group has, by the first reason.",
        labels=["reason"],
    )
    for reason, count in report.get("shortfalls", {}).items():
        short.add_metric([reason], count)
    yield short
