"""What it costs to search in several shards, beside one, on this machine.

    python -m tests.bench.shards [--rows 100000] [--repeats 3]

Every row is an anchor. All shards share the machine's cores, one CPU each where there are two, so
nothing is gained here: a ratio is what several processes, blocks of anchors and merging cost, or,
of lists, what it costs to search several smaller sets of them. One shard is today's single process.
Times are of ``search_snapshot``, the start of its processes left out. Candidates of ``flat`` are
compared to the bit; recall of lists is measured over all rows. The set is that of
``tests/bench/search.py``. Results go to ``tests/bench/results/shards.{json,md}``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ray

from miner.index.config import IndexConfig
from miner.types import IdentityTable
from miner.workers import shards as shards_module
from miner.workers.config import WorkersConfig
from miner.workers.search import SearchOutcome, SearchRequest, search_snapshot
from miner.workers.snapshot import SnapshotKey, SnapshotStore
from tests.bench.search import DECAY, DIM, POWER, ROWS_PER_IDENTITY, SEED
from tests.bench.vectors import clustered

RESULTS = Path(__file__).parent / "results"
NUM_CANDIDATES = 50
SHARDS = (1, 2, 4)
KINDS = ("flat", "ivf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ray.init(num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        request = snapshot_in(Path(folder), options.rows)
        arms = measure(request, options.repeats)
    record = {
        "command": f"python -m tests.bench.shards --rows {options.rows} "
        f"--repeats {options.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "ray")},
        "vectors": {"dim": DIM, "power": POWER, "decay": DECAY, "seed": SEED},
        "num_rows": options.rows,
        "num_candidates": NUM_CANDIDATES,
        "message_bytes": shards_module.MESSAGE_BYTES,
        "arms": arms,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "shards.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (RESULTS / "shards.md").write_text(markdown(record), "utf-8")
    print(markdown(record))


def snapshot_in(root: Path, num_rows: int) -> SearchRequest:
    made = clustered(
        num_rows, num_rows // ROWS_PER_IDENTITY, DIM, POWER, SEED, num_rows // 2000, decay=DECAY
    )
    store, key = SnapshotStore(root), SnapshotKey("w", "p", "d", num_rows, 8192)
    for chunk in range(key.num_chunks):
        store.write_chunk(key, chunk, made.embeddings_ND[slice(*key.rows_of(chunk))])
    identities = IdentityTable.from_ids(made.identity_ids_N)
    return SearchRequest(store, key, identities, np.arange(num_rows), NUM_CANDIDATES)


def measure(request: SearchRequest, repeats: int) -> list[dict]:
    """Arms in turn in each repeat, so that what else the machine does meets all of them."""
    times: dict[tuple[str, int], list[float]] = {(k, s): [] for k in KINDS for s in SHARDS}
    found: dict[tuple[str, int], SearchOutcome] = {}
    for repeat in range(repeats + 1):
        for (kind, num_shards), measured in times.items():
            seconds, outcome = timed(request, kind, num_shards)
            print(repeat, kind, num_shards, f"{seconds:.2f} s", outcome.index, flush=True)
            if repeat:  # the first time code is compiled
                measured.append(seconds)
            found[kind, num_shards] = outcome
    arms = []
    for (kind, num_shards), seconds in times.items():
        one = found[kind, 1]
        outcome = found[kind, num_shards]
        arms.append(
            {
                "kind": kind,
                "num_shards": num_shards,
                "seconds": seconds,
                "over_one": statistics.median(
                    a / b for a, b in zip(seconds, times[kind, 1], strict=True)
                ),
                "recall_at_10": outcome.recall,
                "recall_at_50": recall_at_50(outcome, found["flat", 1]),
                "num_probes": outcome.index.get("num_probes"),
                "num_lists": outcome.index.get("num_lists"),
                "is_same": all(
                    getattr(outcome.candidates, name).tobytes()
                    == getattr(one.candidates, name).tobytes()
                    for name in ("row_ids_AK", "similarities_AK")
                ),
            }
        )
    return arms


def timed(request: SearchRequest, kind: str, num_shards: int) -> tuple[float, SearchOutcome]:
    """Seconds from when the processes are there."""
    num_cpus = max(1, (os.cpu_count() or 1) // num_shards)
    workers = WorkersConfig(search_shards=num_shards, search_cpus=num_cpus, nice=0)
    placed_s, wait = [time.perf_counter()], ray.wait

    def spy(*args, **options):
        result = wait(*args, **options)
        placed_s.append(time.perf_counter())
        return result

    ray.wait = spy
    try:
        outcome = search_snapshot(request, IndexConfig(kind=kind), workers)
    finally:
        ray.wait = wait
    return time.perf_counter() - placed_s[1], outcome


def recall_at_50(found: SearchOutcome, exact: SearchOutcome) -> float:
    least = exact.candidates.similarities_AK[:, -1:] - np.float32(1e-6)
    return float((found.candidates.similarities_AK >= least).mean())


def markdown(record: dict) -> str:
    lines = [
        "# Search in shards",
        "",
        f"`{record['command']}` on {record['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f". {record['num_rows']:,} rows of {DIM} dimensions, all of them anchors, K = "
        f"{NUM_CANDIDATES}; medians.",
        "",
        "| kind | shards | seconds | over one shard | recall@10 | recall@50 | lists | probes "
        "| candidates of one shard |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for arm in record["arms"]:
        recalls = [arm["recall_at_10"] or 1.0, arm["recall_at_50"]]
        lines.append(
            f"| {arm['kind']} | {arm['num_shards']} | {statistics.median(arm['seconds']):.1f} "
            f"| {arm['over_one']:.2f} | "
            + " | ".join(f"{value:.3f}" for value in recalls)
            + f" | {arm['num_lists'] or ''} | {arm['num_probes'] or ''} "
            f"| {'the same bits' if arm['is_same'] else 'others'} |"
        )
    lines += [
        "",
        "All shards share this machine's cores, so this is what several processes cost, not what "
        "several machines gain; other work on it moves the ratios. The start of the processes is "
        "left out. Lists and probes are sums over the shards.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
