"""What a stream sends: order, bytes, heartbeats, messages of many steps, and its bound."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.data import DatasetConfig, ingest
from miner.serving.assemble import BatchAssembler
from miner.serving.metrics.meters import ServingMeters
from miner.serving.plan import RunParameters
from miner.serving.runs import Run
from miner.serving.streams import StreamSource, TripletStream
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.trainer.feed.served_miner import (
    ServerThread,
    channel_to,
    make_folder,
    seal_round,
)


@pytest.fixture
def miner(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path))
    yield server
    server.stop()


@pytest.fixture
def empty_miner(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path, num_rounds=0))
    yield server
    server.stop()


def opened(channel: grpc.Channel, batch_rows: int = 24, **values: Any) -> Any:
    stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
    stub.OpenRun(mining_pb2.OpenRunRequest(run_id="r", batch_rows=batch_rows, **values))
    return stub


def stream(stub: Any, first_step: int, num_steps: int, **values: Any) -> Any:
    request = mining_pb2.StreamTripletsRequest(
        run_id="r", first_step=first_step, num_steps=num_steps, **{"world_size": 1, **values}
    )
    return stub.StreamTriplets(request, timeout=30)


def batches_of(messages: Any) -> list[mining_pb2.Batch]:
    return [batch for message in messages for batch in message.batches]


def settled(value: Callable[[], int]) -> int:
    """The value once it has stood still for half a second."""
    newest, since_s = value(), time.monotonic()
    while time.monotonic() - since_s < 0.5:
        time.sleep(0.05)
        if value() != newest:
            newest, since_s = value(), time.monotonic()
    return newest


def test_steps_come_in_order_from_the_one_asked_for(miner: ServerThread) -> None:
    with channel_to(miner.address) as channel:
        stub = opened(channel)
        steps = [batch.step for batch in batches_of(stream(stub, 5, 20))]
    assert steps == list(range(5, 25))


def test_a_step_has_the_same_bytes_on_every_read_and_after_a_restart(
    miner: ServerThread, tmp_path: Path
) -> None:
    def read(server: ServerThread, first_step: int, num_steps: int) -> list[bytes]:
        with channel_to(server.address) as channel:
            messages = stream(opened(channel), first_step, num_steps, with_payload=True)
            return [batch.SerializeToString(deterministic=True) for batch in batches_of(messages)]

    whole = read(miner, 0, 40)
    assert read(miner, 13, 9) == whole[13:22]
    seal_round(tmp_path, 3)
    restarted = ServerThread(tmp_path)
    assert read(restarted, 0, 40) == whole
    restarted.stop()


def test_a_waiting_stream_sends_heartbeats_with_the_reason_and_then_the_batch(
    empty_miner: ServerThread, tmp_path: Path
) -> None:
    with channel_to(empty_miner.address) as channel:
        messages = stream(opened(channel), 0, 1)
        beats = [next(messages).heartbeat for _ in range(3)]
        assert {beat.next_step for beat in beats} == {0}
        assert "no round has been sealed yet" in beats[-1].reason
        seal_round(tmp_path, 1)
        rest = batches_of(messages)
    assert [batch.round_id for batch in rest] == [1]


def test_what_is_ready_is_sent_before_the_stream_waits(miner: ServerThread) -> None:
    with channel_to(miner.address) as channel:
        stub = opened(channel, exhausted_policy=mining_pb2.EXHAUSTED_POLICY_WAIT)
        messages = stream(stub, 0, 100)
        groups, heartbeat = 0, None
        while heartbeat is None:
            message = next(messages)
            groups += sum(batch.global_groups for batch in message.batches)
            heartbeat = None if message.batches else message.heartbeat
        messages.cancel()
    assert groups == 60
    assert "used up" in heartbeat.reason


def test_the_steps_before_an_impossible_one_are_sent_first(miner: ServerThread) -> None:
    """One rank too many for the smallest batch: the stream ends there, not before."""
    with channel_to(miner.address) as channel:
        stub = opened(channel)
        sizes = [batch.global_groups for batch in batches_of(stream(stub, 0, 40))]
        fails_at = next(step for step, size in enumerate(sizes) if size < max(sizes))
        stub.OpenRun(mining_pb2.OpenRunRequest(run_id="r", batch_rows=24))
        received = []
        with pytest.raises(grpc.RpcError) as raised:
            received.extend(
                batch.step
                for message in stream(stub, 0, 40, world_size=max(sizes))
                for batch in message.batches
            )
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert received == list(range(fails_at))


def test_a_slow_reader_gets_many_small_steps_in_one_message(miner: ServerThread) -> None:
    with channel_to(miner.address) as channel:
        messages = stream(opened(channel, batch_rows=200), 0, 600, with_payload=True)
        first = next(messages)
        time.sleep(1.5)  # the transport is full by now, and the outbox too
        sizes = [len(message.batches) for message in messages]
    assert sum(sizes) + len(first.batches) == 600
    assert max(sizes) > 1


def test_messages_keep_to_the_target_size_and_hold_at_least_one_step(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path), max_message_bytes=65_536)
    with channel_to(miner.address) as channel:
        messages = list(stream(opened(channel, batch_rows=60), 0, 200, with_payload=True))
    miner.stop()
    assert sum(len(message.batches) for message in messages) == 200
    for message in messages:
        assert len(message.batches) == 1 or message.ByteSize() < 1.01 * 65_536


def test_a_client_that_reads_no_more_stops_planning_and_assembling(miner: ServerThread) -> None:
    with channel_to(miner.address) as channel:
        messages = stream(opened(channel, batch_rows=200), 0, 4096, with_payload=True)
        batch_bytes = next(messages).batches[0].ByteSize()
        planned = settled(lambda: miner.runs.get("r").planned_steps)
        messages.cancel()
    assert planned < 4096
    assert planned * batch_bytes < 24 * 2**20


def test_a_cancelled_stream_ends_its_work(empty_miner: ServerThread) -> None:
    looks = 0
    newest = empty_miner.log.newest

    def counted() -> int | None:
        nonlocal looks
        looks += 1
        return newest()

    empty_miner.log.newest = counted  # type: ignore[method-assign]
    with channel_to(empty_miner.address) as channel:
        messages = stream(opened(channel), 0, 1)
        next(messages)
        messages.cancel()
        assert looks > 0
        after = settled(lambda: looks)
        time.sleep(0.5)
        assert looks == after


def test_many_streams_do_not_shut_out_other_requests(empty_miner: ServerThread) -> None:
    with channel_to(empty_miner.address) as channel:
        stub = opened(channel)
        waiting = [stream(stub, 0, 1) for _ in range(40)]
        for messages in waiting:
            next(messages)
        begin_s = time.monotonic()
        stub.GetStatus(mining_pb2.GetStatusRequest(), timeout=5)
        assert time.monotonic() - begin_s < 2.0
        for messages in waiting:
            messages.cancel()


def test_a_stream_that_is_starting_does_not_escape_the_drain(
    empty_miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, looked_up, go_on = empty_miner.runs, threading.Event(), threading.Event()
    with channel_to(empty_miner.address) as channel:
        stub = opened(channel)
        run = runs.get("r")

        def slow(_run_id: str) -> Any:
            looked_up.set()
            go_on.wait(10)
            return run

        monkeypatch.setattr(runs, "get", slow)
        messages = stream(stub, 0, 1)
        assert looked_up.wait(10)
        begin_s = time.monotonic()
        drain = threading.Thread(target=empty_miner.stop, args=(8.0,))
        drain.start()
        time.sleep(0.3)
        go_on.set()
        with pytest.raises(grpc.RpcError) as raised:
            list(messages)
        drain.join()
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.trailing_metadata())["retry-after-ms"] == "1000"
    assert time.monotonic() - begin_s < 4.0


def test_a_damaged_plan_is_data_loss_and_names_its_file(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    first = ServerThread(root)
    with channel_to(first.address) as channel:
        assert len(batches_of(stream(opened(channel), 0, 8))) == 8
    first.stop()
    (plan,) = root.rglob("plan.jsonl")
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    second = ServerThread(root)
    with channel_to(second.address) as channel, pytest.raises(grpc.RpcError) as refused:
        list(stream(mining_pb2_grpc.MiningServiceStub(channel), 0, 8))
    second.stop()
    assert refused.value.code() is grpc.StatusCode.DATA_LOSS  # type: ignore[attr-defined]
    assert "plan.jsonl: the record at byte 0 does not match" in refused.value.details()  # type: ignore[attr-defined]


def test_what_is_made_goes_out_while_the_disk_lets_the_next_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    miner = ServerThread(make_folder(tmp_path), max_message_bytes=65_536)
    with channel_to(miner.address) as channel:
        stub = opened(channel)
        assert len(batches_of(stream(stub, 0, 400))) == 400  # planned, and in memory
        plan_some, calls = Run.plan_some, 0

        def slow(self: Run, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                time.sleep(3.0)
            return plan_some(self, *arguments)

        monkeypatch.setattr(Run, "plan_some", slow)
        begin_s = time.monotonic()
        messages = stream(stub, 0, 400)
        first = next(message for message in messages if message.batches)
        waited_s = time.monotonic() - begin_s
        rest = batches_of(messages)
    miner.stop()
    assert calls > 1
    assert waited_s < 2.0
    assert len(first.batches) + len(rest) == 400


def test_a_drain_lets_out_what_is_made(miner: ServerThread) -> None:
    async def scene() -> list[bytes | None]:
        source = StreamSource(
            BatchAssembler(miner.log, None), ThreadPoolExecutor(1), ServingMeters()
        )
        run, _ = miner.runs.open(RunParameters("held", batch_rows=24))
        request = mining_pb2.StreamTripletsRequest(run_id="held", num_steps=64, world_size=1)
        drained = TripletStream(source, run, request, 2**20)
        drained._held = [b"made", b"before"]
        drained.end_early()
        return [await drained.next_message(1.0) for _ in range(2)]

    assert asyncio.run(scene()) == [b"madebefore", None]


def test_samples_with_nulls_and_nested_dictionaries_reach_the_client_together(
    tmp_path: Path,
) -> None:
    root, rows = make_folder(tmp_path), 160
    kinds = pa.array([["red", "green"][row % 2] for row in range(rows)]).dictionary_encode()
    table = pq.read_table(root / "data.parquet").append_column(
        "kinds", pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), kinds)
    )
    table = table.append_column("weight", pa.array([None if i % 3 else i for i in range(rows)]))
    data = tmp_path / "nested.parquet"
    pq.write_table(table, data)
    shutil.rmtree(root / "store")
    columns = ("image", "kinds", "weight")
    ingest(DatasetConfig(uri=str(data), payload_columns=columns), root / "store")
    server = ServerThread(root)
    with channel_to(server.address) as channel:
        messages = list(stream(opened(channel), 0, 64, with_payload=True))
    server.stop()
    batches = batches_of(messages)
    assert len(batches) == 64
    assert max(len(message.batches) for message in messages) > 1
    for batch in batches:
        sent = pa.ipc.open_stream(batch.payload).read_all()
        for name in ("kinds", "weight", "image"):
            wanted = table[name].take(sent["row_id"]).to_pylist()
            assert sent[name].to_pylist() == wanted
