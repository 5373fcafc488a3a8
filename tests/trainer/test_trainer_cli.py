import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from tests.trainer.fake_run import FakeMiner, config_of, tree
from tests.trainer.test_evaluate import table
from trainer import cli
from trainer.errors import ConfigError
from trainer.summary import Summary


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["coalface-trainer", *arguments])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    code = raised.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path / "out")))
    return path


def test_print_config_shows_the_resolved_tree(config: Path) -> None:
    arguments = ["train", "--config", str(config), "--set", "steps=99", "--print-config"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    shown = yaml.safe_load(result.output)
    assert (shown["steps"], shown["loss"]["margin"]) == (99, 0.2)


def test_training_ends_with_its_figures_and_code_0(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.miner_link.GrpcMiner", lambda settings: FakeMiner())
    assert run_main(monkeypatch, "train", "--config", str(config)) == 0
    assert "finished: 12 steps" in capsys.readouterr().out
    assert json.loads((config.parent / "out" / "summary.json").read_text())["next_step"] == 12


def test_a_stopped_run_ends_with_128_plus_the_signal(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.miner_link.GrpcMiner", lambda settings: FakeMiner())
    summary = Summary.model_validate_json(_trained(config).read_text())
    stopped = summary.model_copy(update={"ended": "stopped", "signal": 15})
    monkeypatch.setattr("trainer.loop.train", lambda *arguments: stopped)
    assert run_main(monkeypatch, "train", "--config", str(config)) == 143


def _trained(config: Path) -> Path:
    from tests.trainer.fake_run import ALONE
    from trainer.loop import train

    train(config_of(config.parent / "out"), FakeMiner(), ALONE)
    return config.parent / "out" / "summary.json"


def test_a_miner_that_is_not_there_is_one_clear_line_and_code_1(config: Path) -> None:
    command = ["train", "--config", str(config), "--set", "miner.address=127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *command, "--set", "miner.patience_s=0.5"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no answer from the miner at 127.0.0.1:1")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--set", "stpes=3"], "did you mean 'steps'?"),
        (["train", "--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["evaluate", "--dataset", "x"], "give either --weights FILE or --untrained"),
        (["evaluate", "--dataset", "x", "--weights", "w", "--untrained"], "give either"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_code_2(
    arguments: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert error.count("\n") == 1


def test_debug_shows_where_it_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["coalface-trainer", "--debug", "train", "--set", "stpes=3"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(ConfigError):
        cli.main()


def test_evaluate_shows_the_figures_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(table(range(48)), tmp_path / "set.parquet")
    encoder = tmp_path / "encoder.yaml"
    encoder.write_text("args: {dim: 8, width: 2}\n")
    out = tmp_path / "figures.json"
    arguments = ["--dataset", str(tmp_path), "--untrained", "--encoder", str(encoder)]
    where = ["--split-column", "split", "--split", "test", "--out", str(out)]
    assert run_main(monkeypatch, "evaluate", *arguments, *where) == 0
    shown = capsys.readouterr().out
    assert "recall_at_1" in shown
    assert "(95 %:" in shown
    assert json.loads(out.read_text())["num_rows"] == 32
