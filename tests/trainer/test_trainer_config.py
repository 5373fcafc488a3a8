from pathlib import Path

import pytest
import yaml

from tests.trainer.fake_run import tree
from trainer.config import TrainerConfig
from trainer.config_file import load_config, render_config
from trainer.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(tree(tmp_path)))
    return file


def test_overrides_win_over_the_file_and_are_read_as_yaml(path: Path) -> None:
    overrides = ["optimizer.lr=3e-4", "loss.gather=false", "steps=7", "miner.address=host:5"]
    config = load_config(TrainerConfig, path, overrides)
    assert (config.optimizer.lr, config.loss.gather, config.steps) == (3e-4, False, 7)
    assert config.miner.address == "host:5"
    assert config.optimizer.ramp_steps == 2, "what the file says beside it stays"


def test_the_rendered_configuration_reads_back_to_the_same(path: Path) -> None:
    config = load_config(TrainerConfig, path)
    path.write_text(render_config(config))
    assert load_config(TrainerConfig, path) == config


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("stpes=3", "unknown key 'stpes': did you mean 'steps'?"),
        ("optimizer.learning_rat=1", "unknown key 'optimizer.learning_rat'"),
        ("lr=1", "unknown key 'lr': did you mean 'optimizer.lr'?"),
        ("loss.magrin=0.1", "unknown key 'loss.magrin': did you mean 'loss.margin'?"),
        (
            "miner.tls.ca_fiel=c",
            "unknown key 'miner.tls.ca_fiel': did you mean 'miner.tls.ca_file'?",
        ),
        ("miner.tls={}", "missing key 'miner.tls.ca_file'"),
        ("steps=0", "steps: Input should be greater than or equal to 1 (got 0)"),
        ("loss.mode=hardest", "loss.mode: Input should be 'mined'"),
        ("run_id=a/b", "run_id: String should match pattern"),
        ("steps", "'steps' is not of the form"),
        ("run_id.x=1", "'run_id' is a value, not a section"),
        ("steps=[", "the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(path: Path, override: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(TrainerConfig, path, [override])
    assert text in str(raised.value)


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(TrainerConfig, None, ["steps=0", "out=x"])
    message = str(raised.value)
    assert "missing key 'run_id'" in message
    assert "missing key 'miner'" in message
    assert "steps" in message


@pytest.mark.parametrize(
    ("content", "text"),
    [("a: [1", "is not YAML"), ("- 1\n- 2\n", "not a list"), (None, "No such file")],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "broken.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as raised:
        load_config(TrainerConfig, file)
    assert text in str(raised.value)


def test_what_a_resume_may_change_is_not_what_decides_the_training(path: Path) -> None:
    config = load_config(TrainerConfig, path)
    moved = load_config(TrainerConfig, path, ["out=elsewhere", "miner.address=other:1"])
    assert moved.fixed_over_resume() == config.fixed_over_resume()
    for override in ("seed=5", "optimizer.lr=1", "loss.margin=0.1", "encoder.args.dim=4"):
        other = load_config(TrainerConfig, path, [override])
        assert other.fixed_over_resume() != config.fixed_over_resume(), override


def test_waiting_for_rounds_that_would_never_be_announced_is_refused(path: Path) -> None:
    often = ["announce.every_steps=50", "announce.after_step=50"]
    waits = [*often, "miner.stale=wait", "miner.max_staleness_steps=50"]
    load_config(TrainerConfig, path, waits)
    for key in ("every_steps", "after_step"):
        with pytest.raises(ConfigError, match=rf"announce\.{key}=51 is above that; 50 is the most"):
            load_config(TrainerConfig, path, [*waits, f"announce.{key}=51"])
    never = [*waits, "announce.every_steps=0"]
    with pytest.raises(ConfigError, match=r"wait for ever, as announce\.every_steps=0"):
        load_config(TrainerConfig, path, never)
    load_config(TrainerConfig, path, [*never, "miner.max_staleness_steps=0"])
    load_config(TrainerConfig, path, [*never, "miner.stale=serve"])
