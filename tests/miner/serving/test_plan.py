"""The plan of a run as a pure function: batches, passes, boundaries and policies."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import RequestError, RunConflictError
from miner.serving.plan import (
    RoundInfo,
    RunParameters,
    Stride,
    Waiting,
    next_stride,
    order_of,
)
from tests.miner.rounds.round_samples import make_groups
from tests.miner.serving.step_plans import StepPlan, step_plans


def make_run(**changes: Any) -> RunParameters:
    return RunParameters(**{"run_id": "r", "batch_rows": 20, "seed": 5, **changes})


def make_round(round_id: int = 1, num_groups: int = 11, **changes: Any) -> RoundInfo:
    values = {
        "round_id": round_id,
        "sha256": f"{round_id:064x}",
        "model_step": 0,
        "fresh_from": 0,
        "groups": make_groups(num_groups, seed=round_id),
    }
    return RoundInfo(**{**values, **changes})


def plan_strides(
    run: RunParameters, rounds: list[RoundInfo], stride_steps: int
) -> list[Stride | Waiting]:
    """One stride for each entry of ``rounds``, the newest at that time."""
    last, answers = None, []
    for newest in rounds:
        answer = next_stride(run, last, newest, stride_steps=stride_steps)
        last = answer if isinstance(answer, Stride) else last
        answers.append(answer)
    return answers


def only_strides(answers: list[Stride | Waiting]) -> list[Stride]:
    strides = [answer for answer in answers if isinstance(answer, Stride)]
    assert len(strides) == len(answers)
    return strides


def batches_of(run: RunParameters, info: RoundInfo, passes: int) -> list[tuple[int, int, int]]:
    """The oracle: one group after the other, the rest of a pass shared by its last two batches."""
    sizes = np.diff(info.groups.row_offsets_G1).tolist()
    expected = []
    for number in range(passes):
        order = order_of(len(sizes), run.seed, info.round_id, number).tolist()
        begins, rows = [0], 0
        for position, group in enumerate(order):
            if rows + sizes[group] > run.batch_rows:
                begins.append(position)
                rows = 0
            rows += sizes[group]
        if len(begins) > 1:
            first, latest = begins[-2], begins[-1]
            half = sum(sizes[group] for group in order[first:]) / 2
            middle, rows = first, 0
            while rows < half and middle < latest:
                rows += sizes[order[middle]]
                middle += 1
            begins[-1] = middle
        expected += [(number, a, b) for a, b in pairwise([*begins, len(order)])]
    return expected


@settings(max_examples=60, deadline=None)
@given(
    num_groups=st.integers(1, 30),
    batch_rows=st.integers(8, 60),
    stride_steps=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
)
def test_batches_are_as_a_walk_over_the_groups_makes_them(
    num_groups: int, batch_rows: int, stride_steps: int, seed: int
) -> None:
    run, info = make_run(batch_rows=batch_rows, seed=seed), make_round(num_groups=num_groups)
    expected = batches_of(run, info, passes=3)
    rounds = [info] * -(-len(expected) // stride_steps)
    strides = only_strides(plan_strides(run, rounds, stride_steps))
    planned = [batch for stride in strides for batch in stride.batches]
    assert planned[: len(expected)] == expected


@settings(max_examples=60, deadline=None)
@given(
    newest=st.lists(st.integers(1, 3), min_size=1, max_size=12).map(sorted),
    batch_rows=st.integers(8, 40),
    stride_steps=st.integers(1, 5),
)
def test_every_pass_consumes_every_group_once_and_rounds_change_at_boundaries(
    newest: list[int], batch_rows: int, stride_steps: int
) -> None:
    run = make_run(batch_rows=batch_rows)
    rounds = {i: make_round(i, num_groups=5 + i) for i in (1, 2, 3)}
    strides = only_strides(plan_strides(run, [rounds[i] for i in newest], stride_steps))
    assert [stride.round_id for stride in strides] == newest
    assert [stride.first_step for stride in strides] == [
        stride_steps * n for n in range(len(newest))
    ]
    for round_id in set(newest):
        sizes = np.diff(rounds[round_id].groups.row_offsets_G1)
        batches = [b for s in strides if s.round_id == round_id for b in s.batches]
        position = (0, 0)
        for number, begin, end in batches:
            if position[1] == len(sizes):
                position = (position[0] + 1, 0)
            assert (number, begin) == position, "no group twice, none left out"
            order = order_of(len(sizes), run.seed, round_id, number)
            assert sorted(order.tolist()) == list(range(len(sizes)))
            assert begin < end
            assert sizes[order[begin:end]].sum() <= batch_rows
            position = (number, end)


def test_the_last_batch_of_a_pass_is_no_lone_group() -> None:
    groups = make_groups(9, rows=(4, 4))
    stride = next_stride(make_run(batch_rows=16), None, make_round(groups=groups), stride_steps=3)
    assert isinstance(stride, Stride)
    assert stride.batches == ((0, 0, 4), (0, 4, 7), (0, 7, 9))  # not 4, 4 and 1


def test_passes_rounds_and_seeds_have_their_own_orders() -> None:
    orders = {
        tuple(order_of(40, *key).tolist()) for key in [(1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0)]
    }
    assert len(orders) == 4


def test_an_exhausted_round_repeats_in_a_new_order_or_waits() -> None:
    info = make_round()
    repeat = next_stride(make_run(), None, info, stride_steps=8)
    assert isinstance(repeat, Stride)
    assert {number for number, _, _ in repeat.batches} == {0, 1}

    run = make_run(exhausted="wait")
    short, waiting, fresh = plan_strides(run, [info, info, make_round(2)], 8)
    assert isinstance(short, Stride)
    assert 0 < len(short.batches) < 8
    assert short.batches[-1][2] == 11
    assert isinstance(waiting, Waiting)
    assert "all 11 groups of round 1 are used up" in waiting.reason
    assert isinstance(fresh, Stride)
    assert (fresh.first_step, fresh.batches[0][:2]) == (short.end_step, (0, 0))


def planned(stride: Stride, run: RunParameters, step: int) -> StepPlan:
    return step_plans(stride.planned(run))[step - stride.first_step]


def test_staleness_is_counted_from_the_rounds_weights_and_marked_above_the_bound() -> None:
    run = make_run(max_staleness_steps=2)
    stride = next_stride(run, None, make_round(model_step=3, fresh_from=3), stride_steps=8)
    assert isinstance(stride, Stride)
    steps = [planned(stride, run, step) for step in range(8)]
    assert [step.staleness_steps for step in steps] == [0, 0, 0, 0, 1, 2, 3, 4]
    assert [step.over_stale for step in steps] == [False] * 6 + [True] * 2


def test_no_step_above_the_bound_is_planned_when_stale_means_wait() -> None:
    run = make_run(stale="wait", max_staleness_steps=2)
    old, fresh = make_round(model_step=3, fresh_from=3), make_round(2, model_step=5, fresh_from=5)
    first, waiting, later = plan_strides(run, [old, old, fresh], 8)
    assert isinstance(first, Stride)
    assert first.end_step == 6  # step 5 is 2 steps stale, step 6 would be 3
    assert isinstance(waiting, Waiting)
    assert "step 6 would be 3 steps stale, the bound is 2" in waiting.reason
    assert isinstance(later, Stride)
    assert (later.first_step, later.end_step, later.round_id) == (6, 8, 2)


def test_a_random_round_counts_as_fresh_up_to_the_end_of_the_warm_up() -> None:
    run = make_run(stale="wait", max_staleness_steps=2)
    random, mined = make_round(fresh_from=4), make_round(2, model_step=5, fresh_from=5)
    first, waiting, later = plan_strides(run, [random, random, mined], 16)
    assert isinstance(first, Stride)
    assert first.end_step == 7, "step 6 is 2 steps past the warm-up, step 7 would be 3"
    assert not planned(first, run, 6).over_stale
    assert isinstance(waiting, Waiting)
    assert "step 7 would be 3 steps stale" in waiting.reason
    assert isinstance(later, Stride)
    assert (later.first_step, later.round_id) == (7, 2)


def test_rounds_that_were_asked_to_be_random_do_not_get_stale() -> None:
    run = make_run(stale="wait", max_staleness_steps=2)
    stride = next_stride(run, None, make_round(fresh_from=None), stride_steps=8)
    assert isinstance(stride, Stride)
    assert stride.end_step == 8
    assert not planned(stride, run, 7).over_stale
    assert planned(stride, run, 7).staleness_steps == 7


def test_a_bound_of_zero_is_no_bound() -> None:
    run = make_run(stale="wait")
    stride = next_stride(run, None, make_round(), stride_steps=8)
    assert isinstance(stride, Stride)
    assert stride.end_step == 8
    assert not planned(stride, run, 7).over_stale


def test_a_group_larger_than_a_batch_is_a_conflict_that_names_both() -> None:
    groups = make_groups(4, rows=(9, 9))
    with pytest.raises(RunConflictError, match=r"batch_rows=8, but group 0 of round 1 has 9 rows"):
        next_stride(make_run(batch_rows=8), None, make_round(groups=groups), stride_steps=8)


def test_a_stride_survives_its_record() -> None:
    stride = next_stride(make_run(), None, make_round(), stride_steps=4)
    assert isinstance(stride, Stride)
    assert Stride.from_json(stride.to_json()) == stride


@pytest.mark.parametrize(
    "wrong",
    [
        {"run_id": run_id}
        for run_id in ("", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "ä", "a" * 129)
    ]
    + [
        {"batch_rows": 2},
        {"seed": -1},
        {"seed": 2**64},
        {"max_staleness_steps": -1},
    ],
)
def test_parameters_that_cannot_be_a_run_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(wrong))}: "):
        make_run(**wrong)


@pytest.mark.parametrize("run_id", ["a", "A-1_b.c", "_", "-", "a" * 128])
def test_any_other_run_id_is_good(run_id: str) -> None:
    assert make_run(run_id=run_id).run_id == run_id
