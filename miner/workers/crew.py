"""A fixed number of actors of one kind on Ray; a lost one is replaced.

    asked for -> started -> ... -> lost, or sent away -> (another one) asked for

It does not know what the actors do, but that each has a method ``start`` that is safe to repeat.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from miner.errors import SnapshotError
from miner.workers.remote import Resources, result_of

__all__ = ["Crew", "Worker"]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Worker:
    """One actor in its place."""

    slot: int
    actor: Any
    started: bool = False


class Crew:
    """Thread-safe. Actors are asked for at once and start while the caller goes on."""

    def __init__(
        self,
        name: str,
        ask_for_actor: Callable[[], Any],
        size: int,
        resources: Resources,
        timeout_s: float,
    ) -> None:
        """`name` is of one of them; `timeout_s`, how long to wait while none has started."""
        self.size = size
        self._name = name
        self._ask_for_actor = ask_for_actor
        self._resources = resources
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._workers = {slot: Worker(slot, ask_for_actor()) for slot in range(size)}

    @property
    def workers(self) -> list[Worker]:
        """All of them, started or not; those that were sent away are asked for again."""
        with self._lock:
            return [self._in_place(slot) for slot in range(self.size)]

    def replace(self, worker: Worker) -> Worker:
        """The successor of a lost worker; whoever notices the loss later gets the same one."""
        with self._lock:
            if self._workers.get(worker.slot) is worker:
                log.warning("%s %d was lost and is replaced", self._name, worker.slot)
                # It may live on behind a broken connection.
                ray.kill(worker.actor)
                del self._workers[worker.slot]
            return self._in_place(worker.slot)

    def wait_for_any(self, refs: Mapping[Any, Worker], at_most_s: float | None = None) -> Any:
        """The first of ``refs`` that is ready; None if none is within ``at_most_s``.

        Calls under way may take that long (None: any time), workers that start the time allowed.

        Raises:
            SnapshotError: None of their workers has started within the time allowed; says what was
                asked for and what there is.
        """
        any_started = any(worker.started for worker in refs.values())
        timeout_s = at_most_s if any_started else self._timeout_s
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=timeout_s)
        if ready or any_started:
            return ready[0] if ready else None
        what = f"{len(refs)} {self._name}s"
        raise SnapshotError(self._resources.explain_wait(what, self._timeout_s))

    def call(self, method: str, *args: object, attempts: int) -> Any:
        """Call a method on the first worker that is free, on another if that one is lost.

        Raises:
            CoalfaceError: What the method raises, with its class.
            SnapshotError: ``attempts`` workers were lost, or none can start.
        """
        for _ in range(attempts):
            with self._lock:
                workers = list(self._workers.values()) or [self._in_place(0)]
            starting = {worker.actor.start.remote(): worker for worker in workers}
            ref = self.wait_for_any(starting)
            worker = starting[ref]
            try:
                result_of(ref)
                worker.started = True
                return result_of(getattr(worker.actor, method).remote(*args))
            except RayTaskError:
                raise
            except RayError as exc:
                loss = exc
                self.replace(worker)
        raise SnapshotError(f"{attempts} workers died of the call {method!r}: {loss}") from loss

    def dismiss(self) -> None:
        """Kill all actors; what they are doing is lost. Whoever needs one asks for it anew."""
        with self._lock:
            for worker in self._workers.values():
                ray.kill(worker.actor)
            self._workers.clear()

    def _in_place(self, slot: int) -> Worker:
        if slot not in self._workers:
            self._workers[slot] = Worker(slot, self._ask_for_actor())
        return self._workers[slot]
