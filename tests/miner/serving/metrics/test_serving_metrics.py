"""What a scrape tells of serving is what clients have really seen."""

import contextlib
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from miner.errors import ConfigError
from miner.errors import WeightsRefusedError as Refused
from miner.serving.backend import RefreshState
from miner.serving.metrics.config import MetricsConfig
from miner.serving.metrics.endpoint import MetricsEndpoint
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.integration.loop import wait_until
from tests.miner.serving.metrics.scraping import endpoint_of, scrape
from tests.trainer.feed.served_miner import ServerThread, channel_to, make_folder, seal_round
from trainer.errors import WeightsRefusedError
from trainer.feed import MinerClient, TripletFeed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


@pytest.fixture
def miner(folder: Path) -> Iterator[ServerThread]:
    server = ServerThread(folder)
    yield server
    server.stop()


@pytest.fixture
def address(miner: ServerThread) -> Iterator[str]:
    with endpoint_of(miner) as found:
        yield found


def request(first_step: int, num_steps: int, **values: Any) -> mining_pb2.StreamTripletsRequest:
    defaults = {"run_id": "r", "first_step": first_step, "num_steps": num_steps, "world_size": 1}
    return mining_pb2.StreamTripletsRequest(**{**defaults, **values})


@contextlib.contextmanager
def opened(miner: ServerThread, **values: Any) -> Iterator[Any]:
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        stub.OpenRun(mining_pb2.OpenRunRequest(run_id="r", **{"batch_rows": 24, **values}))
        yield stub


@pytest.mark.parametrize("max_message_bytes", [65_536, 1_048_576])
def test_bytes_steps_and_staleness_are_those_that_the_client_received(
    folder: Path, max_message_bytes: int
) -> None:
    seal_round(folder, 3, model_step=3)
    miner = ServerThread(folder, max_message_bytes=max_message_bytes)
    with endpoint_of(miner) as address, opened(miner, max_staleness_steps=20) as stub:
        received = list(stub.StreamTriplets(request(0, 60, with_payload=True), timeout=30))
        batches = [batch for message in received for batch in message.batches]
        assert len(batches) == 60
        wait_until(lambda: scrape(address).get("streams_open") == 0, "end of the stream")
        told = scrape(address)
    miner.stop()
    assert told.get("stream_bytes_total") == sum(message.ByteSize() for message in received)
    assert told.get("stream_steps_total") == 60
    assert told.get("stream_steps_over_stale_total") == sum(b.over_stale for b in batches) > 0
    staleness = [batch.staleness_steps for batch in batches]
    assert told.get("step_staleness_steps_sum") == sum(staleness)
    buckets = told.by("step_staleness_steps_bucket", "le")
    for bound, count in buckets.items():
        assert count == sum(steps <= float(bound) for steps in staleness), bound
    assert told.get("run_planned_steps", run_id="r") == 64, "by strides of 8"
    assert told.get("run_plan_horizon_steps", run_id="r") == 64


def test_a_batch_that_goes_in_parts_is_one_step(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path, num_groups=3000), max_message_bytes=65_536)
    with endpoint_of(miner) as address, opened(miner, batch_rows=9000) as stub:
        received = list(stub.StreamTriplets(request(0, 2, with_payload=True), timeout=30))
        told = scrape(address)
    miner.stop()
    assert sum(message.HasField("part") for message in received) > 2
    assert told.get("stream_steps_total") == 2
    assert told.get("stream_bytes_total") == sum(message.ByteSize() for message in received)


def test_requests_are_counted_by_rpc_and_status_with_their_latency(
    miner: ServerThread, address: str
) -> None:
    with opened(miner) as stub:
        for _ in range(3):
            stub.GetStatus(mining_pb2.GetStatusRequest())
        for wrong in (request(0, 1, run_id="unknown"), request(0, 1, run_id="unknown")):
            with pytest.raises(grpc.RpcError):
                list(stub.StreamTriplets(wrong, timeout=10))
        with pytest.raises(grpc.RpcError):
            stub.CommitStep(mining_pb2.CommitStepRequest(run_id="r", step=-1))
        watching = stub.WatchStatus(mining_pb2.WatchStatusRequest())
        next(watching)
        watching.cancel()
        wait_until(
            lambda: scrape(address).get("rpcs_total", method="WatchStatus", code="CANCELLED") == 1,
            "end of the watch",
        )
    told = scrape(address)
    counted = {
        (s.labels["method"], s.labels["code"]): s.value
        for s in told.families["coalface_miner_rpcs"].samples
        if s.name.endswith("_total")
    }
    assert counted == {
        ("OpenRun", "OK"): 1,
        ("GetStatus", "OK"): 3,
        ("StreamTriplets", "NOT_FOUND"): 2,
        ("CommitStep", "INVALID_ARGUMENT"): 1,
        ("WatchStatus", "CANCELLED"): 1,
    }
    assert told.get("rpc_seconds_count", method="GetStatus") == 3
    assert 0 < (told.get("rpc_seconds_sum", method="GetStatus") or 0) < 10


def test_an_unknown_rpc_makes_no_label(miner: ServerThread, address: str) -> None:
    with channel_to(miner.address) as channel:
        call = channel.unary_unary("/coalface.v1.MiningService/NoSuchThing")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=10)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "NoSuchThing" not in str(scrape(address).families)


def test_refused_weights_are_counted_by_what_was_wrong_and_accepted_ones_are_not(
    miner: ServerThread, address: str, folder: Path
) -> None:
    with MinerClient(miner.address, patience_s=5) as client:
        client.announce(step=1, uri="/good", sha256="0" * 64)
        for uri in ("/bad", "/bad-too"):
            with pytest.raises(WeightsRefusedError):
                client.announce(step=2, uri=uri, sha256="0" * 64)
    refused = scrape(address).by("weights_refused_total", "kind")
    assert refused.pop("digest") == 2
    assert set(refused.values()) == {0}, "each kind is there from the start"


def test_the_kind_of_a_refusal_comes_whole_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(Refused("too similar", kind="canary")))
    assert (str(error), error.kind) == ("too similar", "canary")


def test_a_stream_that_waits_for_a_round_is_open_and_stalled(folder: Path, tmp_path: Path) -> None:
    miner = ServerThread(folder)
    with endpoint_of(miner) as address, opened(miner, exhausted_policy=2) as stub:
        stream = stub.StreamTriplets(request(0, 4000), timeout=60)
        next(message for message in stream if message.HasField("heartbeat"))
        time.sleep(1.0)
        told = scrape(address)
        assert told.get("streams_open") == 1
        assert 0.7 < (told.get("stream_stalled_seconds_total", waiting_for="round") or 0) < 30
        stream.cancel()
        wait_until(lambda: scrape(address).get("streams_open") == 0, "end of the stream")
    miner.stop()


def test_a_client_that_does_not_read_is_seen_as_a_stall(miner: ServerThread, address: str) -> None:
    with opened(miner) as stub:
        stream = stub.StreamTriplets(request(0, 4000, with_payload=True), timeout=60)
        next(stream)
        time.sleep(2.0)  # gRPC's window fills up
        stream.cancel()
        wait_until(lambda: scrape(address).get("streams_open") == 0, "end of the stream")
    told = scrape(address)
    assert (told.get("stream_stalled_seconds_total", waiting_for="client") or 0) > 0.5
    assert (told.get("stream_steps_total") or 0) < 4000


def test_the_plan_horizon_is_what_no_checkpoint_holds_and_only_of_live_runs(
    folder: Path,
) -> None:
    miner = ServerThread(folder, idle_run_s=3600)
    with endpoint_of(miner) as address:
        for run_id in ("run-1", "run-2"):
            with TripletFeed(miner.address, run_id=run_id, batch_rows=24, num_steps=16) as feed:
                assert len(list(feed)) == 16
                feed.commit(10)
        both = scrape(address).by("run_plan_horizon_steps", "run_id")
        assert both == {"run-1": 6, "run-2": 6}
        for path in (folder / "log" / "runs" / "run-1").iterdir():
            os.utime(path, (1e9, 1e9))
        told = scrape(address)
        assert told.by("run_plan_horizon_steps", "run_id") == {"run-2": 6}
        assert told.get("runs_live") == 1
    miner.stop()


def test_the_refresh_under_way_is_told(miner: ServerThread, address: str) -> None:
    miner.backend.state = RefreshState(
        phase="embedding", done=30, total=120, unit="rows", num_sealed=4, num_failed=2, busy_s=7.5
    )
    told = scrape(address)
    assert told.by("refresh_phase", "phase") == {"idle": 0, "embedding": 1} | dict.fromkeys(
        ("searching", "selecting", "sealing"), 0
    )
    assert told.get("refresh_progress_ratio") == 0.25
    assert told.by("refreshes_total", "outcome") == {"sealed": 4, "failed": 2}
    assert told.get("refresh_busy_seconds_total") == 7.5


def test_two_servers_in_one_process_count_apart(miner: ServerThread, folder: Path) -> None:
    other = ServerThread(folder)
    with endpoint_of(miner) as first, endpoint_of(other) as second:
        with MinerClient(miner.address, patience_s=5) as client:
            client.status()
        assert scrape(first).get("rpcs_total", method="GetStatus", code="OK") == 1
        assert scrape(second).get("rpcs_total", method="GetStatus", code="OK") is None
    other.stop()


def test_every_figure_has_a_name_of_ours_and_a_text(miner: ServerThread, address: str) -> None:
    for name, family in scrape(address).families.items():
        assert name.startswith("coalface_miner_")
        assert len(family.documentation) > 10, name


def test_a_port_that_is_taken_is_a_configuration_error_that_names_it(
    miner: ServerThread, address: str
) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"metrics\.port={port}: .*choose another port"):
        MetricsEndpoint(MetricsConfig(port=port), miner.server.registry)
    config = MetricsConfig(port=0, host="no.such.host.invalid")
    with pytest.raises(ConfigError, match=r"metrics\.host='no\.such\.host\.invalid'"):
        MetricsEndpoint(config, miner.server.registry)
    with MinerClient(miner.address, patience_s=5) as client:
        assert client.status().rounds, "serving goes on"
