"""Where the serving actor goes, and what is said if it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from miner.app.cluster import start_actor
from miner.config import MinerConfig
from miner.data import DatasetConfig
from miner.errors import NotReadyError
from miner.serving.config import ServingConfig
from miner.workers.config import WorkersConfig
from tests.integration.loop import wait_until
from tests.trainer.feed.served_miner import make_folder

GB = 10**9


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """A machine with a GB of memory."""
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        _memory=GB,
    )
    yield
    ray.shutdown()


def free_bytes() -> float:
    free: dict[str, float] = ray.available_resources()
    return free.get("memory", 0.0)


def config_of(root: Path, memory_mb: int | None) -> MinerConfig:
    make_folder(root, num_rounds=1)
    return MinerConfig(
        state_dir=root / "log",
        store_dir=root / "store",
        dataset=DatasetConfig(uri=str(root / "data.parquet")),
        serving=ServingConfig(memory_mb=memory_mb),
        workers=WorkersConfig(placement_timeout_s=3),
    )


def test_its_memory_is_set_aside_and_a_second_one_of_its_log_is_refused(tmp_path: Path) -> None:
    actor = start_actor(config_of(tmp_path, 600), "log-1")
    wait_until(lambda: free_bytes() == 0.4 * GB, "memory set aside")
    with pytest.raises(NotReadyError, match=f"a service on {tmp_path / 'log'} already, or has not"):
        start_actor(
            config_of(tmp_path / "other", None).model_copy(update={"state_dir": tmp_path / "log"}),
            "log-1",
        )
    ray.kill(actor)
    wait_until(lambda: free_bytes() == GB, "end")


@pytest.mark.long  # its 3 s are short on a busy machine
def test_memory_that_is_not_free_is_waited_for_and_then_said(tmp_path: Path) -> None:
    @ray.remote(memory=0.7 * GB, num_cpus=0)
    class Neighbour:
        def is_there(self) -> bool:
            return True

    neighbour: Any = Neighbour.remote()
    assert ray.get(neighbour.is_there.remote())
    what = (
        r"the serving actor \(serving.memory_mb\), on the driver's machine, did not start within "
        r"3 s: .* 0\.5 GB of memory, .* 0\.3 of 1\.0 GB free"
    )
    with pytest.raises(NotReadyError, match=what):
        start_actor(config_of(tmp_path, 500), "log-2")
    ray.kill(neighbour)
    wait_until(lambda: free_bytes() == GB, "end")
    ray.kill(start_actor(config_of(tmp_path / "again", 500), "log-2"))


def test_memory_that_the_machine_does_not_have_is_refused_at_once(tmp_path: Path) -> None:
    what = r"serving.memory_mb asks for 2000 MB on the driver's machine, .* Ray has 1000 MB there"
    with pytest.raises(NotReadyError, match=what):
        start_actor(config_of(tmp_path, 2000), "log-3")
