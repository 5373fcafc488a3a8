"""How soon a trainer gets a new round, and how soon it gets batches after the service was killed.

    python -m tests.bench.outage [--rounds 20] [--kills 10] [--stops 5]

Freshness: a feed consumes a step every 20 ms while rounds are sealed at random moments by another
process's writer; measured is the time from the end of sealing to the first batch of the new round
in the training loop. It may take one stride of 32 steps (those are planned already) and 1 s more.
The same for a run that has used its round up and waits. Recovery: a whole service on a local Ray;
its serving actor is killed with -9, and a client that comes then waits for its first batch: 5 s at
most, as a median. A feed that trains on meanwhile shows its longest gap. Drain: the same service
gets SIGTERM while a stream is open; measured is the time until that has ended with OK and until the
driver is gone, of the 3 s that `ray job stop` gives. Results go to
``tests/bench/results/outage.{json,md}``.
"""

import argparse
import json
import random
import socket
import statistics
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.bench.end_to_end import code, machine
from tests.integration.conftest import _png
from tests.integration.loop import Loop
from tests.trainer.feed.served_miner import (
    ServerProcess,
    channel_to,
    free_port,
    make_folder,
    seal_round,
)
from trainer.feed import TripletFeed

RESULTS = Path(__file__).parent / "results"
STEP_S, STRIDE_STEPS = 0.02, 32
FRESH_GOAL_S, RECOVERY_GOAL_S, STOP_GOAL_S = 1.0, 5.0, 3.0
NUM_IDENTITIES, SAMPLES = 48, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--name", default="outage", help="of the result files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        record: dict[str, Any] = {
            "command": f"python -m tests.bench.outage --rounds {options.rounds} "
            f"--kills {options.kills} --stops {options.stops}",
            "code": code(),
            "machine": machine(),
            "versions": {name: version(name) for name in ("grpcio", "ray")},
            "step_s": STEP_S,
            "stride_steps": STRIDE_STEPS,
            "while_training_s": freshness(root / "training", options.rounds),
            "while_waiting_s": freshness_of_waiting(root / "waiting", options.rounds),
            **recovery(root / "service", options.kills),
            **stopping(root / "stopped", options.stops),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    page = markdown(record)
    (RESULTS / f"{options.name}.md").write_text(page, "utf-8")
    print(page)


def freshness(root: Path, num_rounds: int) -> list[float]:
    """Seconds from the end of sealing to the first batch of the round, in a loop that trains."""
    make_folder(root, num_groups=400)
    server = ServerProcess(root, free_port(), STRIDE_STEPS).wait_ready()
    first_seen: dict[int, float] = {}
    stopped = threading.Event()

    def train() -> None:
        with TripletFeed(server.address, run_id="fresh", batch_rows=48, with_payload=False) as feed:
            for batch in feed:
                first_seen.setdefault(batch.round_id, time.monotonic())
                if stopped.wait(STEP_S):
                    return

    trainer = threading.Thread(target=train)
    trainer.start()
    rng, taken = random.Random(0), []
    try:
        for round_id in range(3, 3 + num_rounds):
            time.sleep(rng.uniform(0.5, 2.0))
            seal_round(root, round_id, num_groups=400)
            sealed_s = time.monotonic()
            taken.append(first_sight(first_seen, round_id) - sealed_s)
    finally:
        stopped.set()
        trainer.join()
        server.kill()
    return taken


def freshness_of_waiting(root: Path, num_rounds: int) -> list[float]:
    """The same of a run that has used up its round."""
    make_folder(root, num_rounds=1, num_groups=12)
    server = ServerProcess(root, free_port(), STRIDE_STEPS).wait_ready()
    first_seen: dict[int, float] = {}

    def train() -> None:
        values = {"batch_rows": 48, "with_payload": False, "exhausted": "wait"}
        with TripletFeed(server.address, run_id="wait", **values) as feed:  # type: ignore[arg-type]
            for batch in feed:
                first_seen.setdefault(batch.round_id, time.monotonic())
                if batch.round_id == num_rounds + 1:
                    return

    trainer = threading.Thread(target=train)
    trainer.start()
    taken = []
    try:
        for round_id in range(2, 2 + num_rounds):
            time.sleep(1.0)
            seal_round(root, round_id, num_groups=12)
            sealed_s = time.monotonic()
            taken.append(first_sight(first_seen, round_id) - sealed_s)
    finally:
        server.kill()
    trainer.join(30)
    return taken


def first_sight(first_seen: dict[int, float], round_id: int) -> float:
    deadline_s = time.monotonic() + 60
    while round_id not in first_seen:
        assert time.monotonic() < deadline_s, f"round {round_id} was never consumed"
        time.sleep(0.002)
    return first_seen[round_id]


def recovery(root: Path, num_kills: int) -> dict[str, list[float]]:
    """Seconds from the kill of the serving actor to the first batch of a client that comes then."""
    root.mkdir()
    loop = Loop(root, dataset(root), port())
    taken, arrivals = [], []
    stopped = threading.Event()

    def train() -> None:
        with TripletFeed(loop.address, run_id="steady", batch_rows=64, with_payload=False) as feed:
            for _ in feed:
                arrivals.append(time.monotonic())
                if stopped.wait(STEP_S):
                    return

    with loop.miner():
        trainer = threading.Thread(target=train)
        trainer.start()
        for number in range(num_kills):
            time.sleep(3.0)
            loop.kill_serving_actor()
            killed_s = time.monotonic()
            with TripletFeed(loop.address, run_id=f"new-{number}", batch_rows=64) as feed:
                next(feed)
            taken.append(time.monotonic() - killed_s)
            print(f"kill {number}: {taken[-1]:.2f} s", flush=True)
        stopped.set()
        trainer.join(30)
    gaps = sorted(np.diff(arrivals).tolist())[-num_kills:]
    return {"first_batch_s": taken, "longest_gaps_s": gaps}


def stopping(root: Path, num_stops: int) -> dict[str, list[float]]:
    """Seconds from SIGTERM until an open stream has ended with OK, and until the driver is gone."""
    root.mkdir()
    loop = Loop(root, dataset(root), port())
    streams_s, drivers_s = [], []
    for number in range(num_stops):
        with loop.miner(f"miner-{number}"), channel_to(loop.address) as channel:
            stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
            stub.OpenRun(
                mining_pb2.OpenRunRequest(run_id="waits", batch_rows=64, exhausted_policy=2)
            )
            request = {"run_id": "waits", "world_size": 1, "num_steps": 4096}
            messages = stub.StreamTriplets(mining_pb2.StreamTripletsRequest(**request))
            ended_s: list[float] = []
            waiting = threading.Event()

            def read(
                messages: Any = messages,
                waiting: threading.Event = waiting,
                ended_s: list[float] = ended_s,
            ) -> None:
                for message in messages:
                    if message.HasField("heartbeat"):
                        waiting.set()
                ended_s.append(time.monotonic())

            reader = threading.Thread(target=read)
            reader.start()
            assert waiting.wait(60)
            begin_s = time.monotonic()
            loop.stop_miner()
            drivers_s.append(time.monotonic() - begin_s)
            reader.join(30)
            streams_s.append(ended_s[0] - begin_s)
            print(f"stop {number}: {streams_s[-1]:.2f} s, {drivers_s[-1]:.2f} s", flush=True)
    return {"streams_end_s": streams_s, "driver_ends_s": drivers_s}


def dataset(root: Path) -> Path:
    rng = np.random.default_rng(7)
    rows = []
    for identity in range(NUM_IDENTITIES):
        pattern = rng.integers(0, 200, (8, 8)).repeat(4, 0).repeat(4, 1)
        for sample in range(SAMPLES):
            noisy = np.clip(pattern + rng.normal(0, 25, pattern.shape), 0, 255).astype(np.uint8)
            row = {"sample_id": f"{identity}/{sample}", "identity": f"{identity}"}
            rows.append(row | {"image": _png(noisy), "split": "train"})
    path = root / "patterns.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def markdown(record: dict[str, Any]) -> str:
    stride_s = record["step_s"] * record["stride_steps"]
    goals = {
        "while_training_s": (
            "Until a new round's first batch, in a loop that trains",
            FRESH_GOAL_S + stride_s,
        ),
        "while_waiting_s": ("The same, of a run that waits for it", FRESH_GOAL_S),
        "first_batch_s": (
            "After `kill -9` of the serving actor, until a new client's first batch",
            RECOVERY_GOAL_S,
        ),
        "longest_gaps_s": ("The same, of a feed that was training", RECOVERY_GOAL_S),
        "streams_end_s": ("After SIGTERM, until an open stream has ended well", STOP_GOAL_S),
        "driver_ends_s": ("The same, until the driver is gone", STOP_GOAL_S),
    }
    lines = [
        "# New rounds, and outages",
        "",
        f"`{record['command']}`, code {record['code']}, on {record['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f". A step takes {record['step_s'] * 1000:.0f} ms, a stride of {record['stride_steps']} "
        f"{stride_s:.2f} s.",
        "",
        "| how long it takes | times | median, s | highest, s | goal, s |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, (what, goal_s) in goals.items():
        middle, highest = statistics.median(record[name]), max(record[name])
        verdict = "met" if middle <= goal_s else "**not met**"
        lines.append(
            f"| {what} | {len(record[name])} | {middle:.2f} | {highest:.2f} | {goal_s:.2f}, "
            f"{verdict} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
