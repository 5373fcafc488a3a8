"""P2, P3, P4: what a run was told about a step stays so, whatever happens in between."""

import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import (
    DamagedRoundError,
    DiskError,
    RoundLogError,
    RunConflictError,
    StepRangeError,
    UnknownRunError,
)
from miner.rounds import RoundLog, RoundWriter
from miner.serving.plan import RunParameters, Waiting
from miner.serving.runs import Run, RunStore
from tests.miner.rounds.killing import kill_everywhere
from tests.miner.rounds.round_samples import make_draft, make_groups, make_log
from tests.miner.serving.step_plans import StepPlan, plan_step

RUN = RunParameters("r", batch_rows=16, seed=1)


def open_run(root: Path, stride_steps: int = 4, **changes: Any) -> Run:
    return RunStore(root, stride_steps).open(RunParameters(**{**asdict(RUN), **changes}))[0]


def plan_file(root: Path) -> Path:
    return root / "runs" / "r" / "plan.jsonl"


def planned(run: Run, log: RoundLog, steps: int) -> list[StepPlan | Waiting]:
    return [plan_step(run, step, log) for step in range(steps)]


ACTIONS = st.one_of(
    st.integers(0, 40),  # ask for a step
    st.sampled_from(["seal", "reload", "killed while planning"]),
)


@settings(max_examples=20, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=3, max_size=14), unfinished=st.integers(1, 100))
def test_a_step_that_was_planned_keeps_its_plan_for_ever(
    actions: list[int | str], unfinished: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        log, writer = make_log(root, num_rounds=1)
        run = open_run(root)
        told: dict[int, StepPlan] = {}
        for action in [*actions, "reload", *range(40)]:
            if action == "seal":
                writer.seal(make_groups(7, seed=writer.next_round_id), make_draft())
            elif action == "killed while planning":
                record = b"0123456789abcdef " + b'{"first_step":0,"batches":[[0,0,3]],"x":0}' * 3
                with plan_file(root).open("ab") as file:
                    file.write(record[:unfinished])
                run, log = open_run(root), RoundLog(root)
            elif action == "reload":
                run, log = open_run(root), RoundLog(root)
            else:
                plan = plan_step(run, action, log)
                assert isinstance(plan, StepPlan)
                assert told.setdefault(action, plan) == plan
                assert run.planned_steps % 4 == 0
        for step in range(1, 40):
            before, after = told[step - 1], told[step]
            if after.round_id == before.round_id:
                assert after.begin in (before.end, 0)
            else:
                assert (step % 4, after.round_id > before.round_id) == (0, True)
                assert (after.begin, after.pass_number) == (0, 0)


def test_all_ranks_see_the_same_plan_though_they_ask_at_the_same_time(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=1)
    stores = [RunStore(tmp_path, 4) for _ in range(2)]  # two processes, as it were
    runs = [store.open(RUN)[0] for store in stores]
    seen: list[list[StepPlan | Waiting]] = [[] for _ in range(6)]
    ranks = [
        Thread(target=lambda r=r: seen[r].extend(planned(runs[r % 2], log, 24))) for r in range(6)
    ]
    for rank in ranks:
        rank.start()
    for seed in (2, 3):
        writer.seal(make_groups(10, seed=seed), make_draft())
    for rank in ranks:
        rank.join()
    assert len(seen[0]) == 24
    assert all(plans == seen[0] for plans in seen)
    assert planned(open_run(tmp_path), log, 24) == seen[0]


def test_two_services_on_one_folder_take_turns_at_one_plan(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=1)
    runs = [open_run(tmp_path) for _ in range(2)]
    told = []
    for stride in range(6):
        told += [plan_step(runs[stride % 2], 4 * stride + i, log) for i in range(4)]
        writer.seal(make_groups(10, seed=stride), make_draft())
    assert [plan.round_id for plan in told if isinstance(plan, StepPlan)][::4] == [1, 2, 3, 4, 5, 6]
    assert [planned(run, log, 24) for run in runs] == [told, told]


def test_a_plan_is_on_the_disk_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    run = open_run(tmp_path)
    synced: list[bytes] = []

    def fsync(descriptor: int) -> None:
        synced.append(os.pread(descriptor, 10_000, 0))

    monkeypatch.setattr(os, "fsync", fsync)
    assert isinstance(plan_step(run, 0, log), StepPlan)
    assert synced == [plan_file(tmp_path).read_bytes()] != [b""]


def test_a_plan_that_the_disk_refuses_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, writer = make_log(tmp_path, num_rounds=1)
    run = open_run(tmp_path)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RoundLogError, match="No space left on device"):
        plan_step(run, 0, log)
    monkeypatch.undo()
    assert run.planned_steps == 0
    writer.seal(make_groups(9, seed=2), make_draft())
    plan = plan_step(run, 0, log)
    assert isinstance(plan, StepPlan)
    assert plan.round_id == 2
    assert plan_step(open_run(tmp_path), 0, log) == plan


def test_a_kill_at_every_step_of_planning_changes_nothing_that_was_told(tmp_path: Path) -> None:
    make_log(tmp_path / "state", num_rounds=1)
    open_run(tmp_path / "state")
    told = set()
    for remains in kill_everywhere("plan", tmp_path / "state", tmp_path / "work"):
        log = RoundLog(remains.root)
        # Whatever is planned anew goes to round 2, so a plan that was lost cannot look the same.
        RoundWriter.open(log).seal(make_groups(9, seed=2), make_draft())
        run = open_run(remains.root)
        plans = [plan for plan in planned(run, log, 12) if isinstance(plan, StepPlan)]
        assert [plan._asdict() for plan in plans[: len(remains.answers)]] == remains.answers
        assert [plan.round_id for plan in plans] == sorted(plan.round_id for plan in plans)
        told.add(len(remains.answers))
    assert told == {0, 4, 8, 10}


def test_a_kill_at_every_step_of_opening_leaves_a_whole_run_or_none(tmp_path: Path) -> None:
    make_log(tmp_path / "state", num_rounds=1)
    outcomes = set()
    for remains in kill_everywhere("open_run", tmp_path / "state", tmp_path / "work"):
        store = RunStore(remains.root, 4)
        run, created = store.open(RunParameters("r", batch_rows=16))
        assert not (created and remains.answers)
        assert isinstance(plan_step(run, 0, RoundLog(remains.root)), StepPlan)
        assert sorted(path.name for path in (remains.root / "runs").iterdir()) == [".LOCK", "r"]
        outcomes.add(created)
    assert outcomes == {True, False}


def test_a_kill_at_every_step_of_a_commit_leaves_the_old_step_or_the_new(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path / "state", num_rounds=1)
    plan_step(open_run(tmp_path / "state"), 3, log)
    for remains in kill_everywhere("commit", tmp_path / "state", tmp_path / "work"):
        told = max(remains.answers, default=0)
        assert told <= open_run(remains.root).committed_step <= (3 if told else 2)


def test_nothing_is_planned_before_the_first_round(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=0)
    run = open_run(tmp_path)
    assert plan_step(run, 0, log) == Waiting("no round has been sealed yet")
    writer.seal(make_groups(9), make_draft())
    assert isinstance(plan_step(run, 0, log), StepPlan)


def test_a_used_up_round_waits_for_the_next_and_goes_on_without_a_gap(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=1, num_groups=3)
    run = open_run(tmp_path, exhausted="wait")
    steps = [plan_step(run, step, log) for step in range(3)]
    end = next(i for i, step in enumerate(steps) if isinstance(step, Waiting))
    assert run.planned_steps == end
    writer.seal(make_groups(5, seed=2), make_draft())
    after = plan_step(run, end, log)
    assert isinstance(after, StepPlan)
    assert (after.round_id, after.begin) == (2, 0)
    assert [plan_step(run, step, log) for step in range(end)] == steps[:end]


def test_strides_in_between_are_planned_up_to_a_bound(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    run = open_run(tmp_path)
    with pytest.raises(StepRangeError, match=r"step 256 .* steps 0 to 255 can be asked for"):
        plan_step(run, 256, log)
    with pytest.raises(StepRangeError, match="step -1"):
        plan_step(run, -1, log)
    assert run.planned_steps == 0
    far = plan_step(run, 255, log)
    assert isinstance(far, StepPlan)
    assert (far.step, run.planned_steps) == (255, 256)
    assert plan_step(open_run(tmp_path), 255, log) == far


def test_another_stride_length_changes_only_what_is_not_planned_yet(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    before = planned(open_run(tmp_path, stride_steps=4), log, 8)
    run = open_run(tmp_path, stride_steps=3)
    assert planned(run, log, 8) == before
    plan_step(run, 8, log)
    assert run.planned_steps == 11


def test_damage_inside_a_plan_is_an_error_and_names_the_file(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    run = open_run(tmp_path)
    plan_step(run, 11, log)
    content = bytearray(plan_file(tmp_path).read_bytes())
    content[60] ^= 1
    plan_file(tmp_path).write_bytes(content)
    with pytest.raises(RoundLogError, match=r"plan\.jsonl: the record at byte 0"):
        open_run(tmp_path)
    with pytest.raises(RoundLogError, match=r"plan\.jsonl: the record at byte 0"):
        plan_step(run, 0, log)


def test_a_lost_record_in_the_middle_is_an_error(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    plan_step(open_run(tmp_path), 11, log)
    first, _, third = plan_file(tmp_path).read_bytes().splitlines(keepends=True)
    plan_file(tmp_path).write_bytes(first + third)
    with pytest.raises(RoundLogError, match="starts at step 8, not at 4"):
        open_run(tmp_path)


def test_a_log_that_was_replaced_under_a_run_is_noticed(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path / "a", num_rounds=2)
    other, writer = make_log(tmp_path / "b", num_rounds=1)
    run = open_run(tmp_path)
    plan_step(run, 0, log)
    with pytest.raises(DamagedRoundError, match=r"planned on round 2 .* newest is round 1"):
        plan_step(run, 4, other)
    writer.seal(make_groups(10, seed=2), make_draft())
    with pytest.raises(DamagedRoundError, match="rounds were lost or replaced"):
        plan_step(run, 4, other)


def test_opening_again_finds_the_run_and_names_every_other_value(tmp_path: Path) -> None:
    store = RunStore(tmp_path, 4)
    run, created = store.open(RUN)
    assert created
    assert store.open(RUN) == (run, False)
    assert RunStore(tmp_path, 4).open(RUN)[1] is False
    with pytest.raises(
        RunConflictError, match=r"batch_rows=17 \(16\), stale='wait' \('serve'\); repeat"
    ):
        open_run(tmp_path, batch_rows=17, stale="wait")


def test_an_unknown_run_is_told_and_no_path_leads_out_of_the_store(tmp_path: Path) -> None:
    store = RunStore(tmp_path, 4)
    for run_id in ("nobody", "..", "../runs", ""):
        with pytest.raises(UnknownRunError, match="open it first"):
            store.get(run_id)
    assert store.all() == []


def test_commits_never_move_backwards_and_survive(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    run = open_run(tmp_path)
    assert run.committed_step == 0
    plan_step(run, 7, log)
    assert [run.commit(step) for step in (5, 3, 8, 0)] == [5, 5, 8, 8]
    assert open_run(tmp_path).committed_step == 8
    for step in (9, -1):
        with pytest.raises(StepRangeError, match=r"cannot be committed: steps 0 to 8 can"):
            run.commit(step)


def test_rounds_from_the_committed_step_on_are_needed_and_retention_keeps_them(
    tmp_path: Path,
) -> None:
    log, writer = make_log(tmp_path, num_rounds=1)
    store = RunStore(tmp_path, 4)
    run, _ = store.open(RUN)
    assert store.needed_rounds(idle_run_s=60) == set()
    for stride in range(4):  # round i feeds steps 4 (i - 1) to 4 i - 1
        plan_step(run, 4 * stride, log)
        writer.seal(make_groups(6, seed=stride), make_draft())
    assert store.needed_rounds(idle_run_s=60) == {1, 2, 3, 4}
    run.commit(7)
    assert store.needed_rounds(idle_run_s=60) == {2, 3, 4}
    run.commit(8)
    assert writer.retain(2, store.needed_rounds(idle_run_s=60)) == [1, 2]
    assert log.sealed_ids() == [3, 4, 5]
    assert isinstance(plan_step(run, 8, log), StepPlan)
    run.commit(16)
    assert store.needed_rounds(idle_run_s=60) == {4}, "the plan goes on from there"


def test_a_run_that_is_idle_for_long_holds_nothing_back(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    store = RunStore(tmp_path, 4)
    plan_step(store.open(RUN)[0], 0, log)
    yesterday = time.time() - 86400
    for path in (tmp_path / "runs" / "r").iterdir():
        os.utime(path, (yesterday, yesterday))
    assert store.needed_rounds(idle_run_s=2 * 86400) == {1}
    assert store.needed_rounds(idle_run_s=3600) == set()


def test_damaged_parameters_are_named(tmp_path: Path) -> None:
    open_run(tmp_path)
    (tmp_path / "runs" / "r" / "RUN.json").write_text("{}")
    with pytest.raises(RoundLogError, match=r"RUN\.json cannot be read"):
        RunStore(tmp_path, 4).get("r")


def test_a_damaged_run_is_left_out_but_keeps_every_round_from_being_removed(tmp_path: Path) -> None:
    open_run(tmp_path, run_id="sound")
    open_run(tmp_path, run_id="damaged")
    (tmp_path / "runs" / "damaged" / "RUN.json").write_text("{")
    store = RunStore(tmp_path, 4)
    assert [run.parameters.run_id for run in store.all()] == ["sound"]
    with pytest.raises(RoundLogError, match="damaged"):
        store.needed_rounds(idle_run_s=1e9)


def test_a_disk_that_refuses_to_read_is_no_damage(tmp_path: Path) -> None:
    """Folders where files are wanted: reading them fails, and works again later."""
    log, _ = make_log(tmp_path, num_rounds=1)
    run, store = open_run(tmp_path), RunStore(tmp_path, 4)
    plan_step(run, 7, log)
    committed = tmp_path / "runs" / "r" / "COMMITTED"
    committed.mkdir()
    with pytest.raises(DiskError, match="COMMITTED cannot be read"):
        assert run.committed_step
    committed.rmdir()
    assert run.committed_step == 0
    again = open_run(tmp_path)
    kept = plan_file(tmp_path).rename(tmp_path / "kept")
    plan_file(tmp_path).mkdir()
    with pytest.raises(DiskError, match=r"plan\.jsonl cannot be read"):
        plan_step(again, 2, log)
    plan_file(tmp_path).rmdir()
    kept.rename(plan_file(tmp_path))
    assert plan_step(again, 2, log) == plan_step(run, 2, log)
    folder = (tmp_path / "runs").rename(tmp_path / "elsewhere")
    (tmp_path / "runs").touch()
    with pytest.raises(DiskError, match="cannot be listed"):
        store.all()
    (tmp_path / "runs").unlink()
    folder.rename(tmp_path / "runs")
    assert len(store.all()) == 1


def test_a_clock_that_is_set_forward_makes_no_run_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    store = RunStore(tmp_path, 4)
    run = store.open(RUN)[0]
    plan_step(run, 0, log)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10**6)
    assert run.idle_s() < 60
    assert store.needed_rounds(idle_run_s=3600) == {1}
    for path in (tmp_path / "runs" / "r").iterdir():
        os.utime(path, (real() - 7200, real() - 7200))
    assert 7000 < run.idle_s() < 7400
    assert store.needed_rounds(idle_run_s=3600) == set()
