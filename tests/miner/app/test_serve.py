"""What goes wrong beside the refresh loop: it is survived, or it ends the service, never half."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from miner import failpoints
from miner.app import serve
from miner.app.cluster import resolved
from miner.config import MinerConfig, RefreshConfig
from miner.data import DatasetConfig, RowStore
from miner.embedding.config import EncoderConfig
from miner.errors import NotReadyError
from miner.serving.status_client import StatusClient
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.integration.loop import wait_until
from tests.trainer.feed.served_miner import channel_to, make_folder
from trainer.errors import MinerUnreachableError
from trainer.feed import MinerClient, RunParameters


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20
    )
    yield
    ray.shutdown()


@dataclass
class Service:
    """A whole service on a thread, with a real serving actor."""

    root: Path
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        make_folder(self.root, num_rounds=0)
        (self.root / "weights.safetensors").write_bytes(b"weights")
        self.state_dir = self.root / "state"
        config = MinerConfig(
            state_dir=self.state_dir,
            store_dir=self.root / "store",
            dataset=DatasetConfig(uri=str(self.root / "data.parquet")),
            encoder=EncoderConfig(weights_prefixes=(str(self.root),)),
            refresh=RefreshConfig(warmup_steps=0),
        )
        self.state_dir.mkdir()
        catalog = RowStore.open(config.store_path).catalog
        self.service = serve._Service(resolved(config), catalog, self.stop)

    def start(self) -> Future[None]:
        pool = ThreadPoolExecutor(1)
        ended = pool.submit(self.service.run)
        pool.shutdown(wait=False)
        wait_until((self.state_dir / "endpoint.json").exists, "service")
        self.address = f"127.0.0.1:{self.service._config.serving.port}"
        return ended

    def kill_actor(self) -> None:
        ray.kill(self.service._actor, no_restart=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "miner")
    yield made
    made.stop.set()
    failpoints.arm("")


def announce(service: Service, patience_s: float = 30.0) -> bool:
    weights = service.root / "weights.safetensors"
    with MinerClient(service.address, patience_s=patience_s) as client:
        sha256 = hashlib.sha256(b"weights").hexdigest()
        return client.announce(step=1, uri=str(weights), sha256=sha256)


def test_a_serving_actor_that_stays_away_ends_the_service_also_during_a_refresh(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_AWAY_S", 1.0)
    # A refresh that takes long: the loop does not call the actor meanwhile.
    monkeypatch.setattr(service.service, "_serve_once", lambda _schedule: service.stop.wait(60))
    ended = service.start()
    begin_s = time.monotonic()
    service.kill_actor()
    with pytest.raises(NotReadyError, match="does not come back"):
        ended.result(30)
    assert 1.0 < time.monotonic() - begin_s < 15.0


def test_a_drain_is_noticed_while_weights_are_judged_and_a_round_is_mined(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging, judged = threading.Event(), threading.Event()

    def judge(_uri: str, _sha256: str) -> float:
        judging.set()
        judged.wait(60)
        return 0.0

    monkeypatch.setattr(service.service._pool, "validate", judge)
    monkeypatch.setattr(service.service, "_serve_once", lambda _schedule: service.stop.wait(60))
    ended = service.start()
    with ThreadPoolExecutor(1) as pool:
        announced = pool.submit(announce, service, 2.0)
        assert judging.wait(30)
        with StatusClient(service.address) as client:
            client.drain()
        wait_until(service.stop.is_set, "drain", timeout_s=5)
        judged.set()
        with pytest.raises(MinerUnreachableError):
            announced.result(30)
    ended.result(30)


def test_runs_that_cannot_be_listed_are_no_news_and_the_service_goes_on(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    ended = service.start()
    runs, away = service.state_dir / "runs", service.state_dir / "elsewhere"
    failure = "what there is to mine cannot be seen"
    with caplog.at_level(logging.ERROR, "miner.app.serve"):
        runs.rename(away)
        wait_until(lambda: failure in caplog.text, "failing poll")
        time.sleep(3 * serve.POLL_S)
        away.rename(runs)
    assert caplog.text.count(failure) == 1
    with MinerClient(service.address, patience_s=30) as client:
        client.open_run(RunParameters(run_id="run", batch_rows=192))
    assert not ended.done()
    service.stop.set()
    ended.result(30)


def test_good_weights_that_a_full_disk_cannot_keep_are_not_refused_but_unavailable(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.service._pool, "validate", lambda _uri, _sha256: 0.0)
    monkeypatch.setattr(service.service, "_serve_once", lambda _schedule: service.stop.wait(60))
    ended = service.start()
    failpoints.arm("accepted.copy.begin=error(ENOSPC)")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    request = mining_pb2.AnnounceWeightsRequest(
        step=1, uri=str(service.root / "weights.safetensors"), sha256=sha256
    )
    with channel_to(service.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        with pytest.raises(grpc.RpcError, match=r"cannot be kept.*No space left") as refused:
            stub.AnnounceWeights(request, timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    failpoints.arm("")
    assert announce(service) is False
    service.stop.set()
    ended.result(30)
