"""The runs of an archive: what they were opened with, each stride of their plans, their commits.

<uri>/runs/<run_id>/RUN.json                 parameters, put once
<uri>/runs/<run_id>/plan/000000000032.json   the stride that begins at step 32, put once
<uri>/runs/<run_id>/COMMITTED                the committed step; the last writer's counts

A stride is put before it is noted on the disk, and before anything of it is sent: two servers that
plan the same one agree on the first, and a server without the other's disk goes on from all of
them. It knows how neither is planned nor kept on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import TypeVar

from miner.errors import DamagedRunError, DiskError
from miner.rounds.checked import decode_number, decode_object, encode_number, encode_object
from miner.rounds.objects import Objects
from miner.serving.plan import RUN_KEYS, RunParameters, Stride

__all__ = ["PLANNING_S", "RunArchive"]

PLANNING_S = 5.0
"""For a request to the store; streams that need a new stride wait for it."""

_STRIDE_KEYS = tuple(field.name for field in fields(Stride))
Answer = TypeVar("Answer")


class RunArchive:
    """Safe among threads and processes.

    While the store is away one thread at a time waits for it, and others are refused at once:
    threads are few, and are needed for what has been planned already.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._is_in_doubt = False
        self._trial = threading.Lock()

    def run_ids(self) -> list[str]:
        """Every run that was ever opened.

        Cost: a request for 1000 strides of all runs.
        """
        keys = self._ask(lambda: self._objects.keys("runs"))
        return sorted({key.split("/")[1] for key in keys})

    def open(self, params: RunParameters) -> RunParameters:
        """Put a run, unless it is there; its parameters are those of whoever came first."""
        key = f"runs/{params.run_id}/RUN.json"
        content = encode_object(asdict(params))
        return self._parameters(key, self._ask(lambda: self._objects.put_new(key, content)))

    def parameters(self, run_id: str) -> RunParameters:
        """Of a run that is there.

        Raises:
            DamagedRunError: If they are not as they were put.
        """
        key = f"runs/{run_id}/RUN.json"
        return self._parameters(key, self._ask(lambda: self._objects.get(key)))

    def decide(self, run_id: str, stride: Stride) -> Stride:
        """Put a stride, unless its first step has one; the stride that counts, for ever."""
        key = _stride_key(run_id, stride.first_step)
        content = encode_object(stride.to_json())
        return self._stride(key, self._ask(lambda: self._objects.put_new(key, content)))

    def first_steps(self, run_id: str) -> list[int]:
        """Of every stride of a run, ascending."""
        keys = self._ask(lambda: self._objects.keys(f"runs/{run_id}/plan"))
        return [int(key.rpartition("/")[2].partition(".")[0]) for key in keys]

    def strides(self, run_id: str, first_steps: Sequence[int]) -> list[Stride]:
        """The strides that begin at these steps.

        Raises:
            DamagedRunError: If one is missing or not as it was put.
        """
        keys = [_stride_key(run_id, step) for step in first_steps]
        contents = self._ask(lambda: list(self._objects.get_all(keys)))
        return [self._stride(key, content) for key, content in zip(keys, contents, strict=True)]

    def commit(self, run_id: str, step: int) -> None:
        """Note the committed step."""
        key = f"runs/{run_id}/COMMITTED"
        self._ask(lambda: self._objects.put(key, encode_number(step)))

    def committed_step(self, run_id: str) -> int:
        """The step noted last; 0: none.

        Raises:
            DamagedRunError: If it is not as it was put.
        """
        key = f"runs/{run_id}/COMMITTED"
        content = self._ask(lambda: self._objects.get(key))
        try:
            return 0 if content is None else decode_number(content)
        except ValueError as exc:
            raise self._damaged(key, exc) from exc

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        is_trial = self._is_in_doubt
        if is_trial and not self._trial.acquire(blocking=False):
            raise DiskError(f"{self._objects.uri} does not answer for now; it is being tried again")
        try:
            answer = request()
        except DiskError:
            self._is_in_doubt = True
            raise
        finally:
            if is_trial:
                self._trial.release()
        self._is_in_doubt = False
        return answer

    def _parameters(self, key: str, content: bytes | None) -> RunParameters:
        try:
            return RunParameters(**decode_object(content or b"", RUN_KEYS))
        except (ValueError, TypeError) as exc:
            raise self._damaged(key, exc) from exc

    def _stride(self, key: str, content: bytes | None) -> Stride:
        try:
            return Stride.from_json(decode_object(content or b"", _STRIDE_KEYS))
        except (ValueError, TypeError) as exc:
            raise self._damaged(key, exc) from exc

    def _damaged(self, key: str, reason: Exception) -> DamagedRunError:
        return DamagedRunError(
            f"{self._objects.uri}/{key} is missing or damaged: {reason}; restore the object from a "
            "copy or an older version of it"
        )


def _stride_key(run_id: str, first_step: int) -> str:
    return f"runs/{run_id}/plan/{first_step:012d}.json"
