"""The adapter on a real Ray Train: the same batches and losses as under torchrun."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from miner.app.demo.processes import running, wait_for
from tests.deploy.shipped import DEPLOY
from tests.integration.conftest import loop
from tests.integration.loop import Loop, wait_until

__all__ = ["loop"]

STEPS, EVERY = 24, 5
ADAPTER = str(DEPLOY / "ray_train.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def config_of(loop: Loop, name: str, run_id: str) -> str:
    """One random round, repeated: what is trained depends on the steps alone."""
    tree = loop.trainer_config() | {
        "run_id": run_id,
        "out": str(loop.folder / name),
        "steps": STEPS,
        "miner": {"address": loop.address, "patience_s": 60},
        "checkpoint": {"every_steps": EVERY},
        "announce": {"every_steps": 0},
    }
    path = loop.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def torchrun(loop: Loop, name: str, run_id: str, ranks: int) -> None:
    train = ["-m", "trainer", "train", "--config", config_of(loop, name, run_id)]
    with running([*TORCHRUN, str(ranks), *train], loop.log_of(name)) as process:
        wait_for(process, loop.log_of(name))


def trained(loop: Loop, name: str, rank: int) -> list[dict[str, Any]]:
    """Steps in the order in which they were trained; one that was trained again comes again."""
    path = loop.folder / name / f"journal-{rank}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if event["event"] == "step"]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for name in ("step", "digest", "rows", "lr"):
        assert [event[name] for event in ours] == [event[name] for event in theirs], name
    losses = [event["loss"] for event in theirs]
    assert [event["loss"] for event in ours] == pytest.approx(losses, rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(500)
def test_two_workers_and_then_one_train_as_under_torchrun(loop: Loop) -> None:
    with loop.miner():
        torchrun(loop, "reference", "reference", ranks=2)
        command = [ADAPTER, "--config", config_of(loop, "ray", "ray")]
        with running([*command, "--workers", "2"], loop.log_of("ray-two")) as process:
            wait_until(lambda: len(trained(loop, "ray", 0)) > 2 * EVERY + 1, "steps of Ray Train")
            process.kill_all()
        before = [trained(loop, "ray", rank) for rank in (0, 1)]
        assert len(before[0]) < STEPS, "killed in the middle"
        for rank, steps in enumerate(before):
            assert_same(steps, trained(loop, "reference", rank)[: len(steps)])

        shutil.copytree(loop.folder / "ray/checkpoints", loop.folder / "resumed/checkpoints")
        with running([*command, "--workers", "1"], loop.log_of("ray-one")) as process:
            wait_for(process, loop.log_of("ray-one"))
        torchrun(loop, "resumed", "ray", ranks=1)
    after = trained(loop, "ray", 0)[len(before[0]) :]
    assert 2 * EVERY <= after[0]["step"] <= len(before[0]), "it resumed"
    assert after[-1]["step"] == STEPS - 1
    assert_same(after, trained(loop, "resumed", 0))
    assert json.loads((loop.folder / "ray/summary.json").read_text())["ended"] == "finished"


def test_a_relative_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trainer.yaml"
    path.write_text("{run_id: r, out: here, steps: 1, miner: {address: 'localhost:1'}}")
    command = [sys.executable, ADAPTER, "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "out=here must be absolute" in done.stderr
