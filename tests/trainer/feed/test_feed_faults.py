"""Miners that die, hang, drain or never were: the feed goes on without a gap, or says so."""

import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.trainer.feed.served_miner import (
    FlakyProxy,
    ServerProcess,
    ServerThread,
    free_port,
    make_folder,
    seal_round,
)
from trainer.errors import LimitError, MinerUnreachableError, ProtocolError
from trainer.feed import TripletFeed

BATCH_ROWS = 24


@pytest.fixture
def processes() -> Iterator[list[ServerProcess]]:
    started: list[ServerProcess] = []
    yield started
    for process in started:
        process.kill()


def unbroken(folder: Path, run_id: str, num_steps: int) -> list[str]:
    miner = ServerThread(folder)
    feed = TripletFeed(miner.address, run_id=run_id, batch_rows=BATCH_ROWS, num_steps=num_steps)
    read = [batch.digest() for batch in feed]
    miner.stop()
    return read


def test_a_miner_killed_in_mid_stream_costs_no_batch_and_repeats_none(
    folder: Path, processes: list[ServerProcess], caplog: pytest.LogCaptureFixture
) -> None:
    """The first batch is in hand while the other 99 of the window are on their way: killed."""
    port = free_port()
    processes.append(ServerProcess(folder, port).wait_ready())
    steps, read = [], []
    with (
        caplog.at_level(logging.INFO, "trainer.feed"),
        TripletFeed(
            processes[0].address,
            run_id="killed",
            batch_rows=BATCH_ROWS,
            num_steps=120,
            prefetch_steps=100,
            patience_s=60,
        ) as feed,
    ):
        for batch in feed:
            steps.append(batch.step)
            read.append(batch.digest())
            if batch.step in (0, 110):
                processes[-1].kill()
                processes.append(ServerProcess(folder, port))
    broken_at = next(record.args[1] for record in caplog.records if "again" in record.msg)  # type: ignore[index]
    assert 0 < int(str(broken_at)) < 100
    assert steps == list(range(120))
    assert read == unbroken(folder, "killed", 120)


def test_a_miner_that_is_stopped_trips_the_idle_deadline_and_may_come_back(
    folder: Path, processes: list[ServerProcess], caplog: pytest.LogCaptureFixture
) -> None:
    process = ServerProcess(folder, free_port()).wait_ready()
    processes.append(process)
    read = []
    with (
        caplog.at_level(logging.INFO, "trainer.feed"),
        TripletFeed(
            process.address,
            run_id="stopped",
            batch_rows=BATCH_ROWS,
            num_steps=40,
            patience_s=30,
            idle_s=0.5,
        ) as feed,
    ):
        for batch in feed:
            read.append(batch.digest())
            if batch.step == 9:
                process.send(signal.SIGSTOP)
                threading.Timer(2.0, process.send, (signal.SIGCONT,)).start()
    assert "nothing came within idle_s=0.5" in caplog.text
    assert read == unbroken(folder, "stopped", 40)


def test_a_miner_that_stays_stopped_ends_in_an_error_after_what_was_read_ahead(
    folder: Path, processes: list[ServerProcess]
) -> None:
    process = ServerProcess(folder, free_port()).wait_ready()
    processes.append(process)
    with TripletFeed(
        process.address, run_id="r", batch_rows=BATCH_ROWS, patience_s=1.5, idle_s=0.5
    ) as feed:
        for _ in range(3):
            next(feed)
        process.send(signal.SIGSTOP)
        begin_s = time.monotonic()
        with pytest.raises(MinerUnreachableError, match=process.address):
            list(feed)
        assert 1.0 < time.monotonic() - begin_s < 5.0
        assert feed.position < 20


def test_a_socket_that_accepts_and_never_answers_ends_in_an_error_within_the_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        feed = TripletFeed(address, run_id="r", batch_rows=BATCH_ROWS, patience_s=1.0)
        begin_s = time.monotonic()
        with pytest.raises(MinerUnreachableError, match=address):
            feed.open()
        assert 1.0 <= time.monotonic() - begin_s < 4.0


def test_a_miner_that_was_never_there_ends_in_a_clear_error_within_the_patience() -> None:
    address = f"127.0.0.1:{free_port()}"
    feed = TripletFeed(address, run_id="r", batch_rows=BATCH_ROWS, patience_s=1.0)
    begin_s = time.monotonic()
    with pytest.raises(MinerUnreachableError, match=r"patience_s=1\).*Connection refused"):
        next(feed)
    assert 1.0 <= time.monotonic() - begin_s < 4.0


def test_a_drained_miner_ends_well_and_its_successor_goes_on(
    folder: Path, processes: list[ServerProcess]
) -> None:
    port = free_port()
    processes.append(ServerProcess(folder, port).wait_ready())
    read = []
    with TripletFeed(
        processes[0].address, run_id="drained", batch_rows=BATCH_ROWS, num_steps=40, patience_s=30
    ) as feed:
        for batch in feed:
            read.append(batch.digest())
            if batch.step == 11:
                processes[0].send(signal.SIGTERM)
                assert processes[0].wait() == 0
                processes.append(ServerProcess(folder, port))
    assert read == unbroken(folder, "drained", 40)


def test_a_miner_moved_while_the_feed_waits_is_found_again(folder: Path) -> None:
    """Draining a stream that waits for a round: it ends with OK, and is asked for again."""
    first = ServerThread(folder)
    port = first.server.port
    with TripletFeed(
        first.address,
        run_id="r",
        batch_rows=BATCH_ROWS,
        exhausted="wait",
        num_steps=None,
        prefetch_steps=100,
        patience_s=20,
    ) as feed:
        assert next(feed).step == 0
        time.sleep(0.5)  # all groups are read ahead, and the stream waits
        first.stop(grace_s=2.0)
        second = ServerThread(folder, port=port)
        seal_round(folder, 3)
        steps = [0]
        for batch in feed:
            steps.append(batch.step)
            if batch.round_id == 3:
                break
    second.stop()
    assert steps == list(range(len(steps)))


def test_a_stream_whose_connection_hangs_goes_on_over_a_new_one(folder: Path) -> None:
    miner = ServerThread(folder)
    proxy = FlakyProxy(miner.address, hanging={1})  # 0 opens the run, 1 is the first stream's
    feed = TripletFeed(
        proxy.address,
        run_id="r",
        batch_rows=BATCH_ROWS,
        num_steps=10,
        patience_s=10,
        idle_s=0.5,
    )
    assert [batch.step for batch in feed] == list(range(10))
    assert proxy.num_connections == 3
    proxy.close()
    miner.stop()


def test_a_batch_that_takes_longer_than_the_idle_deadline_to_come_is_waited_for(
    tmp_path: Path,
) -> None:
    """Some 700 kB a batch, at 400 kB/s: each part is a sign of life, the batch comes after 2 s."""
    folder = make_folder(tmp_path / "miner", image_repeats=2000)
    miner = ServerThread(folder, max_message_bytes=65_536)
    proxy = FlakyProxy(miner.address, hanging=set(), bytes_per_s=400_000)
    with TripletFeed(
        proxy.address,
        run_id="r",
        batch_rows=BATCH_ROWS,
        num_steps=2,
        prefetch_steps=2,
        patience_s=20,
        idle_s=0.8,
    ) as feed:
        begin_s = time.monotonic()
        batch = next(feed)
        assert time.monotonic() - begin_s > 2 * feed.idle_s, "the batch came too fast to tell"
        assert batch.samples is not None
        assert batch.samples.nbytes > 500_000
        assert next(feed).step == 1
        assert feed.figures().num_reconnects == 0
    proxy.close()
    miner.stop()


def test_another_service_at_the_address_is_told_apart() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        feed = TripletFeed(f"127.0.0.1:{port}", run_id="r", batch_rows=BATCH_ROWS)
        with pytest.raises(ProtocolError, match="UNIMPLEMENTED"):
            feed.open()
        server.stop(0).wait()


def test_a_disk_that_is_full_for_a_while_costs_only_time(
    folder: Path, miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = unbroken(folder, "other", 20)
    full = threading.Event()
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    feed = TripletFeed(
        miner.address, run_id="run", batch_rows=BATCH_ROWS, num_steps=20, patience_s=20
    )
    with feed.open():
        read = [next(feed).digest()]
        monkeypatch.setattr(os, "fsync", refuse)
        full.set()
        threading.Timer(2.5, full.clear).start()
        read += [batch.digest() for batch in feed]
    assert read == before, "the same batches, planned once the disk has room"
    assert miner.runs.get("run").planned_steps == 24


def test_a_stream_too_many_is_asked_for_again_until_another_one_has_ended(folder: Path) -> None:
    miner = ServerThread(folder, max_streams_per_client=1)
    values = {"batch_rows": BATCH_ROWS, "exhausted": "wait", "prefetch_steps": 100}
    with TripletFeed(miner.address, run_id="first", **values) as first:
        next(first)  # its stream stays open: it waits for the next round
        second = TripletFeed(miner.address, run_id="second", patience_s=20, **values)
        threading.Timer(1.0, first.close).start()
        assert next(second).step == 0
        second.close()
    with TripletFeed(miner.address, run_id="first", **values) as first:
        next(first)
        third = TripletFeed(miner.address, run_id="third", patience_s=1.5, **values)
        with pytest.raises(LimitError, match="max_streams_per_client"):
            next(third)
    miner.stop()
