"""A served log per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.feed.served_miner import ServerThread, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "miner")


@pytest.fixture
def miner(folder: Path) -> Iterator[ServerThread]:
    server = ServerThread(folder)
    yield server
    server.stop()
