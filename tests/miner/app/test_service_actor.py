"""The serving actor without Ray: what it does on the event loop that serves everybody."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from miner.app import service_actor
from miner.app.service_actor import MiningServiceActor
from miner.config import MinerConfig
from miner.data import DatasetConfig
from tests.trainer.feed.served_miner import make_folder


def test_an_announcement_that_looks_into_the_log_does_not_hold_up_other_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path)
    monkeypatch.setattr(service_actor, "set_up_worker_logs", lambda *_: None)
    dataset = DatasetConfig(uri=str(root / "data.parquet"))
    config = MinerConfig(state_dir=root / "log", store_dir=root / "store", dataset=dataset)
    actor = MiningServiceActor(config)
    try:

        def announce(step: int) -> Any:
            answer = actor._run(actor.announce(step, f"{step}.safetensors", f"{step:064}"))
            announced = actor.next_announcement(10)
            assert announced is not None
            actor.judge(announced.announcement_id, tmp_path / f"{step}.safetensors")
            return answer

        assert announce(20).result(10) is False
        looked, go_on, newest = threading.Event(), threading.Event(), actor._log.newest

        def slow() -> int | None:
            looked.set()
            go_on.wait(10)
            return newest()

        monkeypatch.setattr(actor._log, "newest", slow)
        older = announce(10)
        assert looked.wait(10)
        begin_s = time.monotonic()
        actor._run(asyncio.sleep(0)).result(5)
        assert time.monotonic() - begin_s < 1
        go_on.set()
        assert older.result(10) is True, "newer weights wait to be mined"
    finally:
        actor.drain()
        actor._loop.call_soon_threadsafe(actor._loop.stop)
        while actor._loop.is_running():
            time.sleep(0.01)
        actor._loop.close()
