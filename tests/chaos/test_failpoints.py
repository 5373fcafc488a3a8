"""Every failpoint, provoked: after a restart the promises hold, and a life can be lived to its end.

The table of cases is made from the registry, so that no point can be added without its test.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miner
from miner.app.accepted import read_accepted
from miner.failpoints import FAILPOINTS, WRITE_POINTS
from miner.rounds import RoundLog
from miner.rounds.archive import Archive
from miner.rounds.restore import restore_log
from miner.serving.difficulty import read_difficulties
from miner.serving.run_archive import RunArchive
from miner.serving.runs import RunStore
from miner.workers.snapshot import SnapshotStore
from tests.chaos import one_life
from tests.chaos.one_life import KEY, NEW_WEIGHTS, OLD_WEIGHTS, STRIDE_STEPS, rows_of
from tests.miner.rounds.round_samples import bytes_of
from tests.trainer.feed.served_miner import NUM_IDENTITIES, ServerThread, toy_groups
from trainer.feed import TripletFeed

PROJECT = Path(miner.__file__).parents[1]
CASES = [
    *(f"{name}=kill" for name in FAILPOINTS),
    *(f"{name}=torn" for name in WRITE_POINTS),
    *(
        f"1*{name}=error({error})"
        for name, error in zip(
            FAILPOINTS, itertools.cycle(("ENOSPC", "EIO", "EROFS")), strict=False
        )
    ),
    *(
        f"{count}*durable.write.begin={action}"
        for count in (2, 4, 7)
        for action in ("torn", "kill")
    ),
    *(f"2*{name}=torn" for name in WRITE_POINTS),
]


GOES_ON = ("archive.remove.begin",)
"""An error there is logged and passed over."""
NOT_RESTORED_YET = 4
"""The newest round on the disk until the archive's has been brought."""


@dataclass(frozen=True)
class Remains:
    """What one life left."""

    root: Path
    answers: list[list[Any]]
    ending: int

    def told(self, kind: str) -> list[list[Any]]:
        return [answer[1:] for answer in self.answers if answer[0] == kind]


@dataclass(frozen=True)
class Lives:
    template: Path
    work: Path
    before: list[tuple[int, str]]

    def of(self, case: str) -> Remains:
        number = CASES.index(case)
        lines = (self.work / f"says-{number}").read_text().splitlines()
        ending = int((self.work / f"ends-{number}").read_text())
        return Remains(self.work / str(number), [json.loads(line) for line in lines], ending)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    folder = tmp_path_factory.mktemp("lives")
    one_life.make_template(folder / "template")
    (folder / "work").mkdir()
    command = [sys.executable, "-m", "tests.chaos.one_life", folder / "template", folder / "work"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    environment.pop("COALFACE_FAILPOINTS", None)
    subprocess.run([*command, *CASES], check=True, cwd=PROJECT, env=environment)
    state = folder / "template" / "log"
    run = RunStore(state, STRIDE_STEPS).get("before")
    return Lives(folder / "template", folder / "work", one_life.stream(run, RoundLog(state)))


@pytest.mark.parametrize("case", CASES)
def test_after_any_failure_the_promises_hold_and_a_new_life_succeeds(
    case: str, lives: Lives, tmp_path: Path
) -> None:
    remains = lives.of(case)
    if "error" in case:
        assert remains.ending == 0, remains.answers[-3:]
        assert remains.told("lived")
        is_told = not any(name in case for name in GOES_ON)
        assert len(remains.told("refused")) == is_told, (
            "the point was not passed, or never recovered from"
        )
    else:
        assert remains.ending == signal.SIGKILL, "the point was not passed"
        assert not remains.told("lived")
    check_log(remains, NOT_RESTORED_YET)
    check_run(remains, lives)
    check_accepted(remains)
    check_snapshot(remains)
    check_losses(remains)

    check_restored(remains, lives, tmp_path / "another disk")
    make_uploads_old(remains)
    answers: list[list[Any]] = []
    one_life.live(remains.root, lambda *answer: answers.append(list(answer)))
    assert not [answer for answer in answers if answer[0] == "refused"]
    after = Remains(remains.root, remains.answers + answers, 0)
    check_log(after)
    check_run(after, lives)
    check_accepted(after)
    check_snapshot(after)
    check_losses(after)
    check_served(after, lives)
    check_tidy(after)
    check_restored(after, lives, tmp_path / "a third disk")


def make_uploads_old(remains: Remains) -> None:
    for path in (remains.root / "log" / "weights").glob(".upload-*"):
        os.utime(path, (1.0, 1.0))


def check_log(remains: Remains, oldest_newest: int = 5) -> None:
    """P5: sealed rounds are there, whole, and what they were made of; P6: none is lost."""
    log = RoundLog(remains.root / "log")
    assert log.verify() == []
    sealed = log.sealed_ids()
    assert {1, 2, 3} & set(sealed) >= {3}, "the round of the run that was opened before"
    assert oldest_newest <= sealed[-1] <= 7
    for round_id in sealed:
        seeds = (round_id, 6)  # one that was refused and was there all the same is sealed again
        made = [bytes_of(toy_groups(one_life.NUM_GROUPS, seed)) for seed in seeds]
        assert bytes_of(log.read(round_id)) in made
    for round_id, digest in remains.told("sealed"):
        assert log.manifest(round_id).sha256 == digest
    generations = [taken for (taken,) in remains.told("generation")]
    assert generations == sorted(set(generations)), "a generation was given twice"


def check_run(remains: Remains, lives: Lives) -> None:
    """P1 and P3: a step has the same bytes on every read, before and after."""
    state = remains.root / "log"
    runs, log = RunStore(state, STRIDE_STEPS), RoundLog(state)
    assert one_life.stream(runs.get("before"), log) == lives.before
    told = remains.told("batch")
    if remains.told("opened"):
        read = dict(one_life.stream(runs.get("new"), log))
        assert all(read[step] == digest for step, digest in told)
        committed = [step for (step,) in remains.told("committed")]
        assert runs.get("new").committed_step >= max(committed, default=0)


def check_restored(remains: Remains, lives: Lives, root: Path) -> None:
    """P5 and P6 when the disk is lost: what was sealed, sent and committed is in the archive."""
    log = restore_log(root / "log", Archive(one_life.objects_of(remains.root)))
    archive = RunArchive(one_life.objects_of(remains.root))
    RunStore(root / "log", STRIDE_STEPS, archive).restore()
    restored = Remains(root, remains.answers, remains.ending)
    check_log(restored)
    check_run(restored, lives)
    here = RoundLog(remains.root / "log")
    for round_id in set(here.sealed_ids()) & set(log.sealed_ids()):
        assert log.manifest(round_id).sha256 == here.manifest(round_id).sha256
    assert set(here.sealed_ids()) <= {*log.sealed_ids(), *log.expired_ids()}


def check_accepted(remains: Remains) -> None:
    """The newest accepted weights are known, and their copy is whole."""
    accepted = read_accepted(remains.root / "log")
    assert accepted is not None
    assert accepted.step >= max((step for (step,) in remains.told("accepted")), default=1)
    content = {1: OLD_WEIGHTS, 2: NEW_WEIGHTS}[accepted.step]
    assert Path(accepted.uri).name == f"{sha256(content).hexdigest()}.safetensors"
    copy = remains.root / "log" / "weights" / Path(accepted.uri).name
    assert copy.read_bytes() == content


def check_snapshot(remains: Remains) -> None:
    """A chunk is whole or missing; one that was reported is there."""
    store = SnapshotStore(remains.root / "log" / "snapshots")
    missing = store.missing_chunks(KEY)
    assert not {chunk for (chunk,) in remains.told("embedded")} & set(missing)
    if not missing:
        assert np.array_equal(store.open(KEY)[:25], rows_of(1, 0))
        assert np.array_equal(store.open(KEY)[25:], rows_of(1, 1))


def check_losses(remains: Remains) -> None:
    losses_I = read_difficulties(remains.root / "log", NUM_IDENTITIES)
    assert losses_I is not None, "what was known of identities is lost"
    old, new = [0.5, 0.7, np.nan], [0.5, 0.4, 0.2]
    allowed = [new] if remains.told("reported") else [old, new]
    assert any(np.allclose(losses_I[:3], each, equal_nan=True) for each in allowed)


def check_served(remains: Remains, lives: Lives) -> None:
    """The last good round is served by a real server, to a run that begins now and to old ones."""
    server = ServerThread(remains.root)
    newest = RoundLog(remains.root / "log").newest()
    settings = {"batch_rows": one_life.BATCH_ROWS, "patience_s": 10, "num_steps": 5}
    for run_id, round_ids in (("after", {newest}), ("before", {3})):
        batches = list(TripletFeed(server.address, run_id=run_id, **settings))
        assert [batch.step for batch in batches] == list(range(5))
        assert {batch.round_id for batch in batches} == round_ids
    server.stop()


def check_tidy(remains: Remains) -> None:
    """Nothing half-made stays for ever: a second life has removed what the first left."""
    state = remains.root / "log"
    left = [
        *(path for path in (state / "rounds").iterdir() if path.suffix),
        *(state / "runs").glob(".new-*"),
        *(path for path in (state / "weights").iterdir() if path.suffix != ".safetensors"),
    ]
    assert left == []


def test_every_point_in_the_code_is_registered_and_every_registered_one_is_in_the_code() -> None:
    found: list[str] = []
    for path in sorted((PROJECT / "miner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                *("reach", "reach_write"),
            ):
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    found.append(str(name.value))
                    assert (node.func.id == "reach_write") == (name.value in WRITE_POINTS)  # type: ignore[attr-defined]
    assert sorted(found) == sorted(FAILPOINTS), "each in one place"
