"""When a refresh is due."""

import pytest

from miner.app.accepted import AcceptedWeights
from miner.app.schedule import RefreshSchedule, Work
from miner.config import RefreshConfig


def weights(step: int) -> AcceptedWeights:
    return AcceptedWeights(step, f"/w/{step}", f"{step:064x}")


def schedule(**settings: object) -> RefreshSchedule:
    config = RefreshConfig.model_validate({"warmup_steps": 100} | settings)
    return RefreshSchedule(config, mined_sha256="", started_s=0.0)


def test_new_weights_are_mined_once() -> None:
    plan, work = schedule(), Work(weights(100))
    assert plan.due(1.0, work) == "new weights of step 100"
    plan.started(1.0, work)
    assert plan.due(2.0, work) is None
    assert plan.due(2.0, Work(weights(150))) == "new weights of step 150"


def test_weights_of_the_warm_up_are_not_mined() -> None:
    assert schedule().due(1.0, Work(weights(99))) is None


def test_weights_that_the_newest_round_was_mined_with_are_not_mined_again_after_a_restart() -> None:
    plan = RefreshSchedule(RefreshConfig(warmup_steps=0), weights(5).sha256, 0.0)
    assert plan.due(1.0, Work(weights(5))) is None
    assert plan.due(1.0, Work(weights(6))) is not None


def test_a_request_is_served_once_even_in_the_warm_up() -> None:
    plan, work = schedule(), Work(weights(3), request_id="a")
    assert plan.due(1.0, work) == "on request"
    plan.started(1.0, work)
    assert plan.due(2.0, work) is None
    assert plan.due(2.0, Work(weights(3), request_id="b")) == "on request"
    assert plan.due(2.0, Work(weights(3))) is None, "a restarted actor has forgotten the request"


def test_the_period_counts_from_the_start_of_the_last_refresh() -> None:
    plan, work = schedule(every_s=10.0), Work(weights(100))
    plan.started(5.0, work)
    assert plan.due(14.9, work) is None
    assert plan.due(15.0, work) == "every 10 s"


def test_the_stride_of_steps_counts_from_the_last_refresh() -> None:
    plan = schedule(every_steps=50)
    plan.started(0.0, Work(weights(100), planned_steps=100))
    assert plan.due(1.0, Work(weights(100), planned_steps=149)) is None
    assert plan.due(1.0, Work(weights(100), planned_steps=150)) == "every 50 steps"


@pytest.mark.parametrize("settings", [{}, {"every_s": 1.0}, {"every_steps": 1}])
def test_nothing_is_due_without_weights(settings: dict[str, object]) -> None:
    assert schedule(**settings).due(1e9, Work(planned_steps=10**9)) is None


def test_new_weights_can_be_left_to_the_period() -> None:
    assert schedule(on_new_weights=False).due(1.0, Work(weights(500))) is None
