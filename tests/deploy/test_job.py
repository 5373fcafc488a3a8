"""The shipped script and configuration on a real Ray cluster, with a trainer outside of it."""

import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.deploy.ray_head import RayHead, ray_head
from tests.deploy.shipped import DEPLOY, made_secrets
from tests.integration.loop import wait_until
from tests.trainer.feed.served_miner import free_port
from trainer.feed import MinerClient, TlsFiles, TripletFeed

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ROWS = 64


@dataclass
class Job:
    """What is submitted: the shipped configuration, with this machine's places laid over it."""

    head: RayHead
    folder: Path
    dataset: Path
    secrets: Path
    port: int = field(default_factory=free_port)

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def endpoint(self) -> Path:
        return self.state_dir / "endpoint.json"

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def access(self) -> dict[str, Any]:
        tls = TlsFiles(ca_file=self.secrets / "ca.crt")
        return {"tls": tls, "token_file": self.secrets / "trainer.token"}

    def submit(self, submission_id: str) -> None:
        """Run ``submit.sh``; returns once trainers can connect."""
        overrides = [
            f"state_dir={self.state_dir}",
            f"dataset.uri={self.dataset}",
            "encoder.encoder_args={width: 8}",
            "encoder.max_canary_similarity=0.9999",
            *("workers.num_embed_workers=1", "workers.cpus_per_worker=1"),
            *("workers.gpus_per_worker=0", "workers.search_cpus=1", "workers.chunk_rows=64"),
            "workers.placement_timeout_s=240",
            "selection={groups_per_round: 48, num_candidates: 64, window_stop: 8}",
            "serving.stride_steps=4",
            f"serving.port={self.port}",
            f"serving.tls.certificate_file={self.secrets / 'tls.crt'}",
            f"serving.tls.key_file={self.secrets / 'tls.key'}",
            f"serving.tokens_file={self.secrets / 'tokens.yaml'}",
            f"metrics.port={free_port()}",
        ]
        options = [option for override in overrides for option in ("--set", override)]
        config = str(DEPLOY / "config/miner.yaml")
        given = ("--address", self.head.dashboard, "--config", config, "--id", submission_id)
        self.head.run(str(DEPLOY / "submit.sh"), *given, "--", *options)
        wait_until(
            lambda: self.endpoint.exists() or self.has_ended(submission_id),
            "service",
            timeout_s=240,
        )
        assert not self.has_ended(submission_id), self.logs(submission_id)
        told = json.loads(self.endpoint.read_text())
        assert told["address"] == f"0.0.0.0:{self.port}"

    def has_ended(self, submission_id: str) -> bool:
        shown = self.head.job("status", submission_id)
        return any(status in shown for status in ("FAILED", "SUCCEEDED", "STOPPED"))

    def stop(self, submission_id: str) -> None:
        """``ray job stop``, which kills after three seconds what has not ended by then."""
        self.head.job("stop", submission_id)
        assert "STOPPED" in self.head.job("status", submission_id).upper()

    def logs(self, submission_id: str) -> str:
        return self.head.job("logs", submission_id)

    def chunks(self) -> dict[str, int]:
        """Embedded chunks by name, with the time at which each was written."""
        files = (self.state_dir / "snapshots").rglob("*")
        return {
            str(path): path.stat().st_mtime_ns
            for path in files
            if path.is_file() and path.name != "KEY.json"
        }


class BareStream(threading.Thread):
    """Reads a stream without any client's help, until it ends.

    Attributes:
        steps: That came whole.
        code: Of the stream's end.
    """

    def __init__(self, job: Job, run_id: str) -> None:
        super().__init__(daemon=True)
        credentials = grpc.ssl_channel_credentials((job.secrets / "ca.crt").read_bytes())
        self._channel = grpc.secure_channel(job.address, credentials)
        token = (job.secrets / "trainer.token").read_text().strip()
        request = mining_pb2.StreamTripletsRequest(
            run_id=run_id, num_steps=65_536, world_size=1, with_payload=True
        )
        stub: Any = mining_pb2_grpc.MiningServiceStub(self._channel)
        self._call = stub.StreamTriplets(request, metadata=[("authorization", f"Bearer {token}")])
        self.steps: list[int] = []
        self.code: grpc.StatusCode | None = None

    def run(self) -> None:
        try:
            for message in self._call:
                self.steps += [batch.step for batch in message.batches]
                time.sleep(0.002)
        except grpc.RpcError:
            pass
        self.code = self._call.code()
        self._channel.close()


def test_a_submitted_job_serves_stops_cleanly_and_goes_on_from_its_state(
    tmp_path: Path, dataset: Path
) -> None:
    with ray_head(tmp_path / "head.log") as head:
        job = Job(head, tmp_path, dataset, made_secrets(tmp_path / "secrets"))
        job.submit("first")
        feed = TripletFeed(
            job.address, run_id="outside", batch_rows=ROWS, patience_s=240, **job.access
        )
        with feed:
            batches = iter(feed)
            assert [next(batches).step for _ in range(20)] == list(range(20))
            mine_a_round(job, tmp_path, step=200)
            embedded = job.chunks()
            assert embedded
            bare = BareStream(job, "outside")
            bare.start()
            wait_until(lambda: len(bare.steps) > 50, "steps of a bare stream")
            job.stop("first")
            bare.join(30)
            assert bare.code is grpc.StatusCode.OK, "the stream was cut off"
            assert bare.steps == list(range(len(bare.steps)))
            assert "drained: every stream has ended at a step boundary" in job.logs("first")
            assert not job.endpoint.exists(), "the driver was killed before it had ended"
            wait_until(lambda: not listens(job.port), "end of the serving actor")

            job.submit("second")
            with MinerClient(job.address, patience_s=60, **job.access) as client:
                assert {known.round_id for known in client.rounds()} == {1, 2}
            # The same feed: it has waited, and gets what comes next.
            assert [next(batches).step for _ in range(20)] == list(range(20, 40))
            with MinerClient(job.address, patience_s=60, **job.access) as client:
                client.request_refresh()
                wait_until(lambda: len(client.status().rounds) == 3, "third round", 240)
            assert job.chunks() == embedded, "chunks were embedded anew"
            assert re.search(r"snapshot \w+: 0 chunks to embed, [1-9]", job.logs("second"))
        job.stop("second")


def mine_a_round(job: Job, folder: Path, step: int) -> None:
    """Upload weights, and wait for the round that they mine."""
    weights = folder / "weights.safetensors"
    sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), weights, seed=3)
    with MinerClient(job.address, patience_s=120, **job.access) as client:
        client.upload(step=step, path=weights, sha256=sha256)
        wait_until(lambda: len(client.status().rounds) == 2, "mined round", 240)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
