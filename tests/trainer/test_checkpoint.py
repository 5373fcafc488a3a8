import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.checkpoint import (
    Checkpoint,
    capture_random_state,
    load_newest,
    restore_random_state,
    save_checkpoint,
)
from trainer.errors import CheckpointError
from trainer.files import write_atomically


def checkpoint_of(step: int, **config: object) -> Checkpoint:
    return Checkpoint(
        step=step,
        config={"seed": 1, "loss": {"margin": 0.2}} | config,
        model={"weight": torch.full((3, 2), float(step))},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        schedule={"last_epoch": step},
        random_states=[capture_random_state()],
    )


def load(folder: Path) -> Checkpoint:
    found = load_newest(folder)
    assert found is not None
    return found[1]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    saved = checkpoint_of(7)
    path = save_checkpoint(tmp_path / "new", saved, keep=1)
    found = load_newest(tmp_path / "new")
    assert found is not None
    assert found[0] == path
    assert torch.equal(found[1].model["weight"], saved.model["weight"])
    for name in ("step", "config", "optimizer", "schedule"):
        assert getattr(found[1], name) == getattr(saved, name)
    assert load_newest(tmp_path / "nothing") is None


def test_the_newest_is_taken_and_the_oldest_are_removed(tmp_path: Path) -> None:
    for step in (5, 99_999_999, 100_000_000, 20):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    (tmp_path / "checkpoint-note.pt").touch()
    assert load(tmp_path).step == 100_000_000, "by number, not by name"
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*[0-9].pt"))
    assert kept == ["checkpoint-100000000.pt", "checkpoint-99999999.pt"]


def test_a_write_that_fails_midway_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)

    def disk_full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk_full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert load(tmp_path).step == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_killed_midway_leaves_the_old_file_and_the_next_write_clears_up(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from trainer.files import write_atomically\n"
        "def die(file): file.write(b'new'); file.flush(); os.kill(os.getpid(), 9)\n"
        "write_atomically(Path(sys.argv[1]), die)"
    )
    path = tmp_path / "state"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"newer"))
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_one_changed_bit_is_noticed_and_no_older_one_is_taken_instead(
    tmp_path: Path, place: float
) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1), keep=2)
    path = save_checkpoint(tmp_path, checkpoint_of(2), keep=2)
    blob = bytearray(path.read_bytes())
    blob[int(place * len(blob))] ^= 1
    path.write_bytes(blob)
    with pytest.raises(CheckpointError, match=r"checkpoint-00000002\.pt is damaged.*delete it"):
        load_newest(tmp_path)


@pytest.mark.parametrize("length", [0, 10, 500])
def test_a_truncated_file_is_noticed(tmp_path: Path, length: int) -> None:
    path = save_checkpoint(tmp_path, checkpoint_of(2), keep=2)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_newest(tmp_path)


def test_another_configuration_is_refused_naming_each_key() -> None:
    kept = checkpoint_of(3)
    kept.check_config({"seed": 1, "loss": {"margin": 0.2}})
    with pytest.raises(CheckpointError) as raised:
        kept.check_config({"seed": 2, "loss": {"margin": 0.5}})
    assert "loss.margin is 0.5, was 0.2; seed is 2, was 1. Restore them" in str(raised.value)


def test_every_generator_goes_on_where_the_checkpoint_was_made(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    before = capture_random_state()
    draw()  # leaves NumPy with a cached gaussian, which is state too
    save_checkpoint(tmp_path, checkpoint_of(1), keep=1)
    expected = [draw(), draw()]
    restore_random_state(before)
    draw()
    draw()
    restore_random_state(load(tmp_path).random_states[0])
    assert [draw(), draw()] == expected
