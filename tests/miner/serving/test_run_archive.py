"""P3 and P4 over the loss of a disk: what was planned is planned for ever, on any server."""

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miner.errors import DamagedRunError, DiskError, RunConflictError, StaleWriterError
from miner.rounds import RoundLog
from miner.rounds.archive import Archive
from miner.rounds.restore import restore_log
from miner.serving.plan import RunParameters, Waiting
from miner.serving.plan_check import check_run
from miner.serving.run_archive import RunArchive
from miner.serving.runs import Run, RunStore
from tests.miner.rounds.archived import open_archived, seal_next
from tests.miner.rounds.loopback_s3 import UnsteadyS3, objects_of
from tests.miner.rounds.round_samples import make_log
from tests.miner.serving.step_plans import StepPlan, plan_step

RUN = RunParameters("r", batch_rows=16, seed=1)
STRIDE = 4


class Head:
    """A server's log and runs on a disk of its own."""

    def __init__(self, root: Path, s3: UnsteadyS3, folder: str, timeout_s: float = 2.0) -> None:
        self.archive = Archive(objects_of(s3, folder, timeout_s))
        self.writer = open_archived(root, self.archive)
        self.log = self.writer.log
        self.runs = RunStore(root, STRIDE, RunArchive(objects_of(s3, folder, timeout_s)))
        self.runs.restore()

    def run(self, **changes: Any) -> Run:
        return self.runs.open(replace(RUN, **changes))[0]

    def plans(self, steps: range) -> list[StepPlan | Waiting]:
        run = self.run()
        return [plan_step(run, step, self.log) for step in steps]


def test_a_run_whose_disk_is_lost_goes_on_from_any_step_as_it_was_planned(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    lost = Head(tmp_path / "lost", s3, folder)
    told = []
    for first in range(0, 24, 8):
        seal_next(lost.writer)
        told += lost.plans(range(first, first + 8))
    assert {plan.round_id for plan in told if isinstance(plan, StepPlan)} == {1, 2, 3}
    assert s3.puts("/runs/r/plan/") == 6, "one put for each stride"
    assert lost.run().commit(10) == 10
    shutil.rmtree(tmp_path / "lost")

    new = Head(tmp_path / "new", s3, folder)
    seal_next(new.writer)
    assert s3.puts("/runs/r/plan/") == 6
    assert new.run().planned_steps == 24
    assert new.plans(range(13, 24)) == told[13:]
    assert new.plans(range(24)) == told
    assert new.run().committed_step == 10
    assert new.run().needed_rounds() == {2, 3}
    (next_plan,) = new.plans(range(24, 25))
    assert isinstance(next_plan, StepPlan)
    assert next_plan.round_id == 4


def test_an_older_disk_learns_what_was_planned_since(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    head = Head(tmp_path / "a", s3, folder)
    seal_next(head.writer)
    head.plans(range(4))
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    told = head.plans(range(400))
    head.runs.open(replace(RUN, run_id="another"))
    old = Head(tmp_path / "old", s3, folder)
    assert old.run().planned_steps == 400, "or a trainer that resumes there would be out of reach"
    assert old.plans(range(390, 400)) == told[390:]
    assert [run.parameters.run_id for run in old.runs.all()] == ["another", "r"]


def test_servers_that_plan_the_same_run_at_once_agree_on_every_step(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    first = Head(tmp_path / "a", s3, folder)
    seal_next(first.writer)
    heads = [first, Head(tmp_path / "b", s3, folder), Head(tmp_path / "c", s3, folder)]
    seal_next(heads[-1].writer)  # the others have round 1 only, and may plan on it
    rng = random.Random(3)
    told: list[dict[int, StepPlan]] = [{} for _ in heads]

    def ask(number: int, wanted: list[int]) -> None:
        run = heads[number].run()
        for step in wanted:
            try:
                plan = plan_step(run, step, heads[number].log)
            except StaleWriterError:
                continue
            assert isinstance(plan, StepPlan)
            told[number][step] = plan

    threads = [
        threading.Thread(target=ask, args=(i, sorted(rng.sample(range(40), 25)))) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = Head(tmp_path / "d", s3, folder).plans(range(40))
    assert len(told[2]) == 25, "the newest server is refused nothing"
    for answers in told:
        assert all(everything[step] == plan for step, plan in answers.items())


def test_a_server_that_lacks_the_round_of_a_step_sends_its_clients_away(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    old = Head(tmp_path / "a", s3, folder)
    seal_next(old.writer)
    told = old.plans(range(4))
    new = Head(tmp_path / "b", s3, folder)
    seal_next(new.writer)
    new.plans(range(8))
    with pytest.raises(StaleWriterError, match="planned by another service on round 2"):
        old.plans(range(4, 5))
    assert old.plans(range(4)) == told


def test_a_run_opened_elsewhere_is_found_with_its_parameters_and_its_plan(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    first, second = (Head(tmp_path / name, s3, folder) for name in "ab")
    seal_next(second.writer)
    told = second.plans(range(300))
    restore_log(tmp_path / "a", first.archive)
    with pytest.raises(RunConflictError, match=r"seed=2 \(1\)"):
        first.run(seed=2)
    assert first.run().planned_steps == 300
    assert first.plans(range(290, 300)) == told[290:]


def test_while_the_store_is_away_what_is_planned_is_served_and_the_rest_is_refused_in_time(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    head = Head(tmp_path / "a", s3, folder, timeout_s=0.3)
    seal_next(head.writer)
    told = head.plans(range(4))
    run = head.run()
    with s3.being("hanging"):
        with pytest.raises(DiskError, match="cannot be put"):
            head.plans(range(4, 5))
        assert head.plans(range(4)) == told
        with pytest.raises(DiskError, match="cannot be put"):
            head.runs.open(replace(RUN, run_id="new"))
        with ThreadPoolExecutor(8) as threads:
            begin_s = time.monotonic()
            waits = [threads.submit(plan_step, run, 4, head.log) for _ in range(8)]
            refused = [wait.exception() for wait in waits]
        assert all(isinstance(error, DiskError) for error in refused)
        assert time.monotonic() - begin_s < 10
        reopened = RunStore(tmp_path / "a", STRIDE, RunArchive(objects_of(s3, folder, 0.3)))
        assert reopened.open(RUN)[1] is False, "a server that starts anew asks the store nothing"
        assert [plan_step(reopened.get("r"), step, head.log) for step in range(4)] == told
        with pytest.raises(DiskError, match="cannot be put"):
            run.commit(3)
    assert run.committed_step == 0
    assert len(head.plans(range(12))) == 12
    assert head.runs.open(replace(RUN, run_id="new"))[1] is True
    assert Head(tmp_path / "b", s3, folder).plans(range(12)) == head.plans(range(12))


def test_one_thread_at_a_time_waits_for_a_store_that_is_away(s3: UnsteadyS3, folder: str) -> None:
    archive = RunArchive(objects_of(s3, folder, timeout_s=0.6))
    with s3.being("hanging"):
        with pytest.raises(DiskError, match="cannot be put"):
            archive.open(RUN)
        s3.asked.clear()
        with ThreadPoolExecutor(8) as threads:
            waits = [threads.submit(archive.open, RUN) for _ in range(8)]
            texts = [str(wait.exception()) for wait in waits]
        assert sum("is being tried again" in text for text in texts) == 7
        assert s3.puts("RUN.json") == 1
    assert archive.open(RUN) == RUN
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(archive.open, [RUN] * 8)) == {RUN}


def test_a_stride_whose_answer_is_lost_counts(s3: UnsteadyS3, folder: str, tmp_path: Path) -> None:
    head = Head(tmp_path / "a", s3, folder)
    seal_next(head.writer)
    s3.lose_answer_to = "/plan/"
    try:
        told = head.plans(range(4))
    except DiskError:
        told = head.plans(range(4))
    assert s3.lose_answer_to is None
    seal_next(head.writer)
    assert Head(tmp_path / "b", s3, folder).plans(range(4)) == told


def test_runs_that_had_no_archive_are_taken_into_one(
    s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    log, _ = make_log(tmp_path / "a", 2)
    plain = RunStore(tmp_path / "a", STRIDE).open(RUN)[0]
    told = [plan_step(plain, step, log) for step in range(20)]
    plain.commit(9)
    Head(tmp_path / "a", s3, folder)
    other = Head(tmp_path / "b", s3, folder)
    assert other.plans(range(20)) == told
    assert other.run().committed_step == 9


def test_a_run_that_has_gone_another_way_is_left_out_and_named(
    s3: UnsteadyS3, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = Head(tmp_path / "a", s3, folder)
    seal_next(head.writer)
    head.plans(range(4))
    shutil.copytree(tmp_path / "a", tmp_path / "off")
    log = RoundLog(tmp_path / "off")
    off = RunStore(tmp_path / "off", 2).open(RUN)[0]  # its archive was switched off
    plan_step(off, 7, log)
    head.plans(range(12))
    refused = Head(tmp_path / "off", s3, folder)
    assert list(check_run(tmp_path / "off" / "runs" / "r", refused.log)) != []
    for runs in (refused.runs, RunStore(tmp_path / "off", STRIDE)):
        with pytest.raises(DamagedRunError, match="have gone different ways"):
            runs.open(RUN)
    assert "run r cannot be restored and is left out" in caplog.text
    shutil.rmtree(tmp_path / "off" / "runs" / "r")
    again = Head(tmp_path / "off", s3, folder)
    restore_log(tmp_path / "off", again.archive)
    assert again.plans(range(12)) == head.plans(range(12))


@pytest.mark.parametrize("part", ["RUN.json", "plan/000000000004.json", "COMMITTED"])
def test_a_run_that_is_damaged_in_the_archive_is_left_out_and_named(
    s3: UnsteadyS3,
    folder: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    part: str,
) -> None:
    head = Head(tmp_path / "a", s3, folder)
    seal_next(head.writer)
    head.plans(range(12))
    head.run().commit(5)
    head.runs.open(replace(RUN, run_id="sound"))
    objects = head.archive.objects
    content = objects.get(f"runs/r/{part}")
    assert content is not None
    objects.put(f"runs/r/{part}", content[:-9] + b"x" + content[-8:])
    new = Head(tmp_path / "b", s3, folder)
    for _ in range(2):
        with pytest.raises(DamagedRunError, match=f"runs/r/{part} is missing or damaged"):
            new.run()
    assert [run.parameters.run_id for run in new.runs.all()] == ["sound"]
    assert f"runs/r/{part} is missing or damaged" in caplog.text
    if part.startswith("plan"):
        objects.remove([f"runs/r/{part}"])
        with pytest.raises(DamagedRunError, match="step 4 is missing there"):
            Head(tmp_path / "c", s3, folder).run()
    objects.put(f"runs/r/{part}", content)
    assert Head(tmp_path / "b", s3, folder).plans(range(12)) == head.plans(range(12))
