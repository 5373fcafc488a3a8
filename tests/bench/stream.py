"""Bytes per second of a stream, beside a bare grpc.aio stream with messages of the same size.

    python -m tests.bench.stream [--repeats 5] [--steps 1000000] [--clients 64]

Server and client are processes of their own; the client reads messages without decoding them. The
bare server writes one prepared message over and over. Both take turns, ratios are of medians.
Then a client reads a million steps while the server's memory is watched, and 64 clients read at
once, each the same steps. Goals: 0.6 for ids only, 0.5 with samples; memory that stays as it is.
Results go to ``tests/bench/results/stream.{json,md}``.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from miner.data import DatasetConfig, RowStore, ingest
from miner.rounds import RoundDraft, RoundLog, RoundWriter
from miner.types import Groups
from protos.coalface.v1 import mining_pb2
from tests.bench.end_to_end import code, machine
from tests.trainer.feed.served_miner import ServerProcess, free_port

RESULTS = Path(__file__).parent / "results"
NUM_IDENTITIES, SAMPLES_EACH = 2000, 10
IDENTITIES_PER_GROUP, SAMPLES_PER_IDENTITY = 4, 4
NUM_GROUPS = 8192
SAMPLE_BYTES = 2048
STRIDE_STEPS = 32
ENOUGH_BYTES = 150 * 10**6
MOST_STEPS = 16_384
GOALS = {False: 0.6, True: 0.5}
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


@dataclass(frozen=True)
class Arm:
    """What is streamed: rows of a batch, and whether their samples come along."""

    batch_rows: int
    with_payload: bool


ARMS = [
    Arm(192, False),
    Arm(2048, False),
    Arm(32_768, False),
    Arm(192, True),
    Arm(2048, True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the watch over memory")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--name", default="stream", help="of the result files")
    parser.add_argument("--bare", type=int, nargs=3, metavar=("PORT", "BYTES", "MESSAGES"))
    options = parser.parse_args()
    if options.bare:
        asyncio.run(serve_bare(*options.bare))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        server = ServerProcess(root, free_port(), STRIDE_STEPS).wait_ready()
        try:
            record = {
                "command": f"python -m tests.bench.stream --repeats {options.repeats} "
                f"--steps {options.steps} --clients {options.clients}",
                "code": code(),
                "machine": machine(),
                "versions": {name: version(name) for name in ("grpcio", "protobuf", "pyarrow")},
                "sample_bytes": SAMPLE_BYTES,
                "arms": [measure(server, arm, options.repeats) for arm in ARMS],
                "memory": watch_memory(server, options.steps),
                "clients": many_clients(server, options.clients),
            }
        finally:
            server.kill()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    page = markdown(record)
    (RESULTS / f"{options.name}.md").write_text(page, "utf-8")
    print(page)


def prepare(root: Path) -> None:
    """A row store, and a log with one round of groups of 4 identities with 4 samples each."""
    num_rows = NUM_IDENTITIES * SAMPLES_EACH
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "sample_id": range(num_rows),
            "identity": [row // SAMPLES_EACH for row in range(num_rows)],
            "image": [rng.bytes(SAMPLE_BYTES) for _ in range(num_rows)],
        }
    )
    pq.write_table(table, root / "data.parquet")
    ingest(DatasetConfig(uri=str(root / "data.parquet")), root / "store")
    draft = RoundDraft(
        model_step=0,
        weights_sha256="",
        dataset_fingerprint=RowStore.open(root / "store").fingerprint,
        strategy="random",
        config={},
        seed=0,
        index={},
        recall=None,
        selection={},
        phases_s={},
        created_unix_s=0.0,
    )
    RoundWriter.open(RoundLog(root / "log")).seal(groups(rng), draft)


def groups(rng: np.random.Generator) -> Groups:
    rows_each = IDENTITIES_PER_GROUP * SAMPLES_PER_IDENTITY
    ids = np.stack(
        [rng.choice(NUM_IDENTITIES, IDENTITIES_PER_GROUP, replace=False) for _ in range(NUM_GROUPS)]
    )
    samples = np.stack(
        [rng.permutation(SAMPLES_EACH)[:SAMPLES_PER_IDENTITY] for _ in range(ids.size)]
    )
    rows = np.repeat(ids.ravel(), SAMPLES_PER_IDENTITY) * SAMPLES_EACH + samples.ravel()
    num_negatives = IDENTITIES_PER_GROUP - 1
    num_triplets = NUM_GROUPS * num_negatives
    negatives = np.arange(1, IDENTITIES_PER_GROUP, dtype=np.int32) * SAMPLES_PER_IDENTITY
    return Groups(
        row_ids_R=rows.astype(np.int64),
        identity_ids_R=np.repeat(ids.ravel(), SAMPLES_PER_IDENTITY).astype(np.int32),
        row_offsets_G1=np.arange(NUM_GROUPS + 1, dtype=np.int64) * rows_each,
        anchors_T=np.zeros(num_triplets, np.int32),
        positives_T=np.ones(num_triplets, np.int32),
        negatives_T=np.tile(negatives, NUM_GROUPS),
        similarities_ap_T=rng.random(num_triplets, np.float32),
        similarities_an_T=rng.random(num_triplets, np.float32),
        tiers_T=np.zeros(num_triplets, np.uint8),
        triplet_offsets_G1=np.arange(NUM_GROUPS + 1, dtype=np.int64) * num_negatives,
    )


def measure(server: ServerProcess, arm: Arm, repeats: int) -> dict[str, Any]:
    """Ours and the bare one in turns."""
    run_id = f"rows-{arm.batch_rows}"
    first = read_steps(server.address, run_id, arm, 0, 8)  # also opens the run and warms up
    step_bytes = first["bytes"] / 8
    num_steps = max(32, min(MOST_STEPS, int(ENOUGH_BYTES / step_bytes)))
    num_requests = max(1, round(ENOUGH_BYTES / (num_steps * step_bytes)))
    read_steps(server.address, run_id, arm, 0, num_steps)
    ours, bare = [], []
    for _ in range(repeats):
        ours.append(
            read_steps(server.address, run_id, arm, 0, num_steps, num_requests, warm_up=True)
        )
        size = round(ours[-1]["bytes"] / ours[-1]["messages"])
        bare.append(read_bare(size))
    ratio = median(ours, "bytes_per_s") / median(bare, "bytes_per_s")
    found = {
        "batch_rows": arm.batch_rows,
        "with_payload": arm.with_payload,
        "steps": num_steps,
        "requests": num_requests,
        "step_bytes": round(step_bytes),
        "message_bytes": median(ours, "bytes") / median(ours, "messages"),
        "ours_per_s": median(ours, "bytes_per_s"),
        "steps_per_s": num_requests * num_steps / median(ours, "seconds"),
        "bare_per_s": median(bare, "bytes_per_s"),
        "ratio": ratio,
        "goal": GOALS[arm.with_payload],
        "runs": {"ours": ours, "bare": bare},
    }
    print({name: value for name, value in found.items() if name != "runs"}, flush=True)
    return found


def read_steps(
    address: str,
    run_id: str,
    arm: Arm,
    first_step: int,
    num_steps: int,
    num_requests: int = 1,
    *,
    warm_up: bool = False,
) -> dict[str, float]:
    """One stream after the other, undecoded; each of the same steps.

    With ``warm_up`` one more before is not timed: a connection's window grows at first, and
    `read_bare` leaves that out too.
    """
    with grpc.insecure_channel(address, options=UNLIMITED) as channel:
        opened = channel.unary_unary(
            "/coalface.v1.MiningService/OpenRun",
            request_serializer=mining_pb2.OpenRunRequest.SerializeToString,
        )
        opened(mining_pb2.OpenRunRequest(run_id=run_id, batch_rows=arm.batch_rows))
        request = mining_pb2.StreamTripletsRequest(
            run_id=run_id,
            first_step=first_step,
            num_steps=num_steps,
            world_size=1,
            with_payload=arm.with_payload,
        )
        call = channel.unary_stream(
            "/coalface.v1.MiningService/StreamTriplets",
            request_serializer=mining_pb2.StreamTripletsRequest.SerializeToString,
        )
        if warm_up:
            drain(call(request))
        return drain(message for _ in range(num_requests) for message in call(request))


def read_bare(size: int) -> dict[str, float]:
    num_messages = max(20, ENOUGH_BYTES // size)
    num_messages = min(num_messages, 20_000)
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.stream", "--bare"]
    process = subprocess.Popen([*command, str(port), str(size), str(num_messages)])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
            grpc.channel_ready_future(channel).result(30)
            call = channel.unary_stream("/bare/Stream")
            drain(call(b""))
            return drain(call(b""))
    finally:
        process.kill()
        process.wait()


def drain(messages: Iterator[bytes]) -> dict[str, float]:
    began_s, num_bytes, num_messages = time.perf_counter(), 0, 0
    for message in messages:
        num_bytes += len(message)
        num_messages += 1
    seconds = time.perf_counter() - began_s
    return {
        "bytes": num_bytes,
        "messages": num_messages,
        "seconds": seconds,
        "bytes_per_s": num_bytes / seconds,
    }


async def serve_bare(port: int, size: int, num_messages: int) -> None:
    message = bytes(size)

    class Handler(grpc.GenericRpcHandler):
        def service(self, _call: Any) -> Any:
            async def stream(_request: bytes, context: Any) -> None:
                for _ in range(num_messages):
                    await context.write(message)

            return grpc.unary_stream_rpc_method_handler(stream)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def watch_memory(server: ServerProcess, num_steps: int) -> dict[str, Any]:
    """Resident memory of the server while one client goes through so many steps."""
    arm, process = Arm(24 * 2, False), psutil.Process(server.pid)
    marks, began_s = [], time.perf_counter()
    for first in range(0, num_steps, MOST_STEPS):
        read_steps(server.address, "memory", arm, first, min(MOST_STEPS, num_steps - first))
        marks.append((first, process.memory_info().rss / 1e6))
    tenth = max(1, len(marks) // 10)
    early, late = marks[tenth : 2 * tenth] or marks[:1], marks[-tenth:]
    found = {
        "steps": num_steps,
        "seconds": time.perf_counter() - began_s,
        "early_mb": statistics.median(mb for _, mb in early),
        "late_mb": statistics.median(mb for _, mb in late),
        "peak_mb": max(mb for _, mb in marks),
    }
    print(found, flush=True)
    return found


def many_clients(server: ServerProcess, num_clients: int) -> dict[str, Any]:
    """So many clients at once, each the same steps of a run of its own."""
    arm, num_steps = Arm(192, False), 1024
    found: list[dict[str, float]] = []
    alone = read_steps(server.address, "client-alone", arm, 0, num_steps)
    process = psutil.Process(server.pid)

    def client(number: int) -> None:
        found.append(read_steps(server.address, f"client-{number}", arm, 0, num_steps))

    began_s, before_mb = time.perf_counter(), process.memory_info().rss / 1e6
    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    peak_mb = before_mb
    while any(thread.is_alive() for thread in threads):
        peak_mb = max(peak_mb, process.memory_info().rss / 1e6)
        time.sleep(0.05)
    seconds = time.perf_counter() - began_s
    result = {
        "clients": num_clients,
        "answered": len(found),
        "seconds": seconds,
        "bytes_per_s": sum(one["bytes"] for one in found) / seconds,
        "alone_bytes_per_s": alone["bytes_per_s"],
        "mb_per_client": (peak_mb - before_mb) / num_clients,
    }
    print(result, flush=True)
    return result


def median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Throughput of a stream",
        "",
        f"`{record['command']}`, code {record['code']}, on {record['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f". Samples of {record['sample_bytes']} bytes. Medians; server and client share the "
        "cores.",
        "",
        "| rows of a batch | samples | bytes of a step | of a message | ours, MB/s | steps/s "
        "| bare, MB/s | ratio | goal |",
        "| ---: | --- |" + " ---: |" * 7,
    ]
    for arm in record["arms"]:
        verdict = "met" if arm["ratio"] >= arm["goal"] else "**not met**"
        lines.append(
            f"| {arm['batch_rows']:,} | {'with' if arm['with_payload'] else 'ids only'} "
            f"| {arm['step_bytes']:,} | {arm['message_bytes']:,.0f} "
            f"| {arm['ours_per_s'] / 1e6:,.0f} | {arm['steps_per_s']:,.0f} "
            f"| {arm['bare_per_s'] / 1e6:,.0f} | {arm['ratio']:.2f} | {arm['goal']}, {verdict} |"
        )
    memory, clients = record["memory"], record["clients"]
    lines += [
        "",
        f"Over {memory['steps']:,} steps (in {memory['seconds']:,.0f} s) the server's resident "
        f"memory went from {memory['early_mb']:.0f} MB (median of the second tenth) to "
        f"{memory['late_mb']:.0f} MB (of the last), at most {memory['peak_mb']:.0f} MB.",
        "",
        f"{clients['clients']} clients at once, 1,024 steps each: {clients['answered']} got all of "
        f"theirs, together {clients['bytes_per_s'] / 1e6:,.0f} MB/s (one alone "
        f"{clients['alone_bytes_per_s'] / 1e6:,.0f}); the server grew by "
        f"{clients['mb_per_client']:.1f} MB a client.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    main()
