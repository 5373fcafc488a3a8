"""Speed and recall of the search for candidates, beside FAISS's plain search.

    python -m tests.bench.search [--rows 100000 1000000] [--repeats 3]

Every row is an anchor of the inverted lists; flat searches take a seeded slice of the anchors, each
as long as the other, and are given as anchors per second. ``faiss.knn`` masks no identity: of what
it finds, part is of the anchor's own. Sets are clustered vectors of 128 dimensions with identities
of power-law size (``vectors.py``, decay 0.8); how hard they are is shown by the recall of a plain
inverted file of FAISS on them. The second round is of the same rows after some training
(``moved``), searched with what the first search has left. Goals are for the median of the repeats.
Results go to ``tests/bench/results/search.{json,md}``.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np

from miner.index.candidate_search import CandidateSearch
from miner.index.config import IndexConfig
from miner.index.recall import measure_recall
from miner.types import Candidates, IdentityTable
from tests.bench.vectors import Clustered, clustered, moved

RESULTS = Path(__file__).parent / "results"
DIM, POWER, DECAY, SEED = 128, 0.7, 0.8, 0
ROWS_PER_IDENTITY = 20
NUM_CANDIDATES, RECALL_AT = 50, 10
MOVED_BY = 0.1
FLAT_PRODUCTS = 8 * 10**8
"""Of a slice of anchors with all rows: a few seconds."""
PLAIN = {"num_lists": 1024, "num_probes": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="search", help="of the result files")
    options = parser.parse_args()
    sets: dict[int, dict] = {}
    for num_rows in options.rows:
        made = clustered(
            num_rows, num_rows // ROWS_PER_IDENTITY, DIM, POWER, SEED, num_rows // 2000, decay=DECAY
        )
        runs = [measure(made, repeat) for repeat in range(options.repeats)]
        sets[num_rows] = {"runs": runs, "plain_ivf_recall": plain_recall(made)} | {
            name: statistics.median(run[name] for run in runs) for name in runs[0]
        }
        print(num_rows, sets[num_rows], flush=True)
        write(sets, options)


def measure(made: Clustered, seed: int) -> dict[str, float]:
    """Anchors per second of each search; new lists each time."""
    rows_ND, identities = made.embeddings_ND, IdentityTable.from_ids(made.identity_ids_N)
    num_rows = len(rows_ND)
    rng = np.random.default_rng(seed)
    anchors = np.sort(rng.permutation(num_rows)[: FLAT_PRODUCTS // num_rows])
    flat = CandidateSearch(rows_ND, identities, IndexConfig())
    inverted = CandidateSearch(rows_ND, identities, IndexConfig(kind="ivf"), seed=seed)
    knn_s, _ = timed(
        lambda: faiss.knn(
            rows_ND[anchors], rows_ND, NUM_CANDIDATES, metric=faiss.METRIC_INNER_PRODUCT
        )
    )
    flat_s, exact = timed(lambda: flat(anchors, NUM_CANDIDATES))
    inverted_s, found = timed(lambda: inverted(np.arange(num_rows), NUM_CANDIDATES))
    sampled = of(found, anchors)
    description = inverted.description
    before = inverted.warm_start
    rows_ND = moved(rows_ND, MOVED_BY, seed)
    second = CandidateSearch(rows_ND, identities, IndexConfig(kind="ivf"), seed=seed, before=before)
    second_s, found_again = timed(lambda: second(np.arange(num_rows), NUM_CANDIDATES))
    exact_again = CandidateSearch(rows_ND, identities, IndexConfig())(anchors, NUM_CANDIDATES)
    return {
        "knn_per_s": len(anchors) / knn_s,
        "flat_per_s": len(anchors) / flat_s,
        "ivf_per_s": num_rows / inverted_s,
        "second_per_s": num_rows / second_s,
        "second_over_first": second_s / inverted_s,
        "second_recall_at_10": measure_recall(of(found_again, anchors), exact_again, 10).value,
        "second_recall_at_50": measure_recall(of(found_again, anchors), exact_again, 50).value,
        "second_probes": second.description["num_probes"],
        "ivf_s": inverted_s,
        "flat_over_knn": knn_s / flat_s,
        "ivf_over_knn": num_rows / inverted_s / (len(anchors) / knn_s),
        "recall_at_10": measure_recall(sampled, exact, RECALL_AT).value,
        "recall_at_50": measure_recall(sampled, exact, NUM_CANDIDATES).value,
        "num_lists": description["num_lists"],
        "num_probes": description["num_probes"],
    }


def of(found: Candidates, anchors: np.ndarray) -> Candidates:
    """Some anchors of a search in which every row was one."""
    return Candidates(anchors, found.row_ids_AK[anchors], found.similarities_AK[anchors])


def timed(work) -> tuple[float, object]:
    begun_s = time.perf_counter()
    result = work()
    return time.perf_counter() - begun_s, result


def plain_recall(made: Clustered) -> float:
    """Recall@10 of FAISS's own inverted file, own identity taken out of its nearest 2048."""
    rows_ND, ids_N = made.embeddings_ND, made.identity_ids_N
    anchors = np.sort(np.random.default_rng(SEED).permutation(len(rows_ND))[:500])
    exact = CandidateSearch(rows_ND, IdentityTable.from_ids(ids_N), IndexConfig())
    best = exact(anchors, RECALL_AT)
    quantizer = faiss.IndexFlatIP(DIM)
    index = faiss.IndexIVFFlat(quantizer, DIM, PLAIN["num_lists"], faiss.METRIC_INNER_PRODUCT)
    index.train(rows_ND[:: max(1, len(rows_ND) // 100_000)])
    index.add(rows_ND)
    index.nprobe = PLAIN["num_probes"]
    similarities, rows = index.search(rows_ND[anchors], 2048)
    similarities[(ids_N[rows] == ids_N[anchors][:, None]) | (rows < 0)] = -np.inf
    similarities = -np.sort(-similarities, axis=1)[:, :RECALL_AT]
    return measure_recall(Candidates(anchors, rows, similarities), best, RECALL_AT).value


def write(sets: dict[int, dict], options: argparse.Namespace) -> None:
    record = {
        "command": f"python -m tests.bench.search --rows {' '.join(map(str, sets))} "
        f"--repeats {options.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("faiss-cpu", "numpy")},
        "vectors": {"dim": DIM, "power": POWER, "decay": DECAY, "seed": SEED},
        "num_candidates": NUM_CANDIDATES,
        "plain_ivf": PLAIN,
        "sets": sets,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (RESULTS / f"{options.name}.md").write_text(markdown(record), "utf-8")


def markdown(record: dict) -> str:
    lines = [
        "# Search for candidates",
        "",
        f"`{record['command']}` on {record['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f". K = {NUM_CANDIDATES}, {DIM} dimensions; medians.",
        "",
        "| rows | faiss.knn | flat | ivf | second | flat / knn | ivf / knn | second / first (time) "
        "| recall@10 | recall@50 | second's @10 | second's @50 | lists | probes | second's probes "
        "| plain IVF's recall@10 |",
        "| ---: |" + " ---: |" * 15,
    ]
    for rows, one in record["sets"].items():
        cells = [f"{one[f'{name}_per_s']:,.0f}" for name in ("knn", "flat", "ivf", "second")]
        cells += [
            f"{one[name]:.2f}" for name in ("flat_over_knn", "ivf_over_knn", "second_over_first")
        ]
        recalls = ("recall_at_10", "recall_at_50", "second_recall_at_10", "second_recall_at_50")
        cells += [f"{one[name]:.3f}" for name in recalls]
        cells += [f"{one[name]:.0f}" for name in ("num_lists", "num_probes", "second_probes")]
        cells.append(f"{one['plain_ivf_recall']:.3f}")
        lines.append(f"| {rows:,} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Anchors per second. flat: the anchor's identity masked, exact. ivf: all rows are anchors; "
        "training, filling, choosing the depth for recall@10 of 0.95 and measuring recall "
        f"included. second: the rows after some training (moved by {MOVED_BY}), searched with what "
        "the first search left. faiss.knn masks nothing. Plain IVF: FAISS's own inverted file with "
        f"{PLAIN['num_lists']} lists and {PLAIN['num_probes']} probes, a measure of the set.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
