"""A real service mines while its Ray workers are killed, jobs train, and every promise holds.

The storm's writer seals rounds without Ray. Here `coalface-miner serve` does, and what is killed
again and again is what embeds, what searches and what serves. COALFACE_CHAOS_KILLS says how often,
_SEED what is drawn, _RESULTS names a folder for the report.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from miner.errors import CoalfaceError
from miner.rounds import RoundLog
from tests.chaos.history import check_history
from tests.chaos.job import Job, JobSettings
from tests.chaos.records import Rounds, read_records
from tests.chaos.toy_rounds import sealed_round
from tests.integration.loop import Loop, wait_until
from tests.trainer.feed.served_miner import free_port
from trainer.feed import MinerClient

ACTORS = {
    "embedding worker": "ray::EmbedActor",
    "search worker": "ray::_SearchActor",
    "serving actor": "ray::MiningServiceActor",
}
WEIGHTS = {"embedding worker": 4, "search worker": 3, "serving actor": 1}
LIMIT_S = 1200.0
CAP = 64


class Storm:
    """The service, two jobs, and all that is known of them."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.loop, self.notes = loop, folder / "notes"
        self.notes.mkdir()
        loop.out.mkdir()
        self.rounds: Rounds = {}
        self.kills: Counter[str] = Counter()
        self.num_announced = 0
        self.over = threading.Event()
        jobs = (
            JobSettings(run_id="repeats", max_world_size=2, batch_rows=64),
            JobSettings(run_id="waits", max_world_size=1, batch_rows=64, exhausted="wait"),
        )
        self.jobs = [Job(settings, loop.address, self.notes) for settings in jobs]

    def announce(self, client: MinerClient) -> None:
        """New weights, of the steps trained so far: a round is to be mined with them."""
        self.num_announced += 1
        path = self.loop.out / f"{self.num_announced}.safetensors"
        sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), path, self.num_announced)
        step = max(job.checkpoint for job in self.jobs) + 6
        client.announce(step=step, uri=str(path), sha256=sha256)

    def kill(self, what: str, members: set[int]) -> bool:
        """SIGKILL to one such process of the service; whether there was one."""
        for pid in members:
            try:
                process = psutil.Process(pid)
                if " ".join(process.cmdline()).startswith(ACTORS[what]):
                    process.send_signal(signal.SIGKILL)
                    self.kills[what] += 1
                    return True
            except psutil.Error:
                continue
        return False

    def look_around(self) -> None:
        """Let jobs get on, and keep what each round says."""
        log = RoundLog(self.loop.state_dir)
        for round_id in set(log.sealed_ids()) - self.rounds.keys():
            try:
                self.rounds[round_id] = sealed_round(log, round_id)
            except CoalfaceError:  # removed meanwhile
                continue
        for job in self.jobs:
            job.note_progress()
            assert not job.ended(), (self.notes / "ranks.log").read_text()[-2000:]


@pytest.fixture
def loop(tmp_path: Path, dataset: Path) -> Loop:
    selection = {"max_uses_per_sample": CAP}
    return Loop(tmp_path, dataset, free_port(), selection=selection, chunk_rows=16)


@pytest.mark.chaos
@pytest.mark.timeout(LIMIT_S + 120)
def test_every_promise_holds_while_workers_are_killed(loop: Loop, tmp_path: Path) -> None:
    num_kills = int(os.environ.get("COALFACE_CHAOS_KILLS", "24"))
    seed = os.environ.get("COALFACE_CHAOS_SEED", "1")
    rng, storm, began_s = random.Random(f"workers {seed}"), Storm(loop, tmp_path), time.monotonic()
    with loop.miner() as _, MinerClient(loop.address, patience_s=60) as client:
        assert loop._miner is not None
        for job in storm.jobs:
            job.resume(job.settings.max_world_size)
        while storm.kills.total() < num_kills:
            assert time.monotonic() - began_s < LIMIT_S, storm.kills
            before = len(storm.rounds)
            storm.announce(client)
            (what,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            time.sleep(rng.uniform(0.0, 2.0))  # into judging, embedding, search or sealing
            storm.kill(what, loop._miner.members())
            if rng.random() < 0.3:
                job = rng.choice(storm.jobs)
                job.resume(rng.randint(1, job.settings.max_world_size))
            until_s = time.monotonic() + rng.uniform(1.0, 8.0)
            while len(storm.rounds) == before and time.monotonic() < until_s:
                storm.look_around()
                time.sleep(0.1)
        last, checkpoints = max(storm.rounds), [job.checkpoint for job in storm.jobs]
        storm.announce(client)

        def is_calm() -> bool:
            storm.look_around()
            steps = [job.checkpoint for job in storm.jobs]
            getting_on = all(now > then for now, then in zip(steps, checkpoints, strict=True))
            return max(storm.rounds) > last and getting_on

        wait_until(is_calm, "round and steps without kills", 120)
        storm.look_around()
        for job in storm.jobs:
            job.close()
    records = list(read_records(sorted(storm.notes.glob("*.marks"))))
    records += read_records(sorted(storm.notes.glob("*.records")))
    violations = check_history(records, storm.rounds)
    figures: dict[str, Any] = {
        "seed": seed,
        "seconds": round(time.monotonic() - began_s),
        "kills": dict(storm.kills),
        "weights_announced": storm.num_announced,
        "rounds": len(storm.rounds),
        "mined": sum(one.model_step > 0 for one in storm.rounds.values()),
        "steps": {job.settings.run_id: job.checkpoint for job in storm.jobs},
        "batches": sum(record["kind"] == "batch" for record in records),
        "rank_processes": sum(job.lives for job in storm.jobs),
        "violations": [f"{v.promise}: {v.evidence}" for v in violations],
    }
    if results := os.environ.get("COALFACE_CHAOS_RESULTS"):
        text = json.dumps(figures, indent=1) + "\n"
        (Path(results) / "chaos_workers.json").write_text(text, "utf-8")
    assert violations == []
    assert RoundLog(loop.state_dir).verify() == []
    assert set(storm.kills) == set(ACTORS) or num_kills < 12, storm.kills
    assert figures["mined"] >= 2
