"""What the actors share: errors keep their class over Ray, and work yields to a trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from miner.errors import CoalfaceError

__all__ = ["Resources", "lower_priority", "result_of"]


@dataclass(frozen=True, slots=True)
class Resources:
    """What one actor asks of the cluster."""

    num_cpus: float
    num_gpus: float
    num_bytes: int = 0

    def start(self, actor_class: type[Any], *args: object) -> Any:
        """Create an actor, which Ray starts once there is room for it; it is never restarted."""
        options: dict[str, Any] = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "max_restarts": 0,
        }
        if self.num_bytes:
            options["memory"] = self.num_bytes
        return ray.remote(actor_class).options(**options).remote(*args)

    def room_for(self) -> int:
        """Actors that the cluster has GPUs for, those in use included; at least one."""
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, int(total.get("GPU", 0) / self.num_gpus)) if self.num_gpus else 1

    def explain_wait(self, what: str, timeout_s: float) -> str:
        """Why an actor has not started: what it asks for, and what the cluster has."""
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        have = ", ".join(
            f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s free"
            for name in ("CPU", "GPU")
        )
        memory = ""
        if self.num_bytes:
            have += (
                f", {free.get('memory', 0) / 1e9:.1f} of {total.get('memory', 0) / 1e9:.1f} GB free"
            )
            memory = f", with {self.num_bytes / 1e9:.1f} GB of memory,"
        return (
            f"{what} did not start within {timeout_s:g} s: each asks for {self.num_cpus:g} CPUs "
            f"and {self.num_gpus:g} GPUs{memory} on one machine, the cluster has {have}; ask for "
            "less, or raise workers.placement_timeout_s"
        )


def lower_priority(nice: int) -> None:
    """Raise this process's niceness to ``nice`` at least; it is never lowered."""
    if os.getpriority(os.PRIO_PROCESS, 0) < nice:
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def result_of(ref: Any) -> Any:
    """Wait for a remote result.

    Raises:
        CoalfaceError: The remote code raised it; class and text are kept.
        RayTaskError: The remote code raised something else.
        RayError: The worker was lost.
    """
    try:
        return ray.get(ref)
    except RayTaskError as exc:
        if isinstance(exc.cause, CoalfaceError):
            raise exc.cause from exc
        raise
