"""Configuration: files, overrides, and errors that tell what to do."""

from pathlib import Path

import pytest
import yaml

from miner.config import MinerConfig, load_config, render_config
from miner.config.mine import MineConfig
from miner.errors import ConfigError

MINIMAL = ("state_dir=/s", "dataset.uri=/d")


def test_every_key_can_be_overridden() -> None:
    overrides = (
        *MINIMAL,
        "selection.window_stop=50",
        "serving.port=7",
        "selection.strategy=random",
    )
    config = load_config(MinerConfig, None, overrides)
    assert (config.selection.window_stop, config.serving.port) == (50, 7)
    assert config.selection.strategy == "random"
    assert config.store_path == Path("/s/store")


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("state_dir: /s\nseed: 3\ndataset: {uri: /d, filter: 'split == \"train\"'}\n")
    config = load_config(MinerConfig, path, ["seed=4"])
    assert config.seed == 4
    assert config.dataset.filter == 'split == "train"'


def test_the_rendered_tree_gives_the_same_configuration(tmp_path: Path) -> None:
    config = load_config(MinerConfig, None, MINIMAL)
    path = tmp_path / "c.yaml"
    path.write_text(render_config(config))
    assert load_config(MinerConfig, path) == config
    assert set(yaml.safe_load(path.read_text())) == set(MinerConfig.model_fields)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("selection.stratgy=random", r"unknown key 'selection\.stratgy': did you mean 'strategy'"),
        ("serve.port=1", r"unknown key 'serve': did you mean 'serving'"),
        ("serving.tls.key=/k", r"unknown key 'serving\.tls\.key': did you mean 'key_file'"),
        ("qqqq=1", r"unknown key 'qqqq': known here: state_dir, "),
        ("selection.window_stop=-1", r"selection\.window_stop: .*greater.*\(got -1\)"),
        ("selection=3", r"selection: .*\(got 3\)"),
        ("selection", r"'selection' is not of the form key\.subkey=value"),
        (".a=1", "is not of the form"),
        ("state_dir.x=1", "'state_dir' is a value, not a section"),
        ("seed=[1", "the value is not YAML"),
        ("seed=2024-13-45", "the value is not YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(MinerConfig, None, (*MINIMAL, override))


def test_missing_keys_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"missing key 'state_dir'; missing key 'dataset'"):
        load_config(MinerConfig)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1\n", "not a list"),
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
        ("a: 2024-13-45", "is not YAML"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_a_file_that_is_no_tree_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.yaml.*{told}"):
        load_config(MinerConfig, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file"):
        load_config(MinerConfig, tmp_path / "nothing.yaml")


def test_shards_of_a_search_and_faiss_on_gpus_exclude_each_other() -> None:
    shards = (*MINIMAL, "workers.search_shards=2")
    with pytest.raises(ConfigError, match=r"search_shards=2 and index\.gpu\.engine=faiss"):
        load_config(MinerConfig, None, (*shards, "index.gpu.engine=faiss"))
    assert load_config(MinerConfig, None, (*shards, "index.gpu.engine=torch"))


def test_an_archive_is_for_a_service_alone() -> None:
    archive = "rounds.archive_uri=s3://bucket/run-1"
    assert load_config(MinerConfig, None, (*MINIMAL, archive)).rounds.archive_uri is not None
    with pytest.raises(ConfigError, match=r"rounds: .*archive_uri is for a service"):
        load_config(MineConfig, None, (archive,))
