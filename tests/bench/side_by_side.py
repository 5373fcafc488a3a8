"""Side by side with sentence-transformers' ``mine_hard_negatives``, on the same vectors.

    python -m tests.bench.side_by_side [--sets small large] [--seed 0]

Every row is an anchor and gets 5 negatives out of all rows. They get pairs (row, another row of its
identity) with the row number as text, a stand-in model that looks the vectors up, and all rows as
corpus; we get vectors and identities. What is counted comes from the two outputs alone. Writes
``tests/bench/results/side_by_side.{json,md}``.
"""

import argparse
import json
import os
import platform
import random
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from miner.core import QuarantineConfig, Selection, SelectionConfig, mine_round
from miner.core.positives import random_positives
from miner.core.report import gini
from miner.index.candidate_search import CandidateSearch
from miner.index.config import IndexConfig
from miner.types import Candidates, IdentityTable
from tests.bench.side_by_side_report import markdown
from tests.bench.vectors import FAMILY, FAMILY_SPREAD, LOOSENESS, Clustered, clustered

RESULTS = Path(__file__).parent / "results"
DIM, NEGATIVES = 64, 5
OFF = QuarantineConfig(policy="off")


@dataclass(frozen=True)
class Problem:
    """One set of vectors and how each side is asked to mine it."""

    num_rows: int
    num_identities: int
    power: float
    num_duplicates: int
    spread: float
    theirs: dict[str, dict]
    ours: dict[str, dict]


@dataclass(frozen=True)
class Mined:
    """What one side gave: negatives of anchors, and the time it took, wall and processor."""

    anchors_T: np.ndarray
    negatives_T: np.ndarray
    seconds: float
    cpu_s: float


THEIRS = {
    "defaults": {},
    "random of the nearest 50": {"range_max": 50, "sampling_strategy": "random"},
    "relative_margin 0.05": {"relative_margin": 0.05},
    "the example of its documentation": {
        "range_min": 10,
        "range_max": 50,
        "max_score": 0.8,
        "relative_margin": 0.05,
        "sampling_strategy": "random",
    },
}
ALL_PAIRS = {
    "all pairs of an identity given": {"pairs": "others"},
    "all pairs given, with itself": {"pairs": "all"},
}
CAPS = {"max_uses_per_sample": 6, "max_uses_per_identity": 60}
"""A row is used 5 times on average; with 10 rows each, an identity 50 times."""
EVEN = CAPS | {"min_uses_per_sample": 3}
CAPS_LARGE = {"max_uses_per_sample": 8, "max_uses_per_identity": 300}
EVEN_LARGE = EVEN | {"max_uses_per_identity": 10_000}
"""Rows of an identity that has 2,000 cannot be used like others' within 300 uses of it. Both leave
room for a fifth more uses than there are; 6 and 200 would leave too little."""
NO_BOUNDS = {"no bounds": {}, "no bounds, no quarantine": {"quarantine": OFF}}


def ours(even: dict, caps: dict) -> dict[str, dict]:
    """Our arms; the goals are for the first."""
    hardest = {"strategy": "hardest", **even}
    return {"floors and caps": even, "caps": caps, "hardest, floors and caps": hardest} | NO_BOUNDS


PROBLEMS = {
    "small": Problem(5000, 500, 0.0, 10, 0.8, THEIRS | ALL_PAIRS, ours(EVEN, CAPS)),
    "confused": Problem(5000, 500, 0.0, 10, 1.1, THEIRS | ALL_PAIRS, ours(EVEN, CAPS)),
    "large": Problem(100_000, 5000, 0.7, 100, 0.8, THEIRS, ours(EVEN_LARGE, CAPS_LARGE)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="side_by_side", help="of the result files")
    options = parser.parse_args()
    sets: dict[str, dict] = {}
    for name in options.sets:
        problem = PROBLEMS[name]
        made = clustered(
            problem.num_rows,
            problem.num_identities,
            DIM,
            problem.power,
            options.seed,
            problem.num_duplicates,
            problem.spread,
        )
        sets[name] = {"set": describe(made), "arms": {}}
        sides = {"ours": (Ours(made), problem.ours), "theirs": (Theirs(made), problem.theirs)}
        for side, (miner, arms) in sides.items():
            for arm, settings in arms.items():
                mined, notes = miner.mine(settings, options.seed)
                shown = {key: value for key, value in settings.items() if key != "quarantine"}
                result = {"settings": shown} | figures(mined, made) | notes
                sets[name]["arms"][f"{side}: {arm}"] = result
                print(name, side, arm, result, flush=True)
        arms_by_side = sorted(sets[name]["arms"].items(), key=lambda arm: arm[0].startswith("ours"))
        sets[name]["arms"] = dict(arms_by_side)
        sets[name]["goals"] = goals(sets[name]["arms"])
        print(name, sets[name]["goals"], flush=True)
        write(sets, options)


class LookedUp:
    """Stands in for a model: a text is a row number, its embedding that row."""

    def __init__(self, embeddings_ND: np.ndarray) -> None:
        self.device = torch.device("cpu")
        self._embeddings_ND = embeddings_ND

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        return self._embeddings_ND[np.array(texts, np.int64)]

    encode_query = encode_document = encode

    def get_embedding_dimension(self) -> int:
        return self._embeddings_ND.shape[1]

    def similarity(self, left, right) -> torch.Tensor:
        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left, right) -> torch.Tensor:
        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(1)


class Theirs:
    """``mine_hard_negatives`` on pairs of row numbers."""

    def __init__(self, made: Clustered) -> None:
        self._identities = IdentityTable.from_ids(made.identity_ids_N)
        self._model = LookedUp(made.embeddings_ND)
        self._corpus = texts(np.arange(self._identities.num_rows))

    def mine(self, settings: dict, seed: int) -> tuple[Mined, dict]:
        """Triplets as they come out; of an anchor with several positives each negative once."""
        settings = dict(settings)
        anchors, positives = pairs(self._identities, settings.pop("pairs", "one"), seed)
        dataset = Dataset.from_dict({"anchor": texts(anchors), "positive": texts(positives)})
        random.seed(seed)
        begun = now()
        triplets = mine_hard_negatives(
            dataset,
            self._model,
            corpus=self._corpus,
            num_negatives=NEGATIVES,
            use_faiss=True,
            verbose=False,
            **settings,
        )
        took = now() - begun
        both = np.stack([np.array(triplets[name], np.int64) for name in ("anchor", "negative")], 1)
        if len(anchors) > self._identities.num_rows:
            both = np.unique(both, axis=0)
        return Mined(both[:, 0], both[:, 1], *took), {}


def pairs(identities: IdentityTable, which: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``one`` random positive a row; all ``others`` of its identity; ``all``, the row too."""
    rows_N = np.arange(identities.num_rows)
    if which == "one":
        return rows_N, random_positives(identities, rows_N, seed=seed, round_id=1)
    own = [identities.rows_of(identity) for identity in identities.identity_ids_N]
    anchors = np.repeat(rows_N, [len(rows) for rows in own])
    positives = np.concatenate(own)
    kept = np.ones(len(anchors), np.bool_) if which == "all" else anchors != positives
    return anchors[kept], positives[kept]


def texts(rows: np.ndarray) -> list[str]:
    return [str(row) for row in rows.tolist()]


class Ours:
    """``mine_round`` on vectors and identities; arms share their one exact search."""

    def __init__(self, made: Clustered) -> None:
        self._made, self._identities = made, IdentityTable.from_ids(made.identity_ids_N)
        self._exact = CandidateSearch(
            made.embeddings_ND, self._identities, IndexConfig(kind="flat")
        )
        self._found: dict[int, tuple[Candidates, np.ndarray]] = {}
        self._searching = np.zeros(2)

    def mine(self, settings: dict, seed: int) -> tuple[Mined, dict]:
        """The triplets of one round; the time includes the search, also where it is shared."""
        config = SelectionConfig(
            groups_per_round=self._identities.num_rows,
            identities_per_group=NEGATIVES + 1,
            **settings,
        )
        begun, before = now(), self._searching.copy()
        selection = mine_round(
            self._search, self._made.embeddings_ND, self._identities, config, seed=seed, round_id=1
        )
        took = now() - begun - (self._searching - before)
        _, search = self._found[config.num_candidates]
        mined = Mined(*triplet_rows(selection), *(took + search))
        planted = {tuple(pair) for pair in self._made.duplicates_Q2.tolist()}
        listed = {tuple(pair.identities) for pair in selection.report.quarantine.pairs}
        return mined, {
            "search_s": round(float(search[0]), 2),
            "search_cpu_s": round(float(search[1]), 2),
            "quarantined": len(listed),
            "quarantined_and_planted": len(listed & planted),
            "tiers": selection.report.tiers,
            "floors_unmet": selection.report.floors_unmet,
            "caps_hold": caps_hold(mined, self._made, config),
            "distinct_identities": distinct_identities(mined, self._made),
        }

    def _search(self, anchor_ids_A: np.ndarray, num_candidates: int) -> Candidates:
        if num_candidates not in self._found:
            begun = now()
            found = self._exact(anchor_ids_A, num_candidates)
            self._found[num_candidates] = found, now() - begun
            self._searching += self._found[num_candidates][1]
        found, _ = self._found[num_candidates]
        assert np.array_equal(found.anchor_ids_A, anchor_ids_A)
        return found


def now() -> np.ndarray:
    """Wall and processor seconds."""
    return np.array((time.perf_counter(), time.process_time()))


def triplet_rows(selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Row ids of the anchor and the negative of every triplet."""
    groups = selection.groups
    starts_T = np.repeat(groups.row_offsets_G1[:-1], np.diff(groups.triplet_offsets_G1))
    rows_R = groups.row_ids_R
    return rows_R[starts_T + groups.anchors_T], rows_R[starts_T + groups.negatives_T]


def caps_hold(mined: Mined, made: Clustered, config: SelectionConfig) -> bool:
    uses_N = np.bincount(mined.negatives_T)
    uses_I = np.bincount(made.identity_ids_N[mined.negatives_T])
    caps = (config.max_uses_per_sample, config.max_uses_per_identity)
    return all(
        cap is None or int(uses_n.max()) <= cap
        for cap, uses_n in zip(caps, (uses_N, uses_I), strict=True)
    )


def distinct_identities(mined: Mined, made: Clustered) -> bool:
    both = np.stack((mined.anchors_T, made.identity_ids_N[mined.negatives_T]), 1)
    return len(np.unique(both, axis=0)) == len(both)


def figures(mined: Mined, made: Clustered) -> dict:
    """What can be said of any miner's output."""
    ids_N, num_rows = made.identity_ids_N, len(made.identity_ids_N)
    own_T, other_T = ids_N[mined.anchors_T], ids_N[mined.negatives_T]
    twin_I = np.full(int(ids_N.max()) + 1, -1, np.int32)
    twin_I[made.duplicates_Q2[:, 0]] = made.duplicates_Q2[:, 1]
    twin_I[made.duplicates_Q2[:, 1]] = made.duplicates_Q2[:, 0]
    true_T = (own_T != other_T) & (twin_I[own_T] != other_T)
    uses_N = np.bincount(mined.negatives_T, minlength=num_rows)
    given_N = np.bincount(mined.anchors_T, minlength=num_rows)
    good_N = np.bincount(mined.anchors_T[true_T], minlength=num_rows)
    embeddings_ND = made.embeddings_ND
    similarity_T = np.einsum(
        "td,td->t", embeddings_ND[mined.anchors_T[true_T]], embeddings_ND[mined.negatives_T[true_T]]
    )
    return {
        "negatives": len(own_T),
        "same_identity": float((own_T == other_T).mean()),
        "anchor_itself": float((mined.anchors_T == mined.negatives_T).mean()),
        "planted_duplicate": float((twin_I[own_T] == other_T).mean()),
        "gini_of_rows": gini(uses_N),
        "gini_of_rows_of_others": gini(
            np.bincount(mined.negatives_T[own_T != other_T], minlength=num_rows)
        ),
        "gini_of_identities": gini(np.bincount(other_T, minlength=len(twin_I))),
        "most_used_row": int(uses_N.max()),
        "rows_never_used": int((uses_N == 0).sum()),
        "anchors_underfilled": int((given_N < NEGATIVES).sum()),
        "anchors_without_5_true_negatives": int((good_N < NEGATIVES).sum()),
        "mean_similarity_of_true_negatives": float(similarity_T.mean()),
        "seconds": round(float(mined.seconds), 2),
        "cpu_s": round(float(mined.cpu_s), 2),
    }


def describe(made: Clustered) -> dict:
    """Sizes, and how much identities overlap."""
    ids_N = made.identity_ids_N
    sizes_I = np.bincount(ids_N)
    probes = np.random.default_rng(0).permutation(len(ids_N))[:5000]
    alone = IdentityTable.from_ids(np.arange(len(ids_N), dtype=np.int32))
    exact = CandidateSearch(made.embeddings_ND, alone, IndexConfig(kind="flat"))
    nearest = exact(probes, 1).row_ids_AK[:, 0]
    other = ids_N[nearest] != ids_N[probes]
    planted = {frozenset(pair) for pair in made.duplicates_Q2.tolist()}
    twin = [
        frozenset(pair) in planted
        for pair in zip(ids_N[nearest].tolist(), ids_N[probes].tolist(), strict=True)
    ]
    return {
        "num_rows": len(ids_N),
        "num_identities": len(sizes_I),
        "dim": made.embeddings_ND.shape[1],
        "sizes": {
            "min": int(sizes_I.min()),
            "median": float(np.median(sizes_I)),
            "max": int(sizes_I.max()),
        },
        "planted_pairs": len(made.duplicates_Q2),
        "nearest_row_of_another_identity": float(other.mean()),
        "nearest_row_of_planted_duplicate": float(np.mean(twin)),
    }


def goals(arms: dict[str, dict]) -> dict[str, bool | dict[str, float]]:
    """What our first arm shows, and its Gini (of rows) over that of each of theirs."""
    own = next(result for name, result in arms.items() if name.startswith("ours"))
    theirs = {name: result for name, result in arms.items() if name.startswith("theirs")}
    every_own = [result for name, result in arms.items() if name.startswith("ours")]
    return {
        "no_negative_of_the_anchors_identity": all(arm["same_identity"] == 0 for arm in every_own),
        "caps_hold": all(arm["caps_hold"] for arm in every_own),
        "gini_over_theirs": {
            name: round(own["gini_of_rows"] / result["gini_of_rows"], 3)
            for name, result in theirs.items()
        },
        "gini_of_others_over_theirs": {
            name: round(own["gini_of_rows"] / result["gini_of_rows_of_others"], 3)
            for name, result in theirs.items()
        },
    }


def write(sets: dict[str, dict], options: argparse.Namespace) -> None:
    record = {
        "command": f"python -m tests.bench.side_by_side --sets {' '.join(sets)} "
        f"--seed {options.seed}",
        "negatives": NEGATIVES,
        "vectors": {"family": FAMILY, "family_spread": FAMILY_SPREAD, "looseness": LOOSENESS}
        | {
            name: {
                "power": problem.power,
                "spread": problem.spread,
                "num_duplicates": problem.num_duplicates,
            }
            for name, problem in PROBLEMS.items()
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "versions": {"python": platform.python_version()}
        | {
            name: version(name)
            for name in ("sentence-transformers", "datasets", "torch", "faiss-cpu", "numpy")
        },
        "sets": sets,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (RESULTS / f"{options.name}.md").write_text(markdown(record), "utf-8")


if __name__ == "__main__":
    main()
