"""Does the quarantine find identities that are one? Glyphs that are equal to the pixel are known.

    python -m tests.bench.quarantine [--steps 0 150 400] [--out build/quarantine]

On the demo's glyph set, Latin, Greek and Cyrillic capitals (and many others) share their drawing in
most fonts. A pair of identities counts as true if their images are equal to the pixel in at least
half of the fonts that have both; capitals are those of Latin, Greek and Cyrillic. Writes
``tests/bench/results/quarantine.{json,md}``: precision and recall of the listed pairs, with
embeddings from none to well trained.
"""

import argparse
import hashlib
import itertools
import json
import platform
import unicodedata
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from miner.core import QuarantineConfig
from miner.core.pairs import IdentityPairs
from miner.core.positives import random_positives
from miner.core.quarantine import Quarantine, inspect_identities
from miner.core.similarities import pair_similarities
from miner.data.glyphs import write_glyphs
from miner.index.candidate_search import CandidateSearch
from miner.index.config import IndexConfig
from miner.types import Candidates, IdentityTable
from tests.bench.composition_train import WARMUP, Arm, Rounds, Split, Study
from trainer.config import LossConfig
from trainer.encoder import build, preprocess
from trainer.losses import TripletLoss

RESULTS = Path(__file__).parent / "results"
NUM_CANDIDATES = 64
Pairs = set[tuple[int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 150, 400])
    parser.add_argument("--out", type=Path, default=Path("build/quarantine"))
    options = parser.parse_args()
    table = pq.read_table(write_glyphs(options.out).path).combine_chunks()
    names, ids_N = np.unique(table["identity"].to_numpy(), return_inverse=True)
    identities = IdentityTable.from_ids(ids_N.astype(np.int32))
    truth, touching = equal_pairs(table, ids_N)
    capitals = {(a, b) for a, b in truth if is_capital(names[a]) and is_capital(names[b])}
    images = preprocess(table.to_batches()[0]).mul(255).round().to(torch.uint8)
    split = Split(images, ids_N.astype(np.int32))
    lines: list[dict] = []
    for name, embeddings_ND in embeddings(split, options.steps):
        candidates = search(embeddings_ND, identities)
        found = inspect(candidates, embeddings_ND, identities)
        suspicion = found.suspicion
        listed = set(zip(suspicion.left_Q.tolist(), suspicion.right_Q.tolist(), strict=True))
        lines.append(figures(name, found, listed, (truth, touching, capitals)))
        print(lines[-1], flush=True)
    write(lines, table.num_rows, len(names), len(truth), options.steps)
    for kind, pairs in (("missed", truth - listed), ("listed, not equal", listed - touching)):
        shown = sorted(pairs)[:20]
        print(kind, len(pairs), [f"{character(names[a])}{character(names[b])}" for a, b in shown])


def character(name: str) -> str:
    return chr(int(name.removeprefix("U+"), 16))


def is_capital(name: str) -> bool:
    title = unicodedata.name(character(name), "")
    return title.startswith(("LATIN CAPITAL", "GREEK CAPITAL", "CYRILLIC CAPITAL"))


def equal_pairs(table, ids_N: np.ndarray) -> tuple[Pairs, Pairs]:
    """Pairs equal in at least half of their common fonts, and those equal in any."""
    fonts_of, by_image = defaultdict(set), defaultdict(set)
    for identity, font, image in zip(
        ids_N.tolist(), table["font"].to_pylist(), table["image"].to_pylist(), strict=True
    ):
        fonts_of[identity].add(font)
        by_image[font, hashlib.sha256(image).digest()].add(identity)
    equal = Counter(
        pair for same in by_image.values() for pair in itertools.combinations(sorted(same), 2)
    )
    truth = {
        (a, b) for (a, b), count in equal.items() if 2 * count >= len(fonts_of[a] & fonts_of[b])
    }
    return truth, set(equal)


def embeddings(split: Split, steps: list[int]):
    """Pixels themselves, then one encoder at several steps of a training on random batches."""
    flat = split.images_N.flatten(1).float()
    yield "pixels", functional.normalize(flat - flat.mean(0)).numpy()
    torch.manual_seed(0)
    module = build()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-2)
    loss = TripletLoss(LossConfig())
    rounds = Rounds(Arm("random", "sum", WARMUP), split, Study(steps=max(steps)), seed=0)
    for step in range(max(steps) + 1):
        if step in steps:
            yield f"encoder after {step} steps", embed(module, split)
        rows, batch = rounds.next(module, step)
        module.train()
        value = loss(functional.normalize(module(split.images_N[rows].float() / 255)), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


@torch.inference_mode()
def embed(module: torch.nn.Module, split: Split) -> np.ndarray:
    module.eval()
    parts = [functional.normalize(module(x.float() / 255)) for x in split.images_N.split(512)]
    return torch.cat(parts).numpy()


def search(embeddings_ND: np.ndarray, identities: IdentityTable) -> Candidates:
    anchors = np.flatnonzero(identities.sizes_I[identities.identity_ids_N] >= 2)
    exact = CandidateSearch(embeddings_ND, identities, IndexConfig(kind="flat"))
    return exact(anchors, NUM_CANDIDATES)


def inspect(
    candidates: Candidates, embeddings_ND: np.ndarray, identities: IdentityTable
) -> Quarantine:
    ids_A = candidates.anchor_ids_A
    positives_A = random_positives(identities, ids_A, seed=0, round_id=1)
    return inspect_identities(
        candidates,
        pair_similarities(embeddings_ND, ids_A, positives_A),
        embeddings_ND,
        identities,
        config=QuarantineConfig(),
        known=IdentityPairs.none(identities.num_identities),
        seed=0,
    )


def figures(name: str, found: Quarantine, pairs: Pairs, known: tuple[Pairs, Pairs, Pairs]) -> dict:
    truth, touching, capitals = known
    return {
        "embedding": name,
        "confusion_rate": round(found.confusion_rate, 4),
        "tested": found.num_tested,
        "listed": len(pairs),
        "precision": round(len(pairs & truth) / max(1, len(pairs)), 4),
        "precision_any_font": round(len(pairs & touching) / max(1, len(pairs)), 4),
        "recall": round(len(pairs & truth) / len(truth), 4),
        "recall_capitals": f"{len(pairs & capitals)} of {len(capitals)}",
    }


def write(lines: list[dict], num_rows: int, num_identities: int, num_true: int, steps: list[int]):
    record = {
        "command": f"python -m tests.bench.quarantine --steps {' '.join(map(str, steps))}",
        "rows": num_rows,
        "identities": num_identities,
        "true_pairs": num_true,
        "machine": f"{platform.machine()}, CPU",
        "versions": {n: version(n) for n in ("numpy", "torch", "faiss-cpu")},
        "lines": lines,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quarantine.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    keys = list(lines[0])
    rows = [keys, ["---"] * len(keys), *([str(line[key]) for key in keys] for line in lines)]
    text = (
        "# Identities that are one: what the quarantine finds on glyphs\n\n"
        f"{num_rows} glyphs of {num_identities} characters; {num_true} pairs of characters are "
        "equal to the pixel in at least half of the fonts that have both. "
        f"`{record['command']}`; every row is an anchor.\n\n"
        + "\n".join(f"| {' | '.join(row)} |" for row in rows)
        + f"\n\n{record['machine']}; {record['versions']}\n"
    )
    (RESULTS / "quarantine.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
