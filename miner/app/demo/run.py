"""Runs the demo: dataset, services, trainers and evaluation, as the separate processes they are.

glyphs -> for each service: serve -> for each of its arms: train -> evaluate -> table, picture
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from miner.app.contact_sheet import draw_sheet
from miner.app.demo.arms import ARMS, Arm, Pace, service_config, trainer_config
from miner.app.demo.processes import running, service, wait_for
from miner.app.demo.progress import DemoProgress, demo_progress
from miner.app.demo.report import ArmResult, show_results, write_results
from miner.data.glyphs import write_glyphs
from miner.errors import ConfigError
from miner.rounds import RoundLog

__all__ = ["DemoSettings", "prepare_folder", "run_arms", "run_demo"]

TRAIN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer")
# What an earlier demo wrote, if its marker is there; anything else in the folder is the user's.
OWN_FOLDERS = ("glyphs", "store", "services", "arms", "configs", "logs")
MARKER = ".coalface-demo"


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo may be asked for.

    Attributes:
        out: Folder of everything it writes.
        pace: Length and rhythm of the training.
    """

    out: Path
    pace: Pace = field(default_factory=Pace)


def run_demo(settings: DemoSettings) -> list[ArmResult]:
    """Run every arm, print the table, draw the groups; every process is stopped at the end.

    Raises:
        CoalfaceError: A part failed; the message holds the end of its log.
    """
    console, started_s = Console(), time.monotonic()
    out = settings.out.resolve()
    prepare_folder(out)
    for number in (signal.SIGTERM, signal.SIGHUP):  # end by exception, so that all is stopped
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with demo_progress(console) as progress, _quiet():
        results = run_arms(out, settings.pace, ARMS, progress)
    show_results(results, console)
    write_results(results, out)
    sheet = out / "groups.png"
    draw_sheet(out / "services" / "coalface", out / "store", sheet)
    console.print(f"mined groups to look at: {settings.out / sheet.name}")
    console.print(f"the table again: {settings.out / 'results.md'}")
    console.print(f"{time.monotonic() - started_s:.0f} s in all; nothing is left running")
    return results


def prepare_folder(out: Path) -> None:
    """An empty place for a demo: what an earlier one wrote there is removed.

    Raises:
        ConfigError: The folder holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise ConfigError(f"{out} is not empty and no earlier demo's: choose another folder")
    for name in OWN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def run_arms(
    out: Path, pace: Pace, arms: tuple[Arm, ...], progress: DemoProgress
) -> list[ArmResult]:
    """Train and evaluate ``arms`` after an untrained encoder, in this order, one at a time."""
    _render_glyphs(out, progress)
    results = [ArmResult("untrained", _evaluate(out, "untrained", pace, None, progress))]
    for name in dict.fromkeys(arm.service for arm in arms):
        members = [arm for arm in arms if arm.service == name]
        config = _write_yaml(out, f"miner-{name}", service_config(members[0], out, pace))
        state_dir = out / "services" / name
        waiting = progress.start(f"service: {name}")
        with service(config, state_dir, out / "logs" / f"miner-{name}.log") as address:
            progress.finish(waiting, note=address)
            for arm in members:
                _train(arm, out, pace, address, progress)
        results += [_result(arm, out, pace, progress) for arm in members]
    return results


def _render_glyphs(out: Path, progress: DemoProgress) -> None:
    if (out / "glyphs").exists():
        return
    task = progress.start("dataset: glyphs")
    report = write_glyphs(out / "glyphs", on_progress=lambda done, n: progress.move(task, done, n))
    note = f"{report.num_samples:,} images of {report.num_identities:,} identities"
    progress.finish(task, note=note)


def _train(arm: Arm, out: Path, pace: Pace, address: str, progress: DemoProgress) -> None:
    config = _write_yaml(out, f"trainer-{arm.key}", trainer_config(arm, out, pace, address))
    log, rounds = out / "logs" / f"trainer-{arm.key}.log", RoundLog(out / "services" / arm.service)
    journal = out / "arms" / arm.key / "journal-0.jsonl"
    task = progress.start(f"train: {arm.name}", pace.steps)
    with running([*TRAIN, "train", "--config", str(config)], log) as process:
        wait_for(process, log, on_poll=lambda: progress.follow(task, journal, rounds))


def _result(arm: Arm, out: Path, pace: Pace, progress: DemoProgress) -> ArmResult:
    summary = json.loads((out / "arms" / arm.key / "summary.json").read_text("utf-8"))
    log = RoundLog(out / "services" / arm.service)
    rounds = [log.manifest(round_id) for round_id in log.sealed_ids()]
    return ArmResult(
        name=arm.name,
        metrics=_evaluate(out, arm.key, pace, Path(summary["weights"]), progress),
        training_s=summary["training_s"],
        mining_s=sum(sum(manifest.phases_s.values()) for manifest in rounds),
        stalled_s=summary["stalled_s"],
        num_rounds=len(rounds),
    )


def _evaluate(
    out: Path, key: str, pace: Pace, weights: Path | None, progress: DemoProgress
) -> dict[str, float]:
    task = progress.start(f"evaluate: {key}")
    result, log = out / "arms" / key / "evaluation.json", out / "logs" / f"evaluate-{key}.log"
    result.parent.mkdir(parents=True, exist_ok=True)
    chosen = ["--weights", str(weights)] if weights else ["--untrained", "--seed", str(pace.seed)]
    dataset = ["--dataset", str(out / "glyphs" / "glyphs.parquet")]
    split = ["--split-column", "split", "--split", "test"]
    command = ["-m", "trainer", "evaluate", *chosen, *dataset, *split, "--out", str(result)]
    with running(command, log, num_threads=2) as process:
        wait_for(process, log)
    metrics = _figures(json.loads(result.read_text("utf-8")))
    progress.finish(task, note=f"MAP@R {100 * metrics['map_at_r']:.1f} %")
    return metrics


def _figures(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation; an interval is reduced to its value."""
    values = {
        key: value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in evaluation.items()
    }
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep log lines from tearing the bars."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_yaml(out: Path, name: str, config: dict[str, Any]) -> Path:
    path = out / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return path
