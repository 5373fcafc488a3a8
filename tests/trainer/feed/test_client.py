"""Every request of the service through the client, against a real server."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from tests.trainer.feed.served_miner import FlakyProxy, ServerThread, free_port
from trainer.errors import (
    BadRequestError,
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
