"""From embeddings on disk to a sealed round, beside sentence-transformers on the same vectors.

    python -m tests.bench.end_to_end [--rows 100000 300000 1000000] [--repeats 3] [--slice 10000]

Ours is one ``miner.mine``: read, check, search, select, write; every row is an anchor. Theirs is
one ``mine_hard_negatives(use_faiss=True)`` that looks as deep and gives as many negatives; above
100,000 rows it gets a seeded slice of the anchors, against all rows. The time that all would take
is then read off a line through the slice and a few anchors, so what it does once per corpus is
shared by all. Every run is a fresh process, theirs after ours after theirs; imports are not timed,
files are in the page cache. Memory is the peak of the resident set. A size is saved when it is
done, one that is not run stays as it is: ``tests/bench/results/end_to_end.{json,md}``.

Shape legend: N = rows, D = dimensions, A = anchors, K = candidates of an anchor, T = triplets.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

import tests.bench.vectors
from miner.types import IdentityTable
from tests.bench.end_to_end_report import markdown
from tests.bench.vectors import clustered

RESULTS = Path(__file__).parent / "results"
DIM, POWER, DECAY, SEED = 128, 0.7, 0.8, 0
ROWS_PER_IDENTITY = 20
NUM_CANDIDATES, NEGATIVES = 50, 5
OURS: dict[str, Any] = {
    "seed": SEED,
    "index": {"kind": "auto"},
    "selection": {
        "num_candidates": NUM_CANDIDATES,
        "identities_per_group": NEGATIVES + 1,
        "samples_per_identity": 1,
    },
}
"""A group is what theirs gives for an anchor: anchor, positive and negatives."""
THEIRS: dict[str, Any] = {"range_max": NUM_CANDIDATES, "num_negatives": NEGATIVES}
"""The nearest ones, by default: quicker than drawing them at random."""
ALL_ANCHORS_UP_TO = 100_000
FEW = 100
"""Anchors of the run that shows what theirs does once per corpus."""
JUDGED, RECALL_AT = 10_000, 10
"""Anchors on which recall is measured after the clock has stopped, and of how many rows."""
LIMIT_S = 3600
FILES = ("embeddings.npy", "identities.npy")
LIBRARIES = ("sentence-transformers", "datasets", "torch", "faiss-cpu", "numpy", "pyarrow")

I64 = npt.NDArray[np.int64]
Made = TypeVar("Made")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slice", type=int, default=10_000, help="anchors of theirs, above 100000")
    parser.add_argument("--name", default="end_to_end", help="of the result files")
    parser.add_argument("--build", type=Path, default=Path("build/end_to_end"))
    parser.add_argument("--worker", choices=list(SIDES), help="for the benchmark itself: mine once")
    options = parser.parse_args()
    if options.worker:
        num_rows = options.rows[0]
        print(json.dumps(SIDES[options.worker](folder_of(options, num_rows), options.slice)))
        return
    for num_rows in options.rows:
        prepare(folder_of(options, num_rows), num_rows)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side in SIDES:
                runs[side].append(in_turn(options, side, num_rows))
                print(num_rows, side, json.dumps(runs[side][-1]), flush=True)
        save(options, num_rows, runs)


def folder_of(options: argparse.Namespace, num_rows: int) -> Path:
    folder: Path = options.build / f"{num_rows}x{DIM}"
    return folder


def prepare(folder: Path, num_rows: int) -> None:
    """Write the vectors, if those that are there were not made in the same way."""
    source = Path(tests.bench.vectors.__file__).read_bytes()
    recipe = f"{POWER} {DECAY} {SEED} {ROWS_PER_IDENTITY} {hashlib.sha256(source).hexdigest()}\n"
    done = folder / "recipe"
    if done.exists() and done.read_text("utf-8") == recipe:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = clustered(num_rows, num_rows // ROWS_PER_IDENTITY, DIM, POWER, SEED, decay=DECAY)
    for name, array in zip(FILES, (made.embeddings_ND, made.identity_ids_N), strict=True):
        np.save(folder / name, array)
    done.write_text(recipe, "utf-8")


def in_turn(options: argparse.Namespace, side: str, num_rows: int) -> dict[str, Any]:
    """One run of a side; of theirs, where it gets a slice, one more of a few anchors."""
    num_anchors = num_rows if num_rows <= ALL_ANCHORS_UP_TO else min(options.slice, num_rows)
    found = in_fresh_process(options, side, num_rows, num_anchors)
    if side == "ours" or num_anchors == num_rows or "failed" in found:
        return found
    few = in_fresh_process(options, side, num_rows, FEW)
    return few if "failed" in few else found | of_all_anchors(found, few, num_rows)


def in_fresh_process(
    options: argparse.Namespace, side: str, num_rows: int, num_anchors: int
) -> dict[str, Any]:
    """What the side's worker found; ``failed`` with the reason if it did not come to its end."""
    command = [sys.executable, "-m", "tests.bench.end_to_end", "--worker", side]
    command += ["--rows", str(num_rows), "--slice", str(num_anchors), "--build", str(options.build)]
    began_s, others_s = time.perf_counter(), of_other_processes_s()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_S} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"failed": f"exit {done.returncode}: {said[-1][:400]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    others = (of_other_processes_s() - others_s) / (time.perf_counter() - began_s)
    return found | {"cores_of_others": round(others, 2)}


def of_other_processes_s() -> float:
    """Processor seconds that were neither idle nor this process's or its children's."""
    fields = Path("/proc/stat").read_text("utf-8").splitlines()[0].split()[1:9]
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, fields)
    busy_s = (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
    return busy_s - sum(os.times()[:4])


def of_all_anchors(took: dict[str, Any], few: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """What all rows as anchors would take, by the line through two numbers of anchors."""
    estimate: dict[str, float] = {}
    for name in ("seconds", "cpu_s"):
        each = (took[name] - few[name]) / (took["anchors"] - few["anchors"])
        estimate[name] = took[name] + (num_rows - took["anchors"]) * each
    return {
        "anchors_per_s": num_rows / estimate["seconds"],
        "slice_per_s": took["anchors_per_s"],
        "few": few,
        **{f"all_{name}": value for name, value in estimate.items()},
    }


def mine_ours(folder: Path, _num_anchors: int) -> dict[str, Any]:
    """One round of all rows, sealed in a new folder."""
    from miner import mine

    for name in ("faiss", "miner.index.candidate_search"):
        import_module(name)  # not to be timed
    files = [str(folder / name) for name in FILES]
    out = folder / f"rounds-{os.getpid()}"
    ids_N = np.load(folder / FILES[1])
    before_mb = peak_mb()
    try:
        mined, took = timed(lambda: mine(*files, out=out, config=OURS))
        peak = peak_mb()
        judged = judge(folder, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assert mined.manifest is not None
    record = mined.manifest
    arrays_mb = len(ids_N) * (DIM * 4 + NUM_CANDIDATES * 12) / 1e6
    anchors_T, _, negatives_T = mined.groups.triplet_rows()
    rest_s = took["seconds"] - sum(record.phases_s.values())
    return took | {
        "anchors": mined.report.num_anchors,
        "anchors_per_s": mined.report.num_anchors / took["seconds"],
        "peak_mb": peak,
        "peak_before_mb": before_mb,
        "beyond_embeddings_and_candidates_mb": peak - arrays_mb,
        "groups": record.num_groups,
        "recall": record.recall,
        "judged_recall": judged,
        "index": record.index,
        "phases_s": record.phases_s | {"writing": round(rest_s, 3)},
        **describe(anchors_T, negatives_T, ids_N, np.arange(len(ids_N))),
    }


def judge(folder: Path, out: Path) -> dict[str, float] | None:
    """Recall of the candidates that a search has left, by exact ones of a sample; None if none."""
    from miner.index.recall import measure_recall
    from miner.index.sweep import sweep
    from miner.index.threads import workers
    from miner.types import Candidates

    if not (out / "search.safetensors").exists():
        return None
    rows_ND = np.load(folder / FILES[0])
    _, ids_N = np.unique(np.load(folder / FILES[1]), return_inverse=True)
    anchors_S = np.sort(
        np.random.default_rng(SEED).choice(len(rows_ND), min(JUDGED, len(rows_ND)), replace=False)
    )
    with safe_open(out / "search.safetensors", "numpy") as file:
        found_SR = file.get_tensor("neighbours")[anchors_S, :RECALL_AT].astype(np.int64)
    similarities_SR = np.einsum("sd,srd->sr", rows_ND[anchors_S], rows_ND[found_SR])
    identities = IdentityTable.from_ids(ids_N.astype(np.int32))
    with workers(os.cpu_count() or 1) as each:
        exact = sweep(rows_ND, identities, anchors_S, RECALL_AT, each)
    recall = measure_recall(Candidates(anchors_S, found_SR, similarities_SR), exact, RECALL_AT)
    return {"value": recall.value, "low": recall.low, "high": recall.high}


def mine_theirs(folder: Path, num_anchors: int) -> dict[str, Any]:
    """All rows as corpus; of the anchors, each with one random positive, as many as were asked."""
    import_module("faiss")  # not to be timed
    dataset_of = import_module("datasets").Dataset.from_dict
    mine_hard_negatives = import_module("sentence_transformers.util").mine_hard_negatives
    from tests.bench.side_by_side import LookedUp, pairs, texts

    ids_N = np.load(folder / FILES[1])
    anchors_N, positives_N = pairs(IdentityTable.from_ids(ids_N), "one", SEED)
    on_disk: Any = RowsOnDisk(folder / FILES[0])
    model = LookedUp(on_disk)
    corpus = texts(np.arange(len(ids_N)))

    anchors_A = np.sort(np.random.default_rng(SEED).choice(anchors_N, num_anchors, replace=False))
    columns = {"anchor": texts(anchors_A), "positive": texts(positives_N[anchors_A])}
    dataset = dataset_of(columns)
    before_mb = peak_mb()
    triplets, took = timed(
        lambda: mine_hard_negatives(
            dataset, model, corpus=corpus, use_faiss=True, verbose=False, **THEIRS
        )
    )
    peak = peak_mb()
    anchors_T, negatives_T = (np.array(triplets[of], np.int64) for of in ("anchor", "negative"))
    return took | {
        "anchors": num_anchors,
        "anchors_per_s": num_anchors / took["seconds"],
        "peak_mb": peak,
        "peak_before_mb": before_mb,
        **describe(anchors_T, negatives_T, ids_N, anchors_A),
    }


class RowsOnDisk:
    """Rows of a file, mapped only while some are taken: what lies there is no memory of theirs."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.shape = np.load(file, mmap_mode="r").shape

    def __getitem__(self, rows_B: I64) -> npt.NDArray[np.float32]:
        taken_BD: npt.NDArray[np.float32] = np.load(self._file, mmap_mode="r")[rows_B]
        return taken_BD


SIDES: dict[str, Callable[[Path, int], dict[str, Any]]] = {"ours": mine_ours, "theirs": mine_theirs}


def timed(work: Callable[[], Made]) -> tuple[Made, dict[str, float]]:
    """The result; wall seconds and processor seconds of all threads."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    made = work()
    return made, {
        "seconds": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - began_cpu_s,
    }


def peak_mb() -> float:
    """Highest resident set of this process so far, pages of mapped files among them."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib * 1024 / 1e6


def describe(anchors_T: I64, negatives_T: I64, ids_N: I64, asked_A: I64) -> dict[str, float]:
    """What the anchors got; a negative is valid if it is of another identity than its anchor."""
    assert np.isin(anchors_T, asked_A).all()
    valid_T = ids_N[anchors_T] != ids_N[negatives_T]
    return {
        "anchors_with_a_valid_negative": len(np.unique(anchors_T[valid_T])) / len(asked_A),
        "negatives_per_anchor": len(anchors_T) / len(asked_A),
        "valid_negatives_per_anchor": int(valid_T.sum()) / len(asked_A),
    }


def save(options: argparse.Namespace, num_rows: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Put the size among those that are there."""
    file = RESULTS / f"{options.name}.json"
    sets = json.loads(file.read_text("utf-8"))["sets"] if file.exists() else {}
    sets[str(num_rows)] = {
        "command": f"python -m tests.bench.end_to_end --rows {' '.join(map(str, options.rows))} "
        f"--repeats {options.repeats} --slice {options.slice}",
        "code": code(),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version_of(name) for name in LIBRARIES},
        "vectors": {"dim": DIM, "power": POWER, "decay": DECAY, "seed": SEED}
        | {"num_identities": num_rows // ROWS_PER_IDENTITY},
        "num_candidates": NUM_CANDIDATES,
        "negatives": NEGATIVES,
        "few": FEW,
        "judged": JUDGED,
        "settings": {"ours": OURS, "theirs": THEIRS},
        "runs": runs,
        "medians": {side: medians(runs[side]) for side in runs},
    }
    record = {"sets": dict(sorted(sets.items(), key=lambda one: int(one[0])))}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    page = markdown(record)
    file.with_suffix(".md").write_text(page, "utf-8")
    print(page, flush=True)


def medians(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of each figure and each phase, over the runs that came to their end; None if none did."""
    done = [run for run in runs if "failed" not in run]
    if not done:
        return None
    middle: dict[str, Any] = {
        name: statistics.median(run[name] for run in done)
        for name, value in done[0].items()
        if isinstance(value, int | float)
    }
    if "phases_s" in done[0]:
        phases = [run["phases_s"] for run in done]
        middle["phases_s"] = {
            name: statistics.median(phase[name] for phase in phases) for name in phases[0]
        }
    return middle


def code() -> str:
    """The commit that is measured; ``dirty`` if the tree is not quite that."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory_gb:.0f} GB"
    )


def version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
