"""Each kind of fault that a storm brings: one function, which returns when the fault is over.

Killed miners and writers come back at once, often with a failpoint armed that acts later on.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial

import psutil

from miner.failpoints import WRITE_POINTS
from tests.chaos.damage import DAMAGES, damage
from tests.chaos.stage import PATIENCE_S, Stage
from tests.chaos.writer_program import FENCED
from trainer.errors import FeedError, RoundLostError

__all__ = ["KINDS"]

TWO_DAYS_S = 2 * 86400.0
MINER_POINTS = {
    "journal.append.begin": ("torn", "kill", "error(ENOSPC)", "error(EIO)"),
    "journal.append.unsynced": ("kill", "error(EIO)"),
    "runs.plan.begin": ("kill",),
    "runs.plan.recorded": ("kill", "error(EIO)"),
    "runs.commit.begin": ("error(ENOSPC)", "error(EROFS)"),
    "runs.commit.written": ("kill",),
    "durable.write.begin": ("torn", "error(ENOSPC)"),
    "durable.replace.renamed": ("kill", "error(EIO)"),
    "streams.batch.begin": ("kill", "sleep(1.5)"),
    "streams.batch.made": ("kill", "sleep(0.7)"),
}
"""Failpoints that a serving miner passes, and what may happen there."""

WRITER_POINTS = {
    name: ("kill", "error(ENOSPC)", "error(EIO)", *(("torn",) if name in WRITE_POINTS else ()))
    for name in (
        *("durable.write.begin", "durable.write.unsynced", "durable.publish.finished"),
        *("durable.publish.renamed", "writer.seal.begun", "writer.chunk.begin"),
        *("writer.chunk.written", "writer.manifest.begin", "writer.manifest.written"),
        *("writer.seal.published", "writer.retain.listed", "writer.retain.renamed"),
        *("writer.retain.removing", "durable.replace.written", "durable.replace.renamed"),
    )
}


def _draw_failpoint(rng: random.Random, points: dict[str, tuple[str, ...]], most: int) -> str:
    name = rng.choice(sorted(points))
    action = rng.choice(points[name])
    times = rng.randint(1, most * 20 if name.startswith("streams") else most)
    return f"{times}*{name}={action}"


def kill_miner(stage: Stage) -> None:
    armed = stage.rng.random() < 0.8
    stage.miner.kill(_draw_failpoint(stage.rng, MINER_POINTS, 6) if armed else "")


def pause_miner(stage: Stage) -> None:
    stage.miner.pause(stage.rng.uniform(0.3, 3.0))


def drain_miner(stage: Stage) -> None:
    stage.miner.halt(signal.SIGTERM)
    stage.miner.start()


def fill_disk(stage: Stage) -> None:
    error = stage.rng.choice(("ENOSPC", "EROFS", "EIO"))
    points = ("journal.append.begin", "durable.write.begin")
    stage.miner.kill(";".join(f"{point}=error({error})" for point in points))
    time.sleep(stage.rng.uniform(1.5, 3.0))
    stage.miner.kill()


def kill_writer(stage: Stage) -> None:
    armed = stage.rng.random() < 0.8
    stage.writer.kill(_draw_failpoint(stage.rng, WRITER_POINTS, 3) if armed else "")


def start_second_writer(stage: Stage) -> None:
    generation = stage.log_root / "GENERATION"
    before = generation.read_bytes()
    stage.writer.kill()
    deadline_s = time.monotonic() + PATIENCE_S
    while generation.read_bytes() == before and time.monotonic() < deadline_s:
        time.sleep(0.1)
    time.sleep(stage.rng.uniform(0.0, 1.0))
    with stage.writer.replaced() as first:
        stopped = psutil.Process(first.pid)
        if stage.rng.random() < 0.5:
            stopped.suspend()
            time.sleep(2.0)
            stopped.resume()
        try:
            code = first.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
    if code != FENCED:
        stage.blame("P6", f"a writer with a successor ended with {code}, not {FENCED}")


def kill_ranks(stage: Stage) -> None:
    job = stage.rng.choice(stage.jobs)
    job.resume(stage.rng.randint(1, job.settings.max_world_size))


def slow_rank(stage: Stage) -> None:
    stage.rng.choice(stage.jobs).pause_one(stage.rng, stage.rng.uniform(0.3, 2.5))


def dead_rank(stage: Stage) -> None:
    stage.rng.choice(stage.jobs).desert(stage.rng)


def cut(stage: Stage) -> None:
    stage.proxy.cut()


def half_open(stage: Stage) -> None:
    stage.proxy.half_open()


def delay(stage: Stage) -> None:
    stage.proxy.delay_s = stage.rng.uniform(0.02, 0.2)
    time.sleep(stage.rng.uniform(0.5, 2.0))
    stage.proxy.delay_s = 0.0


def jump_clock(stage: Stage) -> None:
    stage.set_clock(stage.rng.uniform(-TWO_DAYS_S, TWO_DAYS_S))


def damage_round(stage: Stage, kind: str) -> None:
    """A damaged file is DATA_LOSS; restored, it gives the same bytes again."""
    name = f"{stage.miner.lives}"
    stage.writer.halt()
    stage.miner.kill()
    told = stage.probe(name)
    stage.miner.halt()
    log = stage.log()
    newest = log.newest()
    assert newest is not None
    with stage.damaging(newest), damage(log.folder(newest), kind, stage.rng) as path:
        stage.miner.start()
        try:
            stage.blame("P5", f"{kind}: read {stage.probe(name)} of {path}")
        except RoundLostError as exc:
            if "DATA_LOSS" not in str(exc) or path.name not in str(exc):
                stage.blame("P5", f"{kind} of {path} was told as {exc}")
    try:
        if stage.probe(name) != told:
            stage.blame("P1", f"{kind} of {path}: restored, it gives other bytes")
    except FeedError as exc:
        stage.blame("P5", f"{kind} of {path}: restored, and still {exc}")
    stage.writer.start()


KINDS: dict[str, tuple[Callable[[Stage], None], int]] = {
    "miner: killed": (kill_miner, 8),
    "miner: stopped and continued": (pause_miner, 5),
    "miner: drained": (drain_miner, 2),
    "miner: disk full or read-only for seconds": (fill_disk, 3),
    "writer: killed": (kill_writer, 8),
    "writer: two at once": (start_second_writer, 3),
    "ranks: killed, resumed at another world size": (kill_ranks, 6),
    "rank: stopped and continued": (slow_rank, 5),
    "rank: stopped for good, stream open": (dead_rank, 3),
    "network: connections reset": (cut, 6),
    "network: connections half open": (half_open, 4),
    "network: delay": (delay, 4),
    "clock: jump of up to two days": (jump_clock, 4),
    **{f"round: {kind}": (partial(damage_round, kind=kind), 1) for kind in DAMAGES},
}
"""Each fault, and how often it comes beside the others."""
