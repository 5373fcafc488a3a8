"""Reported losses: what is kept of them, and that a repeated report changes nothing."""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner.errors import DiskError, RoundLogError
from miner.serving import difficulty
from miner.serving.difficulty import MAX_RUNS, DifficultyBook, read_difficulties
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.trainer.feed.served_miner import NUM_IDENTITIES, ServerThread, channel_to, make_folder
from trainer.errors import BadRequestError, RoundLostError
from trainer.feed import MinerClient
from trainer.feed.client import RunParameters


def report(book: DifficultyBook, step: int, losses: dict[int, float], run: str = "r") -> int:
    ids, values = np.array(list(losses), np.int32), np.array(list(losses.values()), np.float32)
    return book.report(run, step, ids, values)


def kept(root: Path, num_identities: int = 4) -> list[float]:
    losses = read_difficulties(root, num_identities)
    assert losses is not None
    return [round(float(loss), 4) for loss in losses]


def test_each_report_moves_the_mean_halfway(tmp_path: Path) -> None:
    book = DifficultyBook(tmp_path, 4)
    assert report(book, 10, {1: 4.0}) == 1
    assert report(book, 20, {1: 2.0, 3: 8.0}) == 2
    assert kept(tmp_path)[1::2] == [3.0, 8.0]
    assert np.isnan(kept(tmp_path)[::2]).all()


def test_a_repeated_report_changes_nothing(tmp_path: Path) -> None:
    book = DifficultyBook(tmp_path, 4)
    report(book, 10, {1: 4.0})
    report(book, 20, {1: 2.0})
    for _ in range(3):
        report(book, 20, {1: 2.0})
    report(book, 10, {1: 100.0})  # late: passed over
    assert kept(tmp_path)[1] == 3.0
    report(book, 20, {1: 0.0})  # the same step, said anew
    assert kept(tmp_path)[1] == 3.0


def test_repeated_reports_change_nothing_while_several_runs_report(tmp_path: Path) -> None:
    book = DifficultyBook(tmp_path, 4)
    report(book, 10, {1: 4.0}, run="a")
    report(book, 5, {1: 2.0}, run="b")
    report(book, 10, {1: 4.0}, run="a")
    report(DifficultyBook(tmp_path, 4), 5, {1: 2.0}, run="b")
    assert kept(tmp_path)[1] == 3.0
    assert report(book, 11, {1: 5.0}, run="a") == 1
    assert kept(tmp_path)[1] == 4.0


REPORTS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 5),
        st.dictionaries(st.integers(0, 3), st.floats(0, 8, width=32), min_size=1),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(REPORTS, st.data())
def test_reports_may_come_twice_in_any_order_and_over_restarts(
    tmp_path: Path, reports: list[Any], data: st.DataObject
) -> None:
    """What comes again is drawn from all that came; the means are those of each report once."""
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    book, means, newest = DifficultyBook(root, 4), [np.nan] * 4, dict[tuple[str, int], int]()
    for number, (run, step, losses) in enumerate(reports):
        report(book, step, losses, run)
        for identity, loss in losses.items():
            if step > newest.get((run, identity), -1):
                newest[run, identity] = step
                old = means[identity]
                means[identity] = loss if np.isnan(old) else old + 0.5 * (loss - old)
        again_run, again_step, again = data.draw(st.sampled_from(reports[: number + 1]))
        if data.draw(st.booleans()):
            book = DifficultyBook(root, 4)
        report(book, again_step, again, again_run)
        assert np.allclose(kept(root), means, atol=1e-3, equal_nan=True)


def test_the_steps_of_few_runs_are_remembered(tmp_path: Path) -> None:
    book = DifficultyBook(tmp_path, 4)
    for number in range(3 * MAX_RUNS):
        report(book, 1000, {1: 4.0}, run=f"run-{number}")
    sizes = (tmp_path / "difficulty.safetensors").stat().st_size
    assert sizes < 1000 + 8 * 4 * MAX_RUNS
    report(book, 1000, {1: 400.0}, run=f"run-{2 * MAX_RUNS}")
    assert kept(tmp_path)[1] == 4.0


def test_a_disk_that_fails_for_a_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(DifficultyBook(tmp_path, 4), 10, {1: 4.0})

    def refuse(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    book = DifficultyBook(tmp_path, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert read_difficulties(tmp_path, 4) is None
        with pytest.raises(DiskError, match="Too many open files"):
            report(book, 20, {2: 1.0})
    assert report(book, 20, {2: 1.0}) == 2
    assert kept(tmp_path)[1:3] == [4.0, 1.0]


def test_a_slow_report_does_not_hold_up_streams(
    miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the pool that reads rounds has threads."""
    go_on = threading.Event()
    write = difficulty.replace_file

    def slow(*arguments: Any) -> None:
        go_on.wait(20)
        write(*arguments)

    monkeypatch.setattr(difficulty, "replace_file", slow)
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        stub.OpenRun(mining_pb2.OpenRunRequest(run_id="r", batch_rows=24))
        ids, losses = np.zeros(1, "<i4").tobytes(), np.ones(1, "<f4").tobytes()
        values = {"run_id": "r", "identity_ids": ids, "losses": losses}
        reports = [
            stub.ReportDifficulty.future(
                mining_pb2.ReportDifficultyRequest(step=step, **values), timeout=20
            )
            for step in range(6)
        ]
        time.sleep(0.3)
        request = mining_pb2.StreamTripletsRequest(run_id="r", num_steps=3, world_size=1)
        assert list(stub.StreamTriplets(request, timeout=5))
        go_on.set()
        assert [each.result().num_identities for each in reports] == [1] * 6


def test_another_run_begins_its_steps_anew(tmp_path: Path) -> None:
    book = DifficultyBook(tmp_path, 4)
    report(book, 1000, {1: 4.0})
    report(book, 1, {1: 2.0}, run="second")
    assert kept(tmp_path)[1] == 3.0


def test_they_outlive_the_process_and_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    report(DifficultyBook(tmp_path, 4), 10, {1: 4.0})
    again = DifficultyBook(tmp_path, 4)
    report(again, 10, {1: 4.0})
    assert kept(tmp_path)[1] == 4.0
    assert read_difficulties(tmp_path, 5) is None, "of another number of identities"
    file = tmp_path / "difficulty.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert read_difficulties(tmp_path, 4) is None
    assert report(DifficultyBook(tmp_path, 4), 1, {0: 1.0}) == 1


def test_a_disk_that_refuses_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = DifficultyBook(tmp_path, 4)
    report(book, 10, {1: 4.0})

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("miner.serving.difficulty.replace_file", refuse)
        with pytest.raises(RoundLogError, match="No space left"):
            report(book, 20, {1: 0.0})
    assert kept(tmp_path)[1] == 4.0
    report(book, 20, {1: 2.0})
    assert kept(tmp_path)[1] == 3.0


def test_reports_at_once_are_all_kept(tmp_path: Path) -> None:
    book = DifficultyBook(tmp_path, 64)
    threads = [threading.Thread(target=report, args=(book, 5, {i: float(i)})) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept(tmp_path, 64) == list(range(64))


@pytest.fixture
def miner(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path))
    yield server
    server.stop()


def test_a_trainer_reports_over_the_wire(miner: ServerThread) -> None:
    with MinerClient(miner.address, patience_s=5) as client:
        client.open_run(RunParameters(run_id="r", batch_rows=24))
        ids, losses = np.array([0, 7], np.int32), np.array([1.5, 0.0], np.float32)
        assert client.report_difficulty("r", 5, ids, losses) == 2
        with pytest.raises(RoundLostError, match="no run 'other'"):
            client.report_difficulty("other", 5, ids, losses)
    found = read_difficulties(miner.log.root, NUM_IDENTITIES)
    assert found is not None
    assert (found[0], found[7]) == (1.5, 0.0)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"step": -1}, "step"),
        ({"identity_ids": [0, 0]}, "identity_ids"),
        ({"identity_ids": [0, NUM_IDENTITIES]}, "identity_ids"),
        ({"identity_ids": [0, -1]}, "identity_ids"),
        ({"identity_ids": []}, "identity_ids"),
        ({"losses": [1.0]}, "losses"),
        ({"losses": [1.0, -0.5]}, "losses"),
        ({"losses": [1.0, np.nan]}, "losses"),
        ({"losses": [1.0, np.inf]}, "losses"),
    ],
)
def test_the_wrong_field_is_named(miner: ServerThread, values: Any, field: str) -> None:
    whole = {"step": 1, "identity_ids": [0, 1], "losses": [1.0, 2.0], **values}
    request = mining_pb2.ReportDifficultyRequest(
        run_id="r",
        step=whole["step"],
        identity_ids=np.array(whole["identity_ids"], "<i4").tobytes(),
        losses=np.array(whole["losses"], "<f4").tobytes(),
    )
    with (
        MinerClient(miner.address, patience_s=5) as client,
        pytest.raises(BadRequestError, match=f"^{field}: "),
    ):
        client._ask("ReportDifficulty", request)
