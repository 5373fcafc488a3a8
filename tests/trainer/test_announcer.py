import contextlib
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.trainer.journals import read_journal
from trainer.announcer import Announcer, MinerLink
from trainer.errors import MinerUnreachableError, WeightsRefusedError
from trainer.journal import Journal


class Miner:
    """Answers when it is allowed to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_answer = threading.Event()
        self.asked = threading.Event()
        self.seen: list[Any] = []

    def announce(self, step: int, uri: str, sha256: str) -> bool:
        self.asked.set()
        assert self.may_answer.wait(10)
        self.seen.append((step, uri, sha256))
        if self.error:
            raise self.error
        return step == 13

    def commit(self, step: int) -> None:
        self.seen.append(step)
        if self.error:
            raise self.error


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value)}


@contextmanager
def announcing(miner: Miner, folder: Path, keep: int = 9) -> Iterator[Announcer]:
    with Journal(folder / "journal") as journal:
        link = MinerLink(miner.announce, miner.commit)
        announcer = Announcer(link, folder=folder, keep=keep, journal=journal)
        yield announcer
        miner.may_answer.set()
        assert announcer.close(10)


def test_announced_weights_lie_whole_at_the_uri_with_their_digest(tmp_path: Path) -> None:
    miner = Miner()
    with announcing(miner, tmp_path) as announcer:
        announcer.offer(7, weights(1.5))
    ((step, uri, sha256),) = miner.seen
    assert step == 7
    assert Path(uri).is_absolute()
    assert hashlib.sha256(Path(uri).read_bytes()).hexdigest() == sha256
    assert torch.equal(safetensors.torch.load_file(uri)["w"], weights(1.5)["w"])
    assert announcer.outcomes == {"accepted": 1}


def test_offering_never_waits_and_the_newest_replaces_what_waits(tmp_path: Path) -> None:
    miner = Miner()
    with announcing(miner, tmp_path) as announcer:
        announcer.offer(1, weights(1))
        assert miner.asked.wait(10)
        for step in (2, 3, 13):
            announcer.offer(step, weights(step))
            announcer.commit(step)
        assert miner.seen == [], "the miner has not answered yet"
    assert [s if isinstance(s, int) else s[0] for s in miner.seen] == [1, 13, 13]
    assert announcer.outcomes == {"accepted": 1, "superseded": 1, "replaced": 2}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (WeightsRefusedError("collapsed: 0.99"), "refused"),
        (MinerUnreachableError("gone"), "failed"),
    ],
)
def test_a_refusal_is_logged_and_journaled_but_not_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, outcome: str
) -> None:
    with announcing(Miner(error), tmp_path) as announcer:
        announcer.offer(4, weights(1))
        announcer.commit(4)
    assert announcer.outcomes == {outcome: 1}
    assert f"weights of step 4 {outcome} {error}" in caplog.text
    (event,) = read_journal(tmp_path / "journal")
    assert (event["outcome"], event["reason"]) == (outcome, str(error))


def test_old_weights_files_are_removed(tmp_path: Path) -> None:
    with announcing(Miner(), tmp_path, keep=2) as announcer:
        for step in (3, 4, 100):
            announcer.write(step, weights(step))
    names = sorted(path.name for path in tmp_path.glob("weights-*"))
    assert names == ["weights-00000004.safetensors", "weights-00000100.safetensors"]


def test_weights_of_a_step_before_the_others_stay_when_a_run_has_resumed(tmp_path: Path) -> None:
    for step in (5000, 6000):
        (tmp_path / f"weights-{step:08d}.safetensors").touch()
    with announcing(Miner(), tmp_path, keep=2) as announcer:
        for step in (4500, 4600):
            file = announcer.write(step, weights(step))
            assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
            names = sorted(path.name for path in tmp_path.glob("weights-*"))
            assert names == [file.path.name, "weights-00006000.safetensors"]


def test_a_journal_that_cannot_be_written_does_not_end_the_announcements(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    miner = Miner()
    miner.may_answer.set()
    with contextlib.suppress(OSError), Journal(Path("/dev/full")) as journal:
        link = MinerLink(miner.announce, miner.commit)
        announcer = Announcer(link, folder=tmp_path, keep=9, journal=journal)
        for step in (1, 2):
            miner.asked.clear()
            announcer.offer(step, weights(step))
            assert miner.asked.wait(10), f"step {step} is not announced"
        assert announcer.close(10)
    assert announcer.outcomes == {"accepted": 2}
    assert caplog.text.count("No space left") == 2


def test_closing_leaves_a_miner_that_does_not_answer(tmp_path: Path) -> None:
    miner = Miner()
    with announcing(miner, tmp_path) as announcer:
        announcer.offer(1, weights(1))
        assert miner.asked.wait(10)
        assert not announcer.close(0.05)
