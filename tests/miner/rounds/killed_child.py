"""Kills itself with SIGKILL at every step of one action on the disk, each time on a fresh copy.

    python -m tests.miner.rounds.killed_child <action> <template folder> <work folder>

Copy ``i`` in the work folder is what is left after a kill at point ``i``: before and after each
system call below, and at each fsync also with the file's newest bytes lost. ``ack-<i>`` holds what
the action had answered until then. The last copy is of the action that ran to its end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from miner.rounds import RoundLog, RoundsConfig, RoundWriter
from miner.serving.runs import RunParameters, RunStore
from tests.miner.rounds.round_samples import make_draft, make_groups
from tests.miner.serving.step_plans import StepPlan, plan_step

CALLS = ("fsync", "mkdir", "pwrite", "rename", "replace", "rmdir", "unlink")
LOST_BYTES = 7

Say = Callable[[Any], None]


class Assassin:
    """Counts points and kills this process at one of them."""

    def __init__(self, point: int) -> None:
        self._left = point
        self._real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self._watched(name))

    def _watched(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._pass_point()
            if name == "fsync":
                self._pass_point(lose_tail_of=args[0])
            result = self._real[name](*args, **kwargs)
            self._pass_point()
            return result

        return call

    def _pass_point(self, lose_tail_of: int | None = None) -> None:
        if self._left == 0:
            if lose_tail_of is not None:
                status = os.fstat(lose_tail_of)
                if stat.S_ISREG(status.st_mode):
                    os.ftruncate(lose_tail_of, max(0, status.st_size - LOST_BYTES))
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def open_writer(root: Path, say: Say) -> None:
    say(RoundWriter.open(RoundLog(root)).generation)


def seal(root: Path, say: Say) -> None:
    writer = RoundWriter(RoundLog(root), 1, RoundsConfig(chunk_groups=4))
    say(writer.seal(make_groups(10, seed=writer.next_round_id), make_draft()).round_id)


def retain(root: Path, say: Say) -> None:
    say(RoundWriter(RoundLog(root), 1, RoundsConfig()).retain(2, {2}))


def open_run(root: Path, say: Say) -> None:
    RunStore(root, 4).open(RunParameters("r", batch_rows=16))
    say("opened")


def plan(root: Path, say: Say) -> None:
    run = RunStore(root, 4).get("r")
    for step in range(10):
        answer = plan_step(run, step, RoundLog(root))
        assert isinstance(answer, StepPlan)
        say(answer._asdict())


def commit(root: Path, say: Say) -> None:
    run = RunStore(root, 4).get("r")
    say(run.commit(2))
    say(run.commit(3))


ACTIONS: dict[str, Callable[[Path, Say], None]] = {
    action.__name__: action for action in (open_writer, seal, retain, open_run, plan, commit)
}


def main(action: str, template: Path, work: Path) -> None:
    for point in count():
        root = work / str(point)
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            ack = os.open(work / f"ack-{point}", os.O_WRONLY | os.O_CREAT, 0o644)
            Assassin(point)
            ACTIONS[action](root, partial(_say, ack))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), f"{action} failed at point {point} instead of being killed"


def _say(ack: int, answer: Any) -> None:
    os.write(ack, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
