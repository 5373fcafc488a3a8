"""A whole service whose dataset, weights and snapshots lie on a real S3 API."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.app.verify import verify_state
from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from miner.rounds import RoundLog
from tests.integration.loop import Loop, wait_until
from tests.s3_server import S3Server, s3_server
from trainer.errors import WeightsRefusedError
from trainer.feed import MinerClient, TripletFeed

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@dataclass
class StoredLoop(Loop):
    server: S3Server | None = None
    bucket: str = ""

    def uri(self, folder: str) -> str:
        assert self.server is not None
        return self.server.uri(f"test-key:test-secret@{self.bucket}/{folder}")

    def miner_config(self) -> dict[str, Any]:
        config = super().miner_config()
        config["dataset"]["uri"] = self.uri("data")
        config["encoder"]["weights_prefixes"] = [self.uri("weights")]
        config["snapshots_dir"] = self.uri("snapshots")
        config["workers"] |= {"search_shards": 2, "search_cpus": 0.5}
        config["refresh"] = {"warmup_steps": 0}
        return config

    def put_weights(self, name: str, seed: int) -> tuple[str, str]:
        assert self.server is not None
        path = self.folder / name
        sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), path, seed=seed)
        self.server.write(self.bucket, f"weights/{name}", path.read_bytes())
        path.unlink()
        return f"s3://{self.bucket}/weights/{name}", sha256


def test_a_service_on_object_stores_survives_them(
    server: S3Server, tmp_path: Path, dataset: Path
) -> None:
    bucket = server.bucket()
    server.write(bucket, "data/patterns.parquet", dataset.read_bytes())
    loop = StoredLoop(tmp_path, dataset, 0, server=server, bucket=bucket)
    log = RoundLog(loop.state_dir)

    with loop.miner("first") as address, MinerClient(address, patience_s=30) as client:
        uri, sha256 = loop.put_weights("1.safetensors", seed=3)
        with pytest.raises(WeightsRefusedError, match="weights_prefixes"):
            client.announce(step=1, uri=f"s3://{bucket}/data/patterns.parquet", sha256=sha256)
        client.announce(step=1, uri=uri, sha256=sha256)
        wait_until(lambda: len(client.status().rounds) == 2, "round of the announced weights")
        assert log.manifest(2).weights_sha256 == sha256
        assert log.manifest(2).index["num_shards"] == 2

        second_uri, second = loop.put_weights("2.safetensors", seed=4)
        server.refuses = lambda how, path: how in {"PUT", "POST"} and "/snapshots/" in path
        client.announce(step=2, uri=second_uri, sha256=second)
        wait_until(lambda: client.status().refresh.num_failed == 1, "refresh that fails")
        failure = client.status().refresh.last_error
        assert f"s3://{bucket}/snapshots" in failure
        assert "snapshots_dir" in failure
        with TripletFeed(address, run_id="run", batch_rows=64, num_steps=3) as feed:
            assert [batch.round_id for batch in feed] == [2, 2, 2], "the last good round"

        server.stop()
        with pytest.raises(WeightsRefusedError, match="weights_prefixes"):
            client.announce(step=3, uri=uri, sha256=sha256)
        server.start()
        server.refuses = lambda how, path: False
        client.request_refresh()
        wait_until(lambda: len(client.status().rounds) == 3, "round once the store is back")
        assert log.manifest(3).weights_sha256 == second

    shutil.rmtree(loop.state_dir / "snapshots-cache")
    server.asked.clear()
    with loop.miner("second") as address, MinerClient(address, patience_s=60) as client:
        client.request_refresh()
        wait_until(lambda: len(client.status().rounds) == 4, "round after the restart")
        assert client.query_rows(np.arange(2), 3).row_ids_QK.shape == (2, 3)
    put = [path for how, path in server.asked if how == "PUT" and path.endswith(".f32")]
    assert put == [], "nothing is embedded again"
    assert not (loop.state_dir / "snapshots").exists()

    parts = list(verify_state(loop.state_dir, None, loop.uri("snapshots")))
    assert [part.problems for part in parts] == [[]] * len(parts)
    assert "2 snapshots" in [part.what for part in parts]
    name = next(name for name in server.names(bucket) if name.endswith(".f32"))
    server.write(bucket, name, b"damaged")
    problems = [
        p for s in verify_state(loop.state_dir, None, loop.uri("snapshots")) for p in s.problems
    ]
    assert len(problems) == 1
    assert name.rpartition("/")[0] in problems[0]
    for shown in (failure, *problems, *(loop.log_of(n).read_text() for n in ("first", "second"))):
        assert "test-secret" not in shown
