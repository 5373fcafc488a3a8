"""What should a group be made of, and which loss bears it? Arms over several image sets and seeds.

    python -m tests.bench.datasets.glyph_sets && python -m tests.bench.datasets.spoken_words
    python -m tests.bench.composition [--sets glyphs han words] [--seeds 1 2 3] [--arms PATTERN]

Every arm has the same encoder, optimizer, margin, steps and images per step, and is measured on
identities that no training saw. A finished run is a line of ``--log``; runs that are in it are not
repeated. ``--report`` writes ``tests/bench/results/composition.{json,md}`` from the log. A set
``words+20`` is ``words`` with 20 % wrong labels in the training rows.
"""

import argparse
import fnmatch
import json
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from tests.bench.composition_arms import ARMS
from tests.bench.composition_report import show, write
from tests.bench.composition_train import Arm, Study, load, train

SETS = ("glyphs", "han", "words")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--folder", type=Path, default=Path("build/research/sets"))
    parser.add_argument("--arms", nargs="+", default=["*"], help="names, or patterns of names")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--log", type=Path, default=Path("build/research/composition.jsonl"))
    parser.add_argument("--until", help="start no run after this time of day, HH:MM UTC")
    parser.add_argument("--report", action="store_true", help="train nothing, write the results")
    for setting in fields(Study):
        kind = type(setting.default)
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default
        )
    options = parser.parse_args()
    study = Study(**{setting.name: getattr(options, setting.name) for setting in fields(Study)})
    if options.report:
        write(read(options.log), study, options.sets)
        return
    torch.set_num_threads(1)
    arms = [a for a in ARMS if any(fnmatch.fnmatchcase(a.name, p) for p in options.arms)]
    for seed in options.seeds:
        for name in options.sets:
            run_set(options, study, name, seed, arms)
    show(read(options.log), study, options.sets)


def run_set(
    options: argparse.Namespace, study: Study, name: str, seed: int, arms: list[Arm]
) -> None:
    splits = None
    for arm in arms:
        key = key_of(name, arm, seed, study)
        if any(record["key"] == key for record in read(options.log)):
            continue
        if options.until and time.strftime("%H:%M", time.gmtime()) >= options.until:
            return
        splits = splits or load(options.folder, name)
        result = train(arm, splits, study, seed)
        record = {"key": key, "set": name, "arm": arm.name, "seed": seed, "study": asdict(study)}
        options.log.parent.mkdir(parents=True, exist_ok=True)
        with options.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | {"recipe": asdict(arm)} | result) + "\n")
        print(
            f"{name:7} {arm.name:48} seed {seed}: R@1 {100 * result['recall_at_1']:.1f} "
            f"MAP@R {100 * result['map_at_r']:.2f} TAR {100 * result['tar_at_far']:.1f} "
            f"crowding {result['crowding'][0]:.2f}>{result['crowding'][-1]:.2f} "
            f"{result['training_s']:.0f} s",
            flush=True,
        )


def key_of(name: str, arm: Arm, seed: int, study: Study) -> str:
    return json.dumps([name, asdict(arm), seed, asdict(study)], sort_keys=True)


def read(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
