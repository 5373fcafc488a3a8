"""Tables of the composition study: on the terminal, and as the result files."""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.composition_arms import ARMS, BASELINES
from tests.bench.composition_train import Study

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "pytorch-metric-learning", "numpy")
SCREENING_SEED = 0
CONCLUSIONS = "\n## What follows from it\n"
FIGURES = ("recall_at_1", "map_at_r", "map_at_r_by_identity", "tar_at_far", "roc_auc")
Record = dict[str, Any]


def show(records: list[Record], study: Study, sets: list[str]) -> None:
    """MAP@R of every arm and seed, on the terminal."""
    records = of_study(records, study)
    for arm in arms_of(records):
        cells = [cell(pick(records, arm, name), "map_at_r") for name in sets]
        print(f"{arm:48} " + "   ".join(f"{text:30}" for text in cells))


def write(records: list[Record], study: Study, sets: list[str]) -> None:
    """The result files, from every record of the log."""
    records = once(records)
    main = of_study(records, study)
    clean = [name for name in sets if "+" not in name]
    final = [record for record in main if record["seed"] != SCREENING_SEED]
    screening = [record for record in main if record["seed"] == SCREENING_SEED]
    text = "\n".join(
        [
            "# What a group is made of, and which loss bears it",
            "",
            f"{study.steps} steps of {study.batch_rows} images, AdamW at {study.lr:g}, a new round "
            f"every {study.refresh_steps} steps after {study.warmup_steps} on random groups, the "
            f"demo's encoder at width {study.width}; measured on identities that no training saw. "
            "`python -m tests.bench.composition`; percent; mean, and each seed in brackets.",
            "",
            "Lead: over the better of the two in-batch baselines (random groups, hard or "
            "semi-hard) on that set, over the seeds that all three have.",
            "",
            "## Seeds that chose nothing",
            "",
            *table(final, clean, lead=True),
            "",
            "TAR at FAR 1e-3:",
            "",
            *table(final, clean, key="tar_at_far", lead=True),
            "",
            f"## Screening, seed {SCREENING_SEED}",
            "",
            *table(screening, clean, lead=True, both=True),
            "",
            "## Wrong labels: 20 % and 40 % of the training rows, all seeds",
            "",
            *table(main, [name for name in sets if "+" in name], both=True),
            "",
            "## Learning rate, chosen on the in-batch baselines",
            "",
            *rates(records, study, clean),
            "",
            f"{platform.machine()}, one process on one CPU thread; python "
            f"{platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
            "",
        ]
    )
    kept = ("set", "arm", "seed", "study", "recipe", *FIGURES, "crowding", "training_s", "mining_s")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "composition.md"
    before = path.read_text("utf-8") if path.exists() else ""
    # What was written by hand stays.
    text += "".join(before.partition(CONCLUSIONS)[1:])
    path.write_text(text, "utf-8")
    lines = ",\n".join(json.dumps(rounded({k: record[k] for k in kept})) for record in records)
    (RESULTS / "composition.json").write_text(f"[\n{lines}\n]\n", "utf-8")


def once(records: list[Record]) -> list[Record]:
    """Every run once, of arms that there are; a run repeated with another result is refused."""
    found: dict[str, Record] = {}
    for record in records:
        first = found.setdefault(record["key"], record)
        if first["map_at_r"] != record["map_at_r"]:
            raise ValueError(f"two results of one run: {record['key']}")
    names = {arm.name for arm in ARMS}
    return [record for record in found.values() if record["arm"] in names]


def rounded(record: Record) -> Record:
    return {key: round(v, 5) if isinstance(v, float) else v for key, v in record.items()}


def table(
    records: list[Record],
    sets: list[str],
    *,
    key: str = "map_at_r",
    lead: bool = False,
    both: bool = False,
) -> list[str]:
    """A line per arm, a column per set; ``lead``: over the better of the two baselines on the set.

    ``both``: MAP@R / TAR.
    """
    head = ["arm", *(f"{name}: {'MAP@R / TAR' if both else title(key)}" for name in sets)]
    head += [f"{name}: lead" for name in sets] if lead else []
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for arm in arms_of([record for record in records if record["set"] in sets]):
        line = [arm]
        for name in sets:
            found = pick(records, arm, name)
            line.append(
                cell(found, key) + (f" / {cell(found, 'tar_at_far')}" if both and found else "")
            )
        line += [lead_of(records, arm, name, key) for name in sets] if lead else []
        lines.append(line)
    return [f"| {' | '.join(line)} |" for line in lines]


def lead_of(records: list[Record], arm: str, name: str, key: str) -> str:
    """Over the seeds that the arm and both baselines have."""
    found = [{r["seed"]: r[key] for r in pick(records, a, name)} for a in (arm, *BASELINES)]
    seeds = set(found[0]).intersection(*found[1:])
    if not seeds or arm in BASELINES:
        return ""
    own, *others = (statistics.mean(100 * of[seed] for seed in seeds) for of in found)
    return f"{own - max(others):+.1f}"


def rates(records: list[Record], study: Study, sets: list[str]) -> list[str]:
    found = sorted(
        {r["study"]["lr"] for r in records if of_study([r], replace(study, lr=r["study"]["lr"]))}
    )
    lines = [["lr", "arm", *sets], ["---:", "---", *["---:"] * len(sets)]]
    for lr in found:
        at_lr = [r for r in of_study(records, replace(study, lr=lr)) if r["seed"] == SCREENING_SEED]
        for arm in BASELINES:
            cells = [cell(pick(at_lr, arm, name), "map_at_r") for name in sets]
            lines.append([f"{lr:g}", arm, *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def of_study(records: list[Record], study: Study) -> list[Record]:
    return [record for record in records if record["study"] == asdict(study)]


def arms_of(records: list[Record]) -> list[str]:
    there = {record["arm"] for record in records}
    return [arm.name for arm in ARMS if arm.name in there]


def pick(records: list[Record], arm: str, name: str) -> list[Record]:
    found = [r for r in records if r["arm"] == arm and r["set"] == name]
    return sorted(found, key=lambda record: record["seed"])


def title(key: str) -> str:
    return {"map_at_r": "MAP@R", "tar_at_far": "TAR", "recall_at_1": "R@1"}[key]


def cell(records: list[Record], key: str) -> str:
    values = [100 * record[key] for record in records]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ({', '.join(f'{v:.1f}' for v in values)})"
