"""Reported losses: what is kept of them, and that a repeated report changes nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.errors import RoundLogError
from miner.serving.difficulty import DifficultyBook, read_difficulties
from protos.coalface.v1 import mining_pb2
from tests.trainer.feed.served_miner import NUM_IDENTITIES, ServerThread, make_folder
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
    assert kept(tmp_path)[1] == 2.0


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
