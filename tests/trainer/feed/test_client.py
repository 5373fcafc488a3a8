"""Every request of the service through the client, against a real server."""

import errno
import hashlib
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.feed.served_miner import FlakyProxy, ServerThread, free_port
from trainer.errors import (
    BadRequestError,
    LimitError,
    MinerFaultError,
    MinerUnreachableError,
    RoundLostError,
    RunRefusedError,
    StepRangeError,
    WeightsRefusedError,
)
from trainer.feed import MinerClient, RunParameters

SHA256 = hashlib.sha256(b"weights").hexdigest()


def test_a_run_is_opened_found_again_and_refused_with_other_values(miner: ServerThread) -> None:
    with MinerClient(miner.address, patience_s=5) as client:
        assert client.open_run(RunParameters(run_id="a", batch_rows=24)).created
        assert not client.open_run(RunParameters(run_id="a", batch_rows=24)).created
        with pytest.raises(RunRefusedError, match="seed=7"):
            client.open_run(RunParameters(run_id="a", batch_rows=24, seed=7))
        with pytest.raises(RunRefusedError, match="exhausted='wait'"):
            client.open_run(RunParameters(run_id="a", batch_rows=24, exhausted="wait"))
        with pytest.raises(BadRequestError, match="batch_rows"):
            client.open_run(RunParameters(run_id="b", batch_rows=1))


def test_all_policies_reach_the_miner(miner: ServerThread) -> None:
    parameters = RunParameters(
        run_id="p",
        batch_rows=24,
        seed=2**64 - 1,
        exhausted="wait",
        stale="wait",
        max_staleness_steps=50,
    )
    with MinerClient(miner.address, patience_s=5) as client:
        client.open_run(parameters)
    kept = miner.runs.get("p").parameters
    assert (kept.exhausted, kept.stale, kept.max_staleness_steps) == ("wait", "wait", 50)
    assert kept.seed == 2**64 - 1


def test_commits_announcements_refreshes_and_status(miner: ServerThread) -> None:
    with MinerClient(miner.address, patience_s=5) as client:
        client.open_run(RunParameters(run_id="a", batch_rows=24))
        assert client.commit("a", 0) == 0
        with pytest.raises(StepRangeError):
            client.commit("a", 5)
        with pytest.raises(RoundLostError, match="'b'"):
            client.commit("b", 0)
        with pytest.raises(WeightsRefusedError, match="no weights"):
            client.request_refresh()
        with pytest.raises(WeightsRefusedError, match="the digest does not match"):
            client.announce(step=1, uri="bad", sha256=SHA256)
        with pytest.raises(BadRequestError, match="sha256"):
            client.announce(step=1, uri="good", sha256="short")
        assert client.announce(step=8, uri="good", sha256=SHA256) is False
        assert client.announce(step=7, uri="old", sha256=SHA256) is True
        assert client.request_refresh() == 8
        assert [run.run_id for run in client.status().runs] == ["a"]


def test_a_failure_inside_the_miner_is_told_apart_from_its_absence(
    miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner.backend, "refresh_status", lambda: 1 // 0)
    with MinerClient(miner.address, patience_s=60) as client, pytest.raises(MinerFaultError):
        client.status()


def test_without_a_miner_the_error_comes_within_the_patience_and_says_why() -> None:
    address = f"127.0.0.1:{free_port()}"
    begin_s = time.monotonic()
    says = rf"{address} for 1\.\d s .*UNAVAILABLE"
    with (
        MinerClient(address, patience_s=1.0) as client,
        pytest.raises(MinerUnreachableError, match=says),
    ):
        client.status()
    assert 1.0 <= time.monotonic() - begin_s < 3.0


def test_a_miner_that_starts_late_is_found(folder: Path) -> None:
    port = free_port()
    late: list[ServerThread] = []
    timer = threading.Timer(1.0, lambda: late.append(ServerThread(folder, port=port)))
    timer.start()
    with MinerClient(f"127.0.0.1:{port}", patience_s=30) as client:
        assert client.status().num_rows > 0
    timer.join()
    late[0].stop()


def test_a_connection_that_hangs_is_left_for_a_new_one(miner: ServerThread) -> None:
    proxy = FlakyProxy(miner.address, hanging={0})
    with MinerClient(proxy.address, patience_s=10, deadline_s=0.5) as client:
        assert client.status().num_rows > 0
    assert proxy.num_connections == 2
    proxy.close()


def test_a_file_that_cannot_be_opened_is_told_at_once_and_not_taken_for_a_lost_miner(
    miner: ServerThread, tmp_path: Path
) -> None:
    begin_s = time.monotonic()
    with MinerClient(miner.address, patience_s=30) as client, pytest.raises(IsADirectoryError):
        client.upload(step=1, path=tmp_path, sha256=SHA256)
    assert time.monotonic() - begin_s < 5.0


class BadSector(io.BytesIO):
    """Gives one part of a file, and then no more."""

    def read(self, _size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(errno.EIO, "Input/output error")
        return super().read(3)


def test_a_file_that_cannot_be_read_to_its_end_is_told_and_not_sent_again(
    miner: ServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    opened: list[BadSector] = []
    open_file = Path.open

    def open_bad(self: Path, mode: str) -> Any:
        if mode != "rb":  # the miner's own, in the same process
            return open_file(self, mode)
        opened.append(BadSector(b"weights"))
        return opened[-1]

    monkeypatch.setattr(Path, "open", open_bad)
    with MinerClient(miner.address, patience_s=30) as client, pytest.raises(OSError, match="Input"):
        client.upload(step=1, path=path, sha256=SHA256)
    assert len(opened) == 1
    assert not miner.backend.announced


def test_a_file_that_is_open_while_no_miner_answers_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    with (
        MinerClient(f"127.0.0.1:{free_port()}", patience_s=0.5) as client,
        pytest.raises(MinerUnreachableError),
    ):
        client.upload(step=1, path=path, sha256=SHA256)


def test_a_busy_miner_is_asked_again_and_what_it_never_allows_is_not(folder: Path) -> None:
    miner = ServerThread(folder, max_request_bytes=65_536, max_upload_bytes=3)
    service = miner.server._service
    service._num_queries = 99
    timer = threading.Timer(1.5, setattr, (service, "_num_queries", 0))
    timer.start()
    begin_s = time.monotonic()
    with MinerClient(miner.address, patience_s=30) as client:
        with pytest.raises(RunRefusedError, match="no round has been mined"):
            client.query_rows(np.arange(3), 2)
        assert time.monotonic() - begin_s >= 1.5
        with pytest.raises(LimitError, match="larger than max"):
            client.query_rows(np.arange(10_000), 2)
        path = folder / "weights"
        path.write_bytes(b"weights")
        with pytest.raises(LimitError, match="max_upload_bytes"):
            client.upload(step=1, path=path, sha256=SHA256)
    service._num_queries = 99
    with (
        MinerClient(miner.address, patience_s=1.5) as client,
        pytest.raises(LimitError, match="ask again later"),
    ):
        client.query_rows(np.arange(3), 2)
    assert time.monotonic() - begin_s < 15.0
    miner.stop()
