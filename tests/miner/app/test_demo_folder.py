"""The demo removes what an earlier demo wrote, and nothing else."""

from pathlib import Path

import pytest

from miner.app.demo.run import prepare_folder
from miner.errors import ConfigError


def test_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "demo")
    (tmp_path / "demo" / "arms").mkdir()
    prepare_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "arms").exists()


def test_a_folder_of_the_user_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(ConfigError, match="not empty and no earlier demo's"):
        prepare_folder(tmp_path)
    assert (tmp_path / "logs").exists()
