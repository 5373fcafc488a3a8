"""What the actors share: errors keep their class over Ray, and work yields to a trainer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from miner.errors import CoalfaceError

__all__ = ["POLL_S", "Resources", "Watch", "lower_priority", "not_started", "result_of"]

POLL_S = 0.25
"""How long whoever waits for Ray hears of nothing else."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one actor asks of the cluster."""

    num_cpus: float
    num_gpus: float
    num_bytes: int = 0

    def start(self, actor_class: type[Any], *args: object, num_threads: int = 1) -> Any:
        """Create an actor, which Ray starts once there is room for it; it is never restarted."""
        options: dict[str, Any] = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "max_restarts": 0,
            "max_concurrency": num_threads,
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


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Watch:
    """What is done while the cluster works; whatever raises ends the work.

    Attributes:
        on_progress: Called with (done, in all) now and then.
        go_on: Called several times a second.
        make_room: Called when a part of the time for a start is over: something else may end.
    """

    on_progress: Callable[[int, int], None] = _nothing
    go_on: Callable[[], None] = _nothing
    make_room: Callable[[], None] = _nothing


def not_started(refs: Sequence[Any], timeout_s: float, watch: Watch) -> list[Any]:
    """Wait for the starts of actors; those that have not, after ``timeout_s``.

    After a third of that, room is made for them.
    """
    begin_s, waited_s, has_room = time.monotonic(), 0.0, False
    missing = list(refs)
    while missing and waited_s < timeout_s:
        if waited_s >= timeout_s / 3 and not has_room:
            has_room = True
            watch.make_room()
        watch.go_on()
        most_s = min(POLL_S, timeout_s - waited_s)
        _, missing = ray.wait(missing, num_returns=len(missing), timeout=most_s)
        waited_s = time.monotonic() - begin_s
    return missing


def lower_priority(nice: int) -> None:
    """Raise the niceness of this thread, and of those that it starts, to ``nice`` at least."""
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
