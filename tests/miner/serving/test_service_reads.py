"""Samples, rounds and status over a real socket; every message within what default clients take."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.data import DatasetConfig, RowStore, ingest
from miner.serving.samples import sample_parts
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.trainer.feed.served_miner import (
    NUM_ROWS,
    ServerThread,
    channel_to,
    make_folder,
    seal_round,
)
from trainer.errors import BadRequestError, RoundLostError
from trainer.feed import MinerClient

DEFAULT_LIMIT = 4 * 2**20


@pytest.fixture
def miner(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path, num_rounds=3))
    yield server
    server.stop()


@pytest.fixture
def client(miner: ServerThread) -> Iterator[MinerClient]:
    with MinerClient(miner.address, patience_s=5) as client:
        yield client


def test_samples_come_in_the_order_asked_for_repeats_included(client: MinerClient) -> None:
    row_ids = np.array([7, 3, 7, 159, 0])
    samples = client.samples(row_ids)
    assert samples["row_id"].to_pylist() == row_ids.tolist()
    assert samples["image"].to_pylist() == [b"pixels of row %d " % i * 20 for i in row_ids]


@pytest.mark.parametrize("row_ids", [[], [NUM_ROWS], [-1], list(range(NUM_ROWS)) * 500])
def test_rows_that_cannot_be_given_are_refused_by_field(
    client: MinerClient, row_ids: list[int]
) -> None:
    with pytest.raises(BadRequestError, match=r"^row_ids: "):
        client.samples(np.array(row_ids, np.int64))


def test_samples_of_any_size_fit_the_messages_of_a_client_without_limits(tmp_path: Path) -> None:
    large = [bytes([i]) * 3_000_000 for i in range(4)]
    root = make_folder(tmp_path / "miner")
    table = pa.table({"sample_id": range(4), "identity": [0, 0, 1, 1], "image": large})
    pq.write_table(table, tmp_path / "large.parquet")
    ingest(DatasetConfig(uri=str(tmp_path / "large.parquet")), tmp_path / "large")
    (root / "store").rename(root / "small")
    (tmp_path / "large").rename(root / "store")
    server = ServerThread(root)
    try:
        with channel_to(server.address) as channel:
            stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
            request = mining_pb2.GetSamplesRequest(row_ids=np.arange(4, dtype="<i8").tobytes())
            parts = list(stub.GetSamples(request, timeout=30))
        assert max(part.ByteSize() for part in parts) <= 2**20
        assert len(parts) > 10
        with MinerClient(server.address, patience_s=5) as client:
            assert client.samples(np.array([3, 1]))["image"].to_pylist() == [large[3], large[1]]
    finally:
        server.stop()


def test_parts_of_samples_are_one_arrow_stream(tmp_path: Path) -> None:
    store = RowStore.open(make_folder(tmp_path) / "store")
    row_ids = np.random.default_rng(0).integers(0, NUM_ROWS, 500)
    parts = list(sample_parts(store, row_ids, 1000))
    assert {len(part) for part in parts[:-1]} == {1000}
    whole = pa.ipc.open_stream(b"".join(parts)).read_all()
    assert whole["row_id"].to_pylist() == row_ids.tolist()


def test_a_batch_above_the_message_size_comes_in_parts_and_is_the_same(
    miner: ServerThread, tmp_path: Path
) -> None:
    seal_round(tmp_path, 4, num_groups=1000)
    request = mining_pb2.StreamTripletsRequest(
        run_id="large", num_steps=1, world_size=1, with_payload=True
    )
    small = ServerThread(tmp_path, max_message_bytes=65_536)
    try:
        seen = []
        for server in (miner, small):
            with channel_to(server.address) as channel:
                stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
                stub.OpenRun(mining_pb2.OpenRunRequest(run_id="large", batch_rows=100_000))
                messages = stub.StreamTriplets(request, timeout=30)
                seen.append([one for one in messages if not one.HasField("heartbeat")])
        whole, parts = seen
        assert len(parts) > 1
        assert max(message.ByteSize() for message in parts) <= 65_536
        content = b"".join(message.part.content for message in parts)
        assert [message.part.offset for message in parts] == list(
            np.cumsum([0, *(len(message.part.content) for message in parts[:-1])])
        )
        assert {message.part.total_bytes for message in parts} == {len(content)}
        assert mining_pb2.Batch.FromString(content) == whole[0].batches[0]
    finally:
        small.stop()


def test_rounds_are_listed_newest_first_page_by_page(
    client: MinerClient, miner: ServerThread
) -> None:
    assert [one.round_id for one in client.rounds()] == [3, 2, 1]
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        first = stub.ListRounds(mining_pb2.ListRoundsRequest(max_rounds=2))
        assert [one.round_id for one in first.rounds] == [3, 2]
        rest = stub.ListRounds(
            mining_pb2.ListRoundsRequest(before_round_id=first.next_before_round_id)
        )
        assert [one.round_id for one in rest.rounds] == [1]
        assert rest.next_before_round_id == 0


def test_a_round_is_told_as_it_was_sealed(client: MinerClient, miner: ServerThread) -> None:
    kept = json.loads(miner.log.manifest(2).model_dump_json())
    assert client.round(2) == kept
    assert client.round()["round_id"] == 3
    with pytest.raises(RoundLostError, match="round 9 has not been sealed"):
        client.round(9)


def test_whoever_watches_hears_of_a_new_round_and_of_the_drain(
    miner: ServerThread, client: MinerClient, tmp_path: Path
) -> None:
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        watched = client.watch(min_interval_s=0.1)
        seen.extend(status.rounds[-1].round_id for status in watched)
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    _until(lambda: seen == [3])
    time.sleep(0.5)
    assert seen == [3], "nothing changed, so nothing is told"
    seal_round(tmp_path, 4)
    _until(lambda: seen == [3, 4])
    miner.stop(grace_s=2.0)
    assert ended.wait(5)


def test_a_drain_that_is_asked_for_reaches_the_backend(
    client: MinerClient, miner: ServerThread
) -> None:
    assert client.drain() == 0
    assert client.drain() == 0
    assert miner.backend.drains == 2


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("ListRounds", mining_pb2.ListRoundsRequest(max_rounds=1001), "max_rounds"),
        ("ListRounds", mining_pb2.ListRoundsRequest(before_round_id=-1), "before_round_id"),
        ("GetRound", mining_pb2.GetRoundRequest(round_id=-1), "round_id"),
        ("WatchStatus", mining_pb2.WatchStatusRequest(min_interval_s=0.01), "min_interval_s"),
        ("GetSamples", mining_pb2.GetSamplesRequest(row_ids=b"odd"), "row_ids"),
    ],
)
def test_a_wrong_field_is_named_in_text_and_details(
    miner: ServerThread, method: str, request_: Any, field: str
) -> None:
    from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
    from grpc_status import rpc_status

    with channel_to(miner.address) as channel:
        call = getattr(mining_pb2_grpc.MiningServiceStub(channel), method)
        with pytest.raises(grpc.RpcError) as raised:
            list(call(request_, timeout=5))
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")
    info, bad = rpc_status.from_call(error).details
    reason, wrong = ErrorInfo(), BadRequest()
    assert info.Unpack(reason)
    assert bad.Unpack(wrong)
    assert (reason.reason, reason.domain) == ("Request", "coalface")
    assert [violation.field for violation in wrong.field_violations] == [field]


def _until(holds: Any, timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
