"""What a round costs at N rows: measured at a few sizes, checked at others, projected to more.

    python -m tests.bench.cost_model [--fit 30000 300000] [--check 100000 1000000] [--repeats 1]

Three parts are run at every size, each in a process of its own: ingestion of small PNGs and the
catalog; embedding by two Ray workers of one core with a narrow encoder (the network's share is a
factor that every user has to measure anyway, see ``tests/bench/embedding.py``; what is checked is
that time and disk are proportional to rows); mining of a round by ``ivf`` from vectors of 128
dimensions, once with every row as an anchor and once with 20,000. Constants are those of the sizes
to fit; at the sizes to check they foretell what was then measured. Then comes what they say of 10
million rows and more. Results: ``tests/bench/results/cost_model.{json,md}``.

Shape legend: N = rows, A = anchors, D = dimensions, K = candidates of an anchor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.end_to_end import DIM, FILES, NUM_CANDIDATES, code, machine, peak_mb, prepare

RESULTS = Path(__file__).parent / "results"
BUILD = Path("build")
FEW_ANCHORS = 20_000
WARM_UP = 25_000
PROJECTED = (10_000_000, 100_000_000, 1_000_000_000)
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", type=int, nargs=2, default=[30_000, 300_000])
    parser.add_argument("--check", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", nargs=2, metavar=("PART", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        part, num_rows = options.measure
        print(json.dumps(PARTS[part](int(num_rows))))
        return
    measure(WARM_UP)  # compiles what is compiled at first use
    sizes = sorted([*options.fit, *options.check])
    runs = {size: [measure(size) for _ in range(options.repeats)] for size in sizes}
    measured = {
        size: {name: statistics.median(run[name] for run in of) for name in of[0]}
        for size, of in runs.items()
    }
    constants = fit(*(measured[size] | {"rows": size} for size in options.fit))
    record = {
        "command": "python -m tests.bench.cost_model "
        f"--fit {' '.join(map(str, options.fit))} --check {' '.join(map(str, options.check))} "
        f"--repeats {options.repeats}",
        "code": code(),
        "machine": machine(),
        "fit": options.fit,
        "check": options.check,
        "measured": measured,
        "foretold": {size: foretell(constants, size) for size in sizes},
        "constants": constants,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cost_model.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (RESULTS / "cost_model.md").write_text(markdown(record), "utf-8")
    print(markdown(record))


def measure(num_rows: int) -> Figures:
    found: Figures = {}
    for part in PARTS:
        command = [sys.executable, "-m", "tests.bench.cost_model", "--measure", part, str(num_rows)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found |= json.loads(told.splitlines()[-1])
    print(num_rows, found, flush=True)
    return found


def measure_ingest(num_rows: int) -> Figures:
    """A Parquet file of glyphs into a row store; its catalog in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from miner.data import DatasetConfig, RowStore, ingest
    from miner.data.glyphs import write_glyphs

    root = BUILD / "cost_model" / str(num_rows)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    glyphs = BUILD / "cost_model" / "glyphs"
    if not glyphs.exists():
        write_glyphs(glyphs)
    images = pq.read_table(glyphs / "glyphs.parquet", columns=["image"])["image"]
    again = pa.chunked_array([images] * -(-num_rows // len(images))).slice(0, num_rows)
    ids = np.arange(num_rows)
    pq.write_table(
        pa.table({"sample_id": ids, "identity": ids // 20, "image": again}), root / "data.parquet"
    )
    del again, ids
    began_s = time.perf_counter()
    ingest(DatasetConfig(uri=str(root / "data.parquet")), root / "store")
    seconds = time.perf_counter() - began_s
    store = RowStore.open(root / "store")
    before_mb = resident_mb()
    catalog = store.catalog
    assert len(catalog.identities.rows_N) == num_rows
    return {
        "ingest_s": seconds,
        "ingest_peak_mb": peak_mb(),
        "store_mb": megabytes(root / "store"),
        "catalog_mb": resident_mb() - before_mb,
    }


def measure_embed(num_rows: int) -> Figures:
    """All rows on two workers; the start of the workers left out."""
    import hashlib

    import ray

    from miner.embedding.config import EncoderConfig
    from miner.embedding.weights import initial_weights
    from miner.workers.config import WorkersConfig
    from miner.workers.embed import EmbedPool
    from miner.workers.snapshot import SnapshotStore

    root = (BUILD / "cost_model" / str(num_rows)).absolute()
    encoder = EncoderConfig(
        encoder="trainer.encoder:build",
        encoder_args={"width": 2},
        preprocess="trainer.encoder:preprocess",
        device="cpu",
        weights_prefixes=(str(root),),
    )
    weights = root / "weights.safetensors"
    initial_weights(encoder, weights, 0)
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    snapshots = SnapshotStore(root / "snapshots")
    pool = EmbedPool(WorkersConfig(num_embed_workers=2), encoder, root / "store", snapshots)
    key = pool.key(hashlib.sha256(weights.read_bytes()).hexdigest())
    ray.get([worker.actor.start.remote() for worker in pool._crew.workers])
    began_s = time.perf_counter()
    pool.embed(key, str(weights))
    found = {"embed_s": time.perf_counter() - began_s, "embed_driver_mb": peak_mb()}
    found["snapshot_mb"] = megabytes(root / "snapshots")
    pool.shutdown()
    ray.shutdown()
    shutil.rmtree(root)
    return found


def measure_mine(num_rows: int, num_anchors: int | None = None) -> Figures:
    """A round of all rows, or of so many."""
    from miner import mine

    folder = BUILD / "end_to_end" / f"{num_rows}x{DIM}"
    prepare(folder, num_rows)
    out = folder / f"rounds-{os.getpid()}"
    selection = {"num_candidates": NUM_CANDIDATES, "identities_per_group": 6} | {
        "samples_per_identity": 1,
        **({} if num_anchors is None else {"groups_per_round": num_anchors}),
    }
    config = {"seed": 0, "index": {"kind": "ivf"}, "selection": selection}
    try:
        mined = mine(*(str(folder / name) for name in FILES), out=out, config=config)
        assert mined.manifest is not None
        phases_s, index = mined.manifest.phases_s, mined.manifest.index
        return {
            "search_s": phases_s["searching"],
            "select_s": phases_s["selecting"],
            "mine_peak_mb": peak_mb(),
            "round_mb": megabytes(out / "rounds"),
            "scanned": index["num_probes"] / index["num_lists"] * num_rows,
            "anchors": float(mined.report.num_anchors),
        }
    finally:
        shutil.rmtree(out, ignore_errors=True)


def measure_few(num_rows: int) -> Figures:
    found = measure_mine(num_rows, FEW_ANCHORS)
    return {"few_search_s": found["search_s"], "few_scanned": found["scanned"]}


PARTS: dict[str, Callable[[int], Figures]] = {
    "ingest": measure_ingest,
    "embed": measure_embed,
    "mine": measure_mine,
    "few": measure_few,
}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


LINES = (
    "ingest_s",
    "ingest_peak_mb",
    "store_mb",
    "catalog_mb",
    "embed_s",
    "snapshot_mb",
    "select_s",
    "mine_peak_mb",
    "round_mb",
)
"""What is a line over rows."""


def fit(small: Figures, large: Figures) -> Figures:
    """The constants, from two sizes.

    Lines have a slope and a start. Rows scanned for an anchor go with a power of N. A search takes
    a time per row of the set (lists are made and filled), and one per scanned row of each anchor.
    """
    constants: Figures = {}
    for name in LINES:
        each = (large[name] - small[name]) / (large["rows"] - small["rows"])
        constants[f"{name} a row"] = each
        constants[f"{name} at 0"] = small[name] - each * small["rows"]
    power = math.log(large["scanned"] / small["scanned"]) / math.log(large["rows"] / small["rows"])
    constants["scanned power"] = power
    constants["scanned at 1"] = large["scanned"] / large["rows"] ** power
    work = large["rows"] * large["scanned"] - FEW_ANCHORS * large["few_scanned"]
    constants["search_s a scanned row"] = (large["search_s"] - large["few_search_s"]) / work
    made_s = large["few_search_s"] - (
        constants["search_s a scanned row"] * FEW_ANCHORS * large["few_scanned"]
    )
    constants["search_s a row"] = made_s / large["rows"]
    return constants


def scanned(constants: Figures, num_rows: float) -> float:
    return constants["scanned at 1"] * num_rows ** constants["scanned power"]


def search_s(constants: Figures, num_rows: float, num_anchors: float) -> float:
    each = constants["search_s a scanned row"] * scanned(constants, num_rows)
    return constants["search_s a row"] * num_rows + each * num_anchors


def foretell(constants: Figures, num_rows: int) -> Figures:
    """What `measure` should find."""
    lines = {
        name: constants[f"{name} at 0"] + constants[f"{name} a row"] * num_rows for name in LINES
    }
    return lines | {
        "scanned": scanned(constants, num_rows),
        "search_s": search_s(constants, num_rows, num_rows),
        "few_search_s": search_s(constants, num_rows, FEW_ANCHORS),
    }


def markdown(record: dict[str, Any]) -> str:
    constants, names = record["constants"], [*LINES, "scanned", "search_s", "few_search_s"]
    lines = [
        "# What a round costs",
        "",
        f"`{record['command']}`, code {record['code']}, on {record['machine']}. Vectors of {DIM} "
        f"dimensions, K = {NUM_CANDIDATES}; `few` is of {FEW_ANCHORS:,} anchors, all else of every "
        "row. Foretold by constants of the sizes that are fitted, over what was measured.",
        "",
        "| figure | "
        + " | ".join(f"{size:,}: measured | foretold / measured" for size in record["check"])
        + " |",
        "| --- |" + " ---: | ---: |" * len(record["check"]),
    ]
    for name in names:
        cells = []
        for size in record["check"]:
            found, said = record["measured"][size][name], record["foretold"][size][name]
            cells += [f"{found:,.1f}", f"{said / found:.2f}" if found else "-"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| constant | value |", "| --- | ---: |"]
    lines += [f"| {name} | {value:.4g} |" for name, value in constants.items()]
    lines += [
        "",
        "Projected, one process with this machine's two cores, a million anchors a round:",
        "",
        "| rows | embedding here, h | snapshot, GB | catalog, GB | lists and search, h "
        "| of 16 shards, h | rows scanned for an anchor |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for num_rows in PROJECTED:
        anchors = min(num_rows, 1_000_000)
        cells = [
            f"{constants['embed_s a row'] * num_rows / 3600:,.1f}",
            f"{constants['snapshot_mb a row'] * num_rows / 1e3:,.0f}",
            f"{constants['catalog_mb a row'] * num_rows / 1e3:,.1f}",
            f"{search_s(constants, num_rows, anchors) / 3600:,.2f}",
            f"{search_s(constants, num_rows / 16, anchors) / 3600:,.2f}",
            f"{scanned(constants, num_rows):,.0f}",
        ]
        lines.append(f"| {num_rows:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
