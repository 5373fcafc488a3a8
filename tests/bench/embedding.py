"""Rows embedded per second by Ray workers, beside a plain torch loop over the same row store.

    python -m tests.bench.embedding [--rows 12288] [--repeats 5]

Images are glyphs as PNG, the encoder is the reference trainer's, batches have 256 rows. The plain
loop is a process of its own with as many threads as there are cores: it maps the file, decodes,
embeds, normalises, keeps what comes out and is done. Workers also write what they made to disk,
with digests, chunk by chunk. Ray Data maps the same rows over a pool of two actors. Start-up
(processes, imports, the encoder's build) is left out of every arm and shown for itself; Ray Data's
is what one batch takes. Arms take turns in each repeat; ratios are of medians. Goal: 0.9 of the
plain loop. With a GPU (``--gpu``) every arm has it and no other shares it.
Results go to ``tests/bench/results/embedding.{json,md}``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.data import DatasetConfig, RowStore, ingest
from miner.data.glyphs import write_glyphs
from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from miner.workers.config import WorkersConfig
from tests.bench.end_to_end import code, machine

RESULTS = Path(__file__).parent / "results"
GOAL = 0.9
POOLS = {1: 2.0, 2: 1.0, 4: 0.5}
"""CPUs per worker, by the number of workers: two cores in all."""
DATA_BLOCK_BYTES = 8 * 2**20
"""Ray Data merges small images into so few blocks by default that one actor does all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=12_288)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--plain", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(json.dumps(plain_loop(Path(options.plain), options.gpu)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, options.rows)
        runs = measure(root, options.repeats, options.gpu)
    record = {
        "command": f"python -m tests.bench.embedding --rows {options.rows} --repeats "
        f"{options.repeats}" + " --gpu" * options.gpu,
        "code": code(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "ray", "pyarrow")},
        "num_rows": options.rows,
        "chunk_rows": WorkersConfig().chunk_rows,
        "arms": runs,
    }
    name = "embedding_gpu" if options.gpu else "embedding"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (RESULTS / f"{name}.md").write_text(markdown(record), "utf-8")
    print(markdown(record))


def prepare(root: Path, num_rows: int) -> None:
    """A row store of so many glyphs, the same ones again if there are fewer."""
    write_glyphs(root / "glyphs")
    images = pq.read_table(root / "glyphs" / "glyphs.parquet", columns=["image"])["image"]
    again = pa.chunked_array([images] * -(-num_rows // len(images))).slice(0, num_rows)
    table = pa.table(
        {"sample_id": range(num_rows), "identity": np.arange(num_rows) // 4, "image": again}
    )
    pq.write_table(table, root / "data.parquet")
    ingest(DatasetConfig(uri=str(root / "data.parquet")), root / "store")
    initial_weights(encoder_config(root), root / "weights.safetensors", 0)


def encoder_config(root: Path, gpu: bool = False) -> EncoderConfig:
    return EncoderConfig(
        encoder="trainer.encoder:build",
        preprocess="trainer.encoder:preprocess",
        device="cuda" if gpu else "cpu",
        weights_prefixes=(str(root),),
    )


def plain_loop(root: Path, gpu: bool) -> dict[str, float]:
    """What one would write: no Ray, no snapshot."""
    began_s = time.perf_counter()
    import safetensors.torch
    import torch

    from trainer import encoder

    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if gpu else "cpu")
    module = encoder.build().eval()
    module.load_state_dict(safetensors.torch.load_file(root / "weights.safetensors"))
    module.to(device)
    batch_rows = encoder_config(root).batch_rows
    source = pa.ipc.open_file(pa.memory_map(str(root / "store" / "payload.arrow")))
    rows = pa.Table.from_batches(source.get_batch(n) for n in range(source.num_record_batches))
    start_s = time.perf_counter() - began_s
    began_s, parts = time.perf_counter(), []
    with torch.inference_mode():
        for batch in rows.to_batches(max_chunksize=batch_rows):
            outputs = module(encoder.preprocess(batch).to(device))
            parts.append(torch.nn.functional.normalize(outputs).cpu().numpy())
    embeddings = np.concatenate(parts)
    return {
        "start_s": start_s,
        "seconds": time.perf_counter() - began_s,
        "check": float(np.abs(embeddings).sum()),
    }


def measure(root: Path, repeats: int, gpu: bool) -> dict[str, dict[str, Any]]:
    """Each arm once per repeat."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # as `coalface-miner serve` does
    pools = {1: 2.0} if gpu else POOLS
    arms: dict[str, Any] = {"plain torch loop": lambda _: run_plain(root, gpu)}
    for num_workers, cpus in pools.items():
        name = f"{num_workers} worker{'s' * (num_workers > 1)} of {cpus:g} CPU"
        arms[name] = lambda turn, of=(num_workers, cpus): run_pool(root, *of, gpu, turn)
    if not gpu:
        arms["Ray Data, 2 actors of 1 CPU"] = lambda _: run_data(root)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    num_cpus = (os.cpu_count() or 1) + 1  # Ray Data waits for ever if its actors take them all
    ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        for turn in range(repeats):
            for name, run in arms.items():
                found[name].append(run(turn))
                print(name, found[name][-1], flush=True)
    finally:
        ray.shutdown()
    num_rows = RowStore.open(root / "store").num_rows
    checks = [run["check"] for runs in found.values() for run in runs]
    assert max(checks) - min(checks) < 1e-4 * max(checks), "arms made other embeddings"
    plain_s = statistics.median(run["seconds"] for run in found["plain torch loop"])
    return {
        name: {
            "start_s": statistics.median(run["start_s"] for run in runs),
            "rows_per_s": num_rows / statistics.median(run["seconds"] for run in runs),
            "ratio": plain_s / statistics.median(run["seconds"] for run in runs),
            "runs": runs,
        }
        for name, runs in found.items()
    }


def run_plain(root: Path, gpu: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.embedding", "--plain", str(root)]
    told = subprocess.run(
        [*command, *["--gpu"] * gpu], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def run_pool(root: Path, num_workers: int, cpus: float, gpu: bool, turn: int) -> dict[str, float]:
    import ray

    from miner.workers.embed import EmbedPool
    from miner.workers.snapshot import SnapshotStore

    snapshots = SnapshotStore(root / f"snapshots-{num_workers}-{turn}")
    workers = WorkersConfig(
        num_embed_workers=num_workers, cpus_per_worker=cpus, gpus_per_worker=float(gpu)
    )
    began_s = time.perf_counter()
    pool = EmbedPool(workers, encoder_config(root, gpu), root / "store", snapshots)
    try:
        path = root / "weights.safetensors"
        key = pool.key(hashlib.sha256(path.read_bytes()).hexdigest())
        ray.get([worker.actor.start.remote() for worker in pool._crew.workers])
        start_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        pool.embed(key, str(path))
        seconds = time.perf_counter() - began_s
        embeddings = snapshots.open(key)
        return {"start_s": start_s, "seconds": seconds, "check": float(np.abs(embeddings).sum())}
    finally:
        pool.shutdown()


def run_data(root: Path) -> dict[str, float]:
    """The same by Ray Data; an actor is built anew for every run, so that is taken off."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = DATA_BLOCK_BYTES
    context.enable_progress_bars = False
    batch_rows = encoder_config(root).batch_rows

    def run(num_rows: int | None) -> tuple[float, float]:
        began_s = time.perf_counter()
        rows = ray.data.read_parquet(str(root / "data.parquet")).select_columns(["image"])
        rows = rows if num_rows is None else rows.limit(num_rows)
        embedded = rows.map_batches(
            DataEmbedder,
            fn_constructor_args=(root,),
            batch_size=batch_rows,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        parts = [
            np.stack(batch["embedding"]) for batch in embedded.iter_batches(batch_format="numpy")
        ]
        return time.perf_counter() - began_s, float(np.abs(np.concatenate(parts)).sum())

    start_s, _ = run(batch_rows)
    seconds, check = run(None)
    return {"start_s": start_s, "seconds": seconds - start_s, "check": check}


class DataEmbedder:
    def __init__(self, root: Path) -> None:
        import safetensors.torch
        import torch

        from trainer import encoder

        torch.set_num_threads(1)
        self.preprocess, self.module = encoder.preprocess, encoder.build().eval()
        self.module.load_state_dict(safetensors.torch.load_file(root / "weights.safetensors"))

    def __call__(self, batch: pa.Table) -> pa.Table:
        import torch

        (rows,) = batch.combine_chunks().to_batches()
        with torch.inference_mode():
            embeddings = torch.nn.functional.normalize(self.module(self.preprocess(rows)))
        return pa.table({"embedding": list(embeddings.numpy())})


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Embedding on Ray workers, beside a plain torch loop",
        "",
        f"`{record['command']}`, code {record['code']}, on {record['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f". {record['num_rows']:,} glyphs (PNG, 32 x 32), chunks of {record['chunk_rows']:,} "
        f"rows. Medians; start-up is not in the rows per second. Goal: {GOAL} of the plain loop.",
        "",
        "| arm | start-up, s | rows/s | of the plain loop |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, arm in record["arms"].items():
        lines.append(
            f"| {name} | {arm['start_s']:.1f} | {arm['rows_per_s']:,.0f} | {arm['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
