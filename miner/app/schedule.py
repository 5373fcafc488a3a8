"""Decides when a refresh is due; knows neither clock, Ray nor disk: time and events are arguments.

waiting --(trigger)--> due --(started)--> waiting
"""

from __future__ import annotations

from dataclasses import dataclass

from miner.app.accepted import AcceptedWeights
from miner.config import RefreshConfig

__all__ = ["RefreshSchedule", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """What the service has seen so far.

    Attributes:
        weights: The newest accepted weights.
        request_id: Of the newest RequestRefresh; "" before the first one since the service started.
        planned_steps: The furthest planned step over all runs.
    """

    weights: AcceptedWeights | None = None
    request_id: str = ""
    planned_steps: int = 0


@dataclass(slots=True)
class RefreshSchedule:
    """Triggers of design section 4.9: new weights, every N steps, every T seconds, on request.

    Newer weights replace waiting ones: only ``Work.weights``, the newest, is ever compared. A
    refresh that failed counts as done, so it is tried again with the next weights, the next
    request or at the next period, never in a loop.

    Attributes:
        config: The triggers.
        mined_sha256: Digest of the weights of the newest round; "" if it was made without.
        started_s: When the last refresh started, on the caller's monotonic clock.
    """

    config: RefreshConfig
    mined_sha256: str
    started_s: float
    request_id: str = ""
    planned_steps: int = 0

    def due(self, now_s: float, work: Work) -> str | None:
        """The reason why a refresh is due now, or None."""
        if work.request_id not in ("", self.request_id):
            return "on request"
        weights, config = work.weights, self.config
        if weights is None or weights.step < config.warmup_steps:
            return None
        if config.on_new_weights and weights.sha256 != self.mined_sha256:
            return f"new weights of step {weights.step}"
        if config.every_s is not None and now_s - self.started_s >= config.every_s:
            return f"every {config.every_s:g} s"
        advance = work.planned_steps - self.planned_steps
        if config.every_steps is not None and advance >= config.every_steps:
            return f"every {config.every_steps} steps"
        return None

    def started(self, now_s: float, work: Work) -> None:
        """A refresh for ``work`` starts now: its triggers are spent."""
        self.started_s = now_s
        self.request_id = work.request_id
        self.planned_steps = work.planned_steps
        if work.weights is not None:
            self.mined_sha256 = work.weights.sha256
