import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from tests.trainer import fake_run
from tests.trainer.fake_run import ALONE, FakeMiner, batch_of, config_of, tree
from tests.trainer.journals import read_journal, read_steps
from trainer.checkpoint import load_newest
from trainer.errors import CheckpointError, ConfigError, FeedError, TrainingError
from trainer.journal import journal_path
from trainer.loop import _require_one_step, train


class KilledError(Exception):
    """Stands for a kill: nothing in the trainer handles it."""


def fail_at(step: int, error: Exception) -> Callable[[int], None]:
    def before_step(asked: int) -> None:
        if asked == step:
            raise error

    return before_step


def final_weights(out: Path, step: int = 12) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "weights" / f"weights-{step:08d}.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_trains_every_step_on_its_batch_and_says_so(tmp_path: Path) -> None:
    summary = train(config_of(tmp_path), FakeMiner(), ALONE)
    steps = read_steps(journal_path(tmp_path, 0))
    assert [event["digest"] for event in steps.values()] == [
        batch_of(s).digest() for s in range(12)
    ]
    assert [event["round_id"] for event in steps.values()] == [1] * 4 + [2] * 4 + [3] * 4
    assert (summary.ended, summary.num_steps, summary.images) == ("finished", 12, 240)
    assert [seen.num_steps for seen in summary.rounds] == [4, 4, 4]
    assert 0 < summary.training_s < summary.wall_s
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(summary.model_dump_json())
    assert Path(written["weights"]).is_file()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, steps=60, encoder={"args": {"width": 4}}, loss={"mode": "in_batch_hard"}
    )
    train(config, FakeMiner(), ALONE)
    losses = [event["loss"] for event in read_steps(journal_path(tmp_path, 0)).values()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("killed_at", [3, 5, 8, 11])
def test_a_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    tmp_path: Path, killed_at: int
) -> None:
    train(config_of(tmp_path / "unbroken"), FakeMiner(), ALONE)
    config = config_of(tmp_path / "broken")
    with pytest.raises(KilledError):
        train(config, FakeMiner(fail_at(killed_at, KilledError())), ALONE)
    summary = train(config, FakeMiner(), ALONE)
    assert summary.first_step == killed_at // 5 * 5, "from the newest checkpoint"
    assert_same(final_weights(tmp_path / "unbroken"), final_weights(tmp_path / "broken"))
    journals = [read_steps(journal_path(tmp_path / name, 0)) for name in ("unbroken", "broken")]
    for step in range(12):
        for key in ("digest", "loss", "gradient_norm", "lr"):
            assert journals[0][step][key] == journals[1][step][key], (step, key)


def test_a_finished_run_is_not_trained_on_and_needs_no_miner(tmp_path: Path) -> None:
    train(config_of(tmp_path), FakeMiner(), ALONE)
    before = final_weights(tmp_path)
    miner = FakeMiner(fail_at(12, AssertionError("no step is left to ask for")))
    summary = train(config_of(tmp_path), miner, ALONE)
    assert (summary.ended, summary.num_steps) == ("finished", 0)
    assert_same(before, final_weights(tmp_path))


def test_other_settings_are_refused_at_resume(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(config_of(tmp_path), FakeMiner(fail_at(6, KilledError())), ALONE)
    with pytest.raises(CheckpointError, match=r"seed is 9, was 0\. Restore"):
        train(config_of(tmp_path, seed=9), FakeMiner(), ALONE)
    moved = config_of(tmp_path, miner={"address": "elsewhere:2"}, checkpoint={"every_steps": 3})
    assert train(moved, FakeMiner(), ALONE).first_step == 5


def test_a_step_is_committed_only_once_its_checkpoint_is_on_disk(tmp_path: Path) -> None:
    miner = FakeMiner()

    def check(step: int) -> None:
        found = load_newest(tmp_path / "checkpoints")
        assert not miner.committed or (found and found[1].step >= miner.committed[-1])

    miner.before_step = check
    train(config_of(tmp_path), miner, ALONE)
    assert miner.committed[-1] == 12
    assert set(miner.committed) <= {5, 10, 12}


def test_weights_are_announced_after_the_warm_up_and_every_n_steps(tmp_path: Path) -> None:
    miner = FakeMiner(lambda step: time.sleep(0.02))
    announce = {"every_steps": 3, "after_step": 4, "keep": 9}
    summary = train(config_of(tmp_path, announce=announce), miner, ALONE)
    assert [step for step, _, _ in miner.announced] == [4, 7, 10]
    assert summary.announcements == {"accepted": 3}
    weights = [safetensors.torch.load_file(uri) for _, uri, _ in miner.announced]
    assert not torch.equal(weights[0]["7.weight"], weights[1]["7.weight"])


def test_refused_weights_do_not_end_training(tmp_path: Path) -> None:
    miner = FakeMiner(lambda step: time.sleep(0.02), refuses="collapsed")
    announce = {"every_steps": 5, "after_step": 5}
    summary = train(config_of(tmp_path, announce=announce), miner, ALONE)
    assert (summary.ended, summary.announcements) == ("finished", {"refused": 2})


def test_a_loss_that_is_not_finite_names_step_and_round_and_spares_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        train(config_of(tmp_path), FakeMiner(fail_at(7, KilledError())), ALONE)
    path = tmp_path / "checkpoints" / "checkpoint-00000005.pt"
    before = path.read_bytes()
    monkeypatch.setattr("trainer.step.embed", lambda module, x, _: module(x) * float("nan"))
    with pytest.raises(TrainingError, match=r"^step 5, round 2 \(rank_window\)"):
        train(config_of(tmp_path), FakeMiner(), ALONE)
    assert path.read_bytes() == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [path.name]


def test_a_rate_that_is_too_high_is_blamed(tmp_path: Path) -> None:
    config = config_of(tmp_path, optimizer={"lr": 1e30, "ramp_steps": 0})
    with pytest.raises(TrainingError, match=r"Lower optimizer\.lr"):
        train(config, FakeMiner(), ALONE)
    assert load_newest(tmp_path / "checkpoints") is None


def test_a_broken_sample_is_named_with_step_and_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = int(batch_of(6).row_ids_R[2])
    image_of = fake_run.image_of
    monkeypatch.setattr(fake_run, "image_of", lambda r: b"junk" if r == broken else image_of(r))
    with pytest.raises(TrainingError, match=rf"^step \d+, round \d: row_id {broken}: "):
        train(config_of(tmp_path), FakeMiner(), ALONE)


def test_an_error_of_the_feed_ends_training_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="round 3 is gone"):
        train(config_of(tmp_path), FakeMiner(fail_at(4, FeedError("round 3 is gone"))), ALONE)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"build": "trainer.encoder"}, "not of the form"),
        ({"build": "trainer.nothing:build"}, "No module named"),
        ({"build": "trainer.encoder:nothing"}, "no attribute 'nothing'"),
        ({"build": "trainer.encoder:IMAGE_SIZE"}, "is a int, not a function"),
        ({"build": "os:getcwd"}, "must return an nn.Module, not str"),
        ({"args": {"depth": 3}}, "refuses {'depth': 3}"),
        ({"preprocess": "trainer.encoder:nothing"}, "encoder.preprocess"),
    ],
)
def test_a_wrong_entry_point_is_named(tmp_path: Path, encoder: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        train(config_of(tmp_path, encoder=encoder), FakeMiner(), ALONE)
    assert reason in str(raised.value)


def test_bf16_runs_with_float32_weights(tmp_path: Path) -> None:
    train(config_of(tmp_path, precision="bf16"), FakeMiner(), ALONE)
    assert all(w.dtype != torch.bfloat16 for w in final_weights(tmp_path).values())


def test_a_stop_while_waiting_for_a_batch_does_not_wait_for_it(tmp_path: Path) -> None:
    """The signal is sent to this process: the loop's handler is in place while it trains."""

    def wait_for_a_round(step: int) -> None:
        if step == 7:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60)

    begin_s = time.monotonic()
    before = signal.getsignal(signal.SIGTERM)
    summary = train(config_of(tmp_path), FakeMiner(wait_for_a_round), ALONE)
    assert time.monotonic() - begin_s < 20
    assert (summary.ended, summary.signal, summary.next_step) == ("stopped", signal.SIGTERM, 7)
    assert signal.getsignal(signal.SIGTERM) is before
    assert train(config_of(tmp_path), FakeMiner(), ALONE).first_step == 7
    train(config_of(tmp_path / "unbroken"), FakeMiner(), ALONE)
    assert_same(final_weights(tmp_path), final_weights(tmp_path / "unbroken"))


def start_ranks(folder: Path, size: int, *, pause_s: float = 0) -> list[subprocess.Popen[str]]:
    """Real processes that find each other as torchrun's would."""
    config = folder / "config.yaml"
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    script = [sys.executable, fake_run.__file__, str(config), "--pause", str(pause_s)]
    return [
        subprocess.Popen(
            script,
            env=os.environ | rendezvous | {"RANK": str(rank), "WORLD_SIZE": str(size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_all(ranks: list[subprocess.Popen[str]], code: int) -> None:
    for process in ranks:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output


def test_two_ranks_with_unequal_shares_train_as_one_and_may_become_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are those of the whole batch; a signal to one rank stops both at one step;
    and a run of two ranks goes on with one."""
    changes: dict[str, Any] = {
        "encoder": {"build": "fake_run:build_small"},
        "loss": {"mode": "mined+in_batch_semi_hard"},
    }
    monkeypatch.syspath_prepend(str(Path(fake_run.__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    out = tmp_path / "two"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree(out, **changes)))
    ranks = start_ranks(tmp_path, 2, pause_s=0.3)
    journals = [journal_path(out, rank) for rank in range(2)]
    deadline_s = time.monotonic() + 60
    while not (journals[0].exists() and len(read_steps(journals[0])) >= 6):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    ranks[1].send_signal(signal.SIGTERM)
    wait_for_all(ranks, 75)
    stopped = [[e["step"] for e in read_journal(j) if e["event"] == "end"] for j in journals]
    assert stopped[0] == stopped[1]
    assert 6 <= stopped[0][0] < 12
    assert train(config_of(out, **changes), FakeMiner(), ALONE).first_step == stopped[0][0]

    alone = tmp_path / "one"
    train(config_of(alone, **changes), FakeMiner(), ALONE)
    one, two = read_steps(journal_path(alone, 0)), read_steps(journals[0])
    assert {e["rows"] for e in read_steps(journals[1]).values()} == {12}, "three groups"
    assert {e["rows"] for s, e in two.items() if s < stopped[0][0]} == {8}, "two groups"
    for step in range(12):
        for key in ("loss", "gradient_norm"):
            assert two[step][key] == pytest.approx(one[step][key], rel=2e-3), (step, key)
    for step in range(stopped[0][0]):
        both = [read_steps(journal)[step]["loss"] for journal in journals]
        assert both[0] == both[1], "every rank takes the loss of the whole batch"
    pairs = zip(final_weights(out).values(), final_weights(alone).values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_ranks_that_resume_at_different_steps_are_told_what_is_missing() -> None:
    with pytest.raises(TrainingError, match=r"\[100, 0\].*one shared checkpoint\.folder"):
        _require_one_step([100, 0])
    _require_one_step([100, 100])
