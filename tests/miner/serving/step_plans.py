"""Planned steps one by one, as tests compare them."""

from typing import NamedTuple

from miner.rounds import RoundLog
from miner.serving.plan import PlannedSteps, Waiting
from miner.serving.runs import Run


class StepPlan(NamedTuple):
    """The global batch of one step: ``order_of(...)[begin:end]`` of the round's groups."""

    step: int
    round_id: int
    round_sha256: str
    model_step: int
    staleness_steps: int
    over_stale: bool
    seed: int
    pass_number: int
    begin: int
    end: int


def step_plans(steps: PlannedSteps) -> list[StepPlan]:
    return [
        StepPlan(
            step=steps.first_step + number,
            round_id=steps.round.round_id,
            round_sha256=steps.round.sha256,
            model_step=steps.round.model_step,
            staleness_steps=int(steps.staleness_B[number]),
            over_stale=bool(steps.over_stale_B[number]),
            seed=steps.run.seed,
            pass_number=pass_number,
            begin=begin,
            end=end,
        )
        for number, (pass_number, begin, end) in enumerate(steps.batches_B3.tolist())
    ]


def plan_step(run: Run, step: int, log: RoundLog) -> StepPlan | Waiting:
    steps = run.plan_some(step, 1, log)
    return steps if isinstance(steps, Waiting) else step_plans(steps)[0]
