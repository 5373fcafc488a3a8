"""Runs `killed_child` and hands out what each kill left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import miner


@dataclass(frozen=True)
class Remains:
    """What one kill left; `finished` is the last, unkilled one."""

    root: Path
    answers: list[Any]
    finished: bool


def kill_everywhere(action: str, template: Path, work: Path) -> Iterator[Remains]:
    """Kill ``action`` at every point, each time on a copy of ``template``."""
    work.mkdir()
    project = str(Path(miner.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-m", "tests.miner.rounds.killed_child", action, template, work],
        check=True,
        env={**os.environ, "PYTHONPATH": project, "OMP_NUM_THREADS": "1"},
        cwd=project,
    )
    points = sum(path.is_dir() for path in work.iterdir())
    for point in range(points):
        lines = (work / f"ack-{point}").read_text().splitlines()
        finished = point == points - 1
        yield Remains(work / str(point), [json.loads(line) for line in lines], finished)
