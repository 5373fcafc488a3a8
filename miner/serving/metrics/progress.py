"""Figures of the refresh under way and of the runs, read when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from miner.serving.backend import Phase, RefreshState
from miner.serving.metrics.meters import PREFIX
from miner.serving.runs import RunStore

__all__ = ["MAX_RUNS", "refresh_metrics", "run_metrics"]

MAX_RUNS = 100
"""Runs that are told of by name: the most recently active."""


def refresh_metrics(state: RefreshState) -> Iterator[Metric]:
    """How the mining of rounds stands."""
    phase = GaugeMetricFamily(
        f"{PREFIX}_refresh_phase", "1 for the phase that the refresh is in.", labels=["phase"]
    )
    for name in get_args(Phase):
        phase.add_metric([name], float(name == state.phase))
    yield phase
    progress = state.done / state.total if state.total else 0.0
    text = "Share of this phase's work that is done; 0 where unknown."
    yield GaugeMetricFamily(f"{PREFIX}_refresh_progress_ratio", text, value=progress)
    refreshes = CounterMetricFamily(
        f"{PREFIX}_refreshes", "Refreshes that ended since the start.", labels=["outcome"]
    )
    refreshes.add_metric(["sealed"], state.num_sealed)
    refreshes.add_metric(["failed"], state.num_failed)
    yield refreshes
    text = "Seconds spent in refreshes since the start."
    yield CounterMetricFamily(f"{PREFIX}_refresh_busy_seconds", text, value=state.busy_s)


def run_metrics(runs: RunStore, idle_run_s: float) -> Iterator[Metric]:
    """The live runs: those that planned or committed within ``idle_run_s``."""
    idle = [(run.idle_s(), run) for run in runs.all()]
    live = [(idle_s, run) for idle_s, run in idle if idle_s <= idle_run_s]
    live.sort(key=lambda entry: entry[0])
    yield GaugeMetricFamily(
        f"{PREFIX}_runs_live", "Runs that still hold rounds back from removal.", value=len(live)
    )
    planned = GaugeMetricFamily(
        f"{PREFIX}_run_planned_steps", "Steps of a live run that are fixed.", labels=["run_id"]
    )
    horizon = GaugeMetricFamily(
        f"{PREFIX}_run_plan_horizon_steps",
        "Planned minus committed steps of a live run: what a checkpoint does not hold yet.",
        labels=["run_id"],
    )
    for _, run in live[:MAX_RUNS]:
        planned_steps = run.planned_steps
        planned.add_metric([run.parameters.run_id], planned_steps)
        horizon.add_metric([run.parameters.run_id], planned_steps - run.committed_step)
    yield planned
    yield horizon
