"""Each kind of fault that a storm brings: one function, which returns when the fault is over.

It says whether the effect was seen: a fault that met nothing does not count. Killed miners and
writers come back at once, often with a failpoint armed, and are given the time to get there.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial

import grpc
import psutil

from miner.errors import CoalfaceError
from miner.failpoints import WRITE_POINTS
from tests.chaos.damage import DAMAGES, damage
from tests.chaos.job import Job
from tests.chaos.kept import Kept
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
    times = rng.randint(1, most * 8 if name.startswith("streams") else most)
    return f"{times}*{name}={action}"


def _kill(stage: Stage, kept: Kept, points: dict[str, tuple[str, ...]], most_passages: int) -> bool:
    if stage.rng.random() < 0.2:
        return kept.kill()
    was_alive = kept.kill(_draw_failpoint(stage.rng, points, most_passages))
    stage.until(kept.has_fired)
    return was_alive


def kill_miner(stage: Stage) -> bool:
    return _kill(stage, stage.miner, MINER_POINTS, 6)


def kill_writer(stage: Stage) -> bool:
    return _kill(stage, stage.writer, WRITER_POINTS, 3)


def pause_miner(stage: Stage) -> bool:
    return stage.miner.pause(stage.rng.uniform(0.3, 3.0))


def drain_miner(stage: Stage) -> bool:
    """A miner that is told to end before it serves just ends; that is no drain."""
    code = stage.miner.halt(signal.SIGTERM)
    stage.miner.start()
    return code == 0


def fill_disk(stage: Stage) -> bool:
    error, seconds = stage.rng.choice(("ENOSPC", "EROFS", "EIO")), stage.rng.uniform(1.5, 3.0)
    points = ("journal.append.begin", "durable.write.begin")
    stage.miner.kill(";".join(f"{point}=error({error})" for point in points))
    is_refused = stage.until(stage.miner.has_fired)
    if is_refused:
        time.sleep(seconds)
    stage.miner.kill()
    return is_refused


def start_second_writer(stage: Stage) -> bool:
    generation = stage.log_root / "GENERATION"
    before = generation.read_bytes()
    stage.writer.kill()
    if not stage.until(lambda: generation.read_bytes() != before):
        return False
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
    return code == FENCED


def kill_ranks(stage: Stage) -> bool:
    job = stage.rng.choice(stage.jobs)
    others = set(range(1, job.settings.max_world_size + 1)) - {job.world_size}
    return job.resume(stage.rng.choice(sorted(others)))


def _slow_client(stage: Stage) -> Job:
    """More often than not one with samples, for which a miner could hold most."""
    with_samples = [job for job in stage.jobs if job.settings.with_payload]
    return stage.rng.choice([*stage.jobs, *with_samples * len(stage.jobs)])


def slow_rank(stage: Stage) -> bool:
    return _slow_client(stage).pause_one(stage.rng, stage.rng.uniform(0.3, 2.5))


def dead_rank(stage: Stage) -> bool:
    job = _slow_client(stage)
    return stage.until(lambda: job.desert(stage.rng))


def deaf_client(stage: Stage) -> bool:
    """Seen if it is served, and its stream still open a while later."""
    try:
        client = stage.add_deaf_client()
    except (FeedError, grpc.RpcError):
        return False
    time.sleep(stage.rng.uniform(1.0, 2.0))
    return client.is_held


def cut(stage: Stage) -> bool:
    return stage.until(stage.proxy.cut)


def half_open(stage: Stage) -> bool:
    return stage.until(stage.proxy.half_open)


def delay(stage: Stage) -> bool:
    before = stage.proxy.num_delayed
    stage.proxy.delay_s = stage.rng.uniform(0.02, 0.2)
    time.sleep(stage.rng.uniform(0.5, 2.0))
    stage.proxy.delay_s = 0.0
    return stage.proxy.num_delayed > before


def jump_clock(stage: Stage) -> bool:
    """Seen once a round is sealed that counts as made at the wrong time."""
    jump_s = stage.rng.uniform(-TWO_DAYS_S, TWO_DAYS_S)
    stage.set_clock(jump_s)

    def is_seen() -> bool:
        log = stage.log()
        try:
            made_s = log.manifest(log.newest() or 0).created_unix_s
        except CoalfaceError:
            return False
        return abs(made_s - time.time() - jump_s) < 60.0

    return stage.until(is_seen)


def damage_round(stage: Stage, kind: str) -> bool:
    """A damaged file is DATA_LOSS; restored, it gives the same bytes again."""
    name = f"{stage.miner.lives}"
    stage.writer.halt()
    stage.miner.kill()
    told = stage.probe(name)
    stage.miner.halt()
    log = stage.log()
    newest = log.newest()
    assert newest is not None
    is_told = False
    with stage.damaging(newest), damage(log.folder(newest), kind, stage.rng) as path:
        stage.miner.start()
        try:
            stage.blame("P5", f"{kind}: read {stage.probe(name)} of {path}")
        except RoundLostError as exc:
            is_told = "DATA_LOSS" in str(exc) and path.name in str(exc)
            if not is_told:
                stage.blame("P5", f"{kind} of {path} was told as {exc}")
    try:
        if stage.probe(name) != told:
            stage.blame("P1", f"{kind} of {path}: restored, it gives other bytes")
    except FeedError as exc:
        stage.blame("P5", f"{kind} of {path}: restored, and still {exc}")
    stage.writer.start()
    return is_told


KINDS: dict[str, tuple[Callable[[Stage], bool], int]] = {
    "miner: killed": (kill_miner, 8),
    "miner: stopped and continued": (pause_miner, 5),
    "miner: drained": (drain_miner, 2),
    "miner: disk full or read-only for seconds": (fill_disk, 3),
    "writer: killed": (kill_writer, 8),
    "writer: two at once": (start_second_writer, 3),
    "ranks: killed, resumed at another world size": (kill_ranks, 6),
    "rank: stopped and continued": (slow_rank, 5),
    "rank: stopped for good, connected": (dead_rank, 3),
    "client: asks for 400 MB and reads nothing": (deaf_client, 4),
    "network: connections reset": (cut, 6),
    "network: connections half open": (half_open, 4),
    "network: delay": (delay, 4),
    "clock: jump of up to two days": (jump_clock, 4),
    **{f"round: {kind}": (partial(damage_round, kind=kind), 1) for kind in DAMAGES},
}
"""Each fault, and how often it comes beside the others."""
