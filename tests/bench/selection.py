"""Time and memory of selection, everything after the search, for a million anchors.

    python -m tests.bench.selection [--rows 1000000] [--configs rank_window ...] [--repeats 3]

Each run is a fresh process that loads the candidates, sums both of their arrays five times (the
yardstick is the median), and calls ``select_groups`` once. Wall time is that of the machine as it
is, with the threads of selection side by side; processor time adds them up. Memory is the peak of
the resident set during the call less what was resident before it, so the groups that come out are
counted. Candidates are real neighbours of clustered vectors (see ``vectors.py``),
found by an inverted file with few probes. With ``--configs`` the figures of the others stay in the
results as they are: ``tests/bench/results/selection.{json,md}``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import psutil

from miner.core import QuarantineConfig, SelectionConfig, select_groups
from miner.types import Candidates, IdentityTable
from tests.bench.vectors import clustered

RESULTS = Path(__file__).parent / "results"
DIM, POWER, SEED = 64, 0.7, 0
ROWS_PER_IDENTITY = 20
CAPS = {"max_uses_per_sample": 8, "max_uses_per_identity": 200}
OFF = QuarantineConfig(policy="off")
CONFIGS = {
    "rank_window": {},
    "rank_window, no quarantine": {"quarantine": OFF},
    "rank_window, caps": CAPS,
    "hardest, caps": {"strategy": "hardest", **CAPS},
    "semi_hard": {"strategy": "semi_hard"},
    "semi_hard, caps": {"strategy": "semi_hard", **CAPS},
    "distance_weighted": {"strategy": "distance_weighted"},
    "simans": {"strategy": "simans"},
    "simans, caps, random tenth": {"strategy": "simans", "random_fraction": 0.1, **CAPS},
    "rank_window, floors and caps": {"min_uses_per_sample": 1, "min_uses_per_identity": 10, **CAPS},
    "curriculum": {"strategy": "curriculum"},
    "rank_window, diverse": {"composition": "diverse"},
    "rank_window, community": {"composition": "community"},
}
GOAL_SECONDS, GOAL_MEMORY = 60, 3
FILES = ("embeddings", "identity_ids", "row_ids", "similarities")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the catalog; all anchor")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--configs", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="selection", help="of the result files")
    parser.add_argument("--out", type=Path, default=Path("build/selection"))
    parser.add_argument("--worker", help="for the benchmark itself: measure this one once")
    options = parser.parse_args()
    folder = options.out / f"{options.rows}x{options.candidates}"
    if options.worker:
        print(json.dumps(measure(folder, options.worker, options.candidates)))
        return
    if not (folder / "ready").exists():
        prepare(folder, options.rows, options.candidates)
    # Round by round, so that what else the machine does falls on all of them.
    runs: dict[str, list[dict]] = {name: [] for name in options.configs}
    for _ in range(options.repeats):
        for name in options.configs:
            runs[name].append(in_fresh_process(options, name))
            print(name, runs[name][-1], flush=True)
            write(runs, options)


def prepare(folder: Path, num_rows: int, num_candidates: int) -> None:
    """Write a catalog's embeddings and the candidates of all its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    num_identities = num_rows // ROWS_PER_IDENTITY
    made = clustered(num_rows, num_identities, DIM, POWER, SEED, num_identities // 100)
    found = search(made.embeddings_ND, made.identity_ids_N, num_candidates)
    for name, array in zip(FILES, (made.embeddings_ND, made.identity_ids_N, *found), strict=True):
        np.save(folder / f"{name}.npy", array)
    (folder / "ready").touch()


def search(embeddings_ND, ids_N, num_candidates: int):
    """[N, K] near rows of other identities, -1 where fewer than K were found."""
    num_rows = len(embeddings_ND)
    lists = max(1, int(4 * num_rows**0.5))
    index = faiss.index_factory(DIM, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 5
    index.train(embeddings_ND[: 40 * lists])
    index.add(embeddings_ND)
    index.nprobe = 6
    row_ids_NK = np.full((num_rows, num_candidates), -1, np.int64)
    similarities_NK = np.full((num_rows, num_candidates), -np.inf, np.float32)
    for begin in range(0, num_rows, 1 << 14):
        part = slice(begin, begin + (1 << 14))
        near_bk, rows_bk = index.search(embeddings_ND[part], 4 * num_candidates)
        own_bk = (rows_bk < 0) | (ids_N[rows_bk] == ids_N[part, None])
        chosen_bK = np.argsort(own_bk, axis=1, kind="stable")[:, :num_candidates]
        kept_bK = ~np.take_along_axis(own_bk, chosen_bK, axis=1)
        row_ids_NK[part][kept_bK] = np.take_along_axis(rows_bk, chosen_bK, axis=1)[kept_bK]
        similarities_NK[part][kept_bK] = np.take_along_axis(near_bk, chosen_bK, axis=1)[kept_bK]
    return row_ids_NK, similarities_NK


def in_fresh_process(options: argparse.Namespace, name: str) -> dict:
    command = [sys.executable, "-m", "tests.bench.selection", "--worker", name]
    command += ["--rows", str(options.rows), "--candidates", str(options.candidates)]
    command += ["--out", str(options.out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, name: str, num_candidates: int) -> dict:
    embeddings_ND, ids_N, row_ids_AK, similarities_AK = (
        np.load(folder / f"{file}.npy") for file in FILES
    )
    identities = IdentityTable.from_ids(ids_N)
    anchor_ids_A = np.flatnonzero(identities.sizes_I[ids_N] >= 2)
    candidates = Candidates(anchor_ids_A, row_ids_AK[anchor_ids_A], similarities_AK[anchor_ids_A])
    del row_ids_AK, similarities_AK
    config = SelectionConfig(
        groups_per_round=1 << 20, num_candidates=num_candidates, **CONFIGS[name]
    )
    read_s, read_cpu_s = np.median([read_once(candidates) for _ in range(5)], axis=0).tolist()
    own_bytes = candidates.row_ids_AK.nbytes + candidates.similarities_AK.nbytes
    before = reset_peak()
    begun, cpu = time.perf_counter(), time.process_time()
    selection = select_groups(candidates, embeddings_ND, identities, config, seed=SEED, round_id=1)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    report = selection.report
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "read_s": round(read_s, 4),
        "read_cpu_s": round(read_cpu_s, 4),
        "times_reading": round(cpu_s / read_cpu_s, 1),
        "memory_ratio": round((peak() - before) / own_bytes, 2),
        "candidates_mb": own_bytes >> 20,
        "padding": round(float((candidates.row_ids_AK < 0).mean()), 4),
        "num_anchors": report.num_anchors,
        "num_groups": report.num_groups,
        "tiers": report.tiers,
        "anchors_short": report.anchors_short,
        "quarantined": len(report.quarantine.pairs),
        "most_used_sample": report.sample_exposure.max,
        "most_used_identity": report.identity_exposure.max,
    }


def read_once(candidates: Candidates) -> tuple[float, float]:
    """Wall and processor seconds of summing both arrays; that infinities are in them is no cost."""
    begun, cpu = time.perf_counter(), time.process_time()
    candidates.row_ids_AK.sum()
    candidates.similarities_AK.sum()
    return time.perf_counter() - begun, time.process_time() - cpu


def reset_peak() -> int:
    """Bytes resident now; the peak counts from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return psutil.Process().memory_info().rss


def peak() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def write(runs: dict[str, list[dict]], options: argparse.Namespace) -> None:
    path = RESULTS / f"{options.name}.json"
    earlier = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else {}
    done = earlier | {name: results for name, results in runs.items() if results}
    record = {
        "command": f"python -m tests.bench.selection --rows {options.rows} "
        f"--candidates {options.candidates} --repeats {options.repeats}",
        "set": f"{options.rows} rows, {options.rows // ROWS_PER_IDENTITY} identities of sizes as "
        f"rank^-{POWER}, {DIM} dimensions; every row an anchor, {options.candidates} candidates",
        "caps": CAPS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "faiss-cpu")},
        "runs": {name: done[name] for name in CONFIGS if name in done},
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (RESULTS / f"{options.name}.md").write_text(markdown(record), "utf-8")


def markdown(record: dict) -> str:
    def middle(results: list[dict], key: str) -> float:
        return statistics.median(result[key] for result in results)

    rows = [
        ["configuration", "seconds", "CPU s", "times reading", "memory", "groups", "short"],
        ["---", *["---:"] * 6],
    ]
    for name, results in record["runs"].items():
        seconds = ", ".join(f"{result['seconds']:.0f}" for result in results)
        rows.append(
            [
                name,
                f"{middle(results, 'seconds'):.1f} ({seconds})",
                f"{middle(results, 'cpu_s'):.1f}",
                f"{middle(results, 'times_reading'):.0f}",
                f"{max(result['memory_ratio'] for result in results):.2f}",
                f"{results[0]['num_groups']:,}",
                f"{results[0]['anchors_short']:,}",
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    caps = ", ".join(f"{key} {value}" for key, value in record["caps"].items())
    megabytes = next(iter(record["runs"].values()))[0]["candidates_mb"]
    return (
        "# Selection: time and memory\n\n"
        f"{record['set']}. `{record['command']}`: median of the runs, each in brackets.\n\n"
        + "\n".join(lines)
        + "\n\nSeconds: wall time, of a machine that had other work. Times reading: processor "
        "seconds over those of summing both candidate arrays once with NumPy. "
        f"Memory: peak beside the input, over the candidates' own {megabytes} MiB. Goals: under "
        f"{GOAL_SECONDS} s, under {GOAL_MEMORY} times. Caps: {caps}; short: anchors that found "
        f"fewer negatives than asked for.\n\n{record['machine']}; {versions}\n"
    )


if __name__ == "__main__":
    main()
