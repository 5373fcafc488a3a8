"""The whole loop: miner on Ray, two ranks under torchrun, a real socket, real kills."""

import random
import subprocess
import time
from typing import Any

import numpy as np
import pytest

from miner.data import RowStore
from miner.rounds import RoundLog
from tests.integration.loop import Loop, is_gone, wait_until
from trainer.feed import MinerClient, TripletFeed

STEPS = 60
pytestmark = pytest.mark.timeout(300)


def finish(trainer: subprocess.Popen[bytes], loop: Loop, name: str) -> None:
    code = trainer.wait(timeout=150)
    assert code == 0, loop.log_of(name).read_text()[-3000:]


def last_step(loop: Loop, rank: int = 0) -> int:
    steps = loop.journal(rank)
    return steps[-1]["step"] if steps else -1


def digests_of_plan(loop: Loop, rank: int) -> dict[int, str]:
    """An unbroken read of the run by a client that has nothing to do with the trainer."""
    with TripletFeed(
        loop.address,
        run_id="run",
        batch_rows=64,
        exhausted="wait",
        rank=rank,
        world_size=2,
        num_steps=STEPS,
    ) as feed:
        return {batch.step: batch.digest() for batch in feed}


def trained(journal: list[dict[str, Any]]) -> dict[int, str]:
    return {event["step"]: event["digest"] for event in journal}


def assert_rounds_are_sound(loop: Loop) -> None:
    """P7 on everything that was sealed, by nested loops."""
    log = RoundLog(loop.state_dir)
    assert log.verify() == []
    identity = RowStore.open(loop.state_dir / "store").catalog.identities.identity_ids_N
    for round_id in log.sealed_ids():
        groups = log.read(round_id)
        for g in range(groups.num_groups):
            one = groups.take(np.array([g]))
            assert len(set(one.row_ids_R.tolist())) == one.num_rows
            for a, p, n in zip(one.anchors_T, one.positives_T, one.negatives_T, strict=True):
                row_a, row_p, row_n = (int(one.row_ids_R[i]) for i in (a, p, n))
                assert identity[row_a] == identity[row_p] != identity[row_n]
                assert row_a != row_p


def test_two_ranks_train_on_rounds_that_follow_their_own_weights(loop: Loop) -> None:
    with loop.miner():
        with loop.torchrun("trainer") as trainer:
            finish(trainer, loop, "trainer")
        with MinerClient(loop.address) as client:
            wait_until(lambda: client.status().refresh.num_sealed >= 3, "third mined round")
            status = client.status()
        journals = [loop.journal(rank) for rank in (0, 1)]
        for rank, journal in enumerate(journals):
            assert [event["step"] for event in journal] == list(range(STEPS))
            assert trained(journal) == digests_of_plan(loop, rank)
    rounds = [[event["round_id"] for event in journal] for journal in journals]
    assert rounds[0] == rounds[1], "both ranks see the same round at the same step"
    assert rounds[0] == sorted(rounds[0])
    strategies = [event["strategy"] for event in journals[0]]
    assert strategies[:6] == ["random"] * 6, "the warm-up is random"
    assert strategies[12:] == ["rank_window"] * (STEPS - 12), "a used-up round is not repeated"
    assert status.refresh.num_failed == 0
    assert_rounds_are_sound(loop)


@pytest.mark.long
def test_a_trainer_killed_at_a_random_step_goes_on_with_the_very_same_batches(loop: Loop) -> None:
    seed = time.time_ns()
    kill_at = random.Random(seed).randrange(15, STEPS - 10)
    print(f"kill at step {kill_at} (seed {seed})")
    with loop.miner():
        with loop.torchrun("first") as trainer:
            wait_until(lambda: last_step(loop) >= kill_at, f"step {kill_at}")
            ranks = loop.rank_pids()
            trainer.kill_all()
        assert len(ranks) == 2
        assert all(is_gone(pid) for pid in ranks), "the ranks are dead, too"
        before = [loop.journal(rank) for rank in (0, 1)]
        time.sleep(1.0)
        assert [loop.journal(rank) for rank in (0, 1)] == before
        assert last_step(loop) < STEPS - 1, "killed in the middle"
        with loop.torchrun("second") as trainer:
            finish(trainer, loop, "second")
        for rank in (0, 1):
            unbroken = digests_of_plan(loop, rank)
            again = loop.journal(rank)[len(before[rank]) :]
            assert 10 <= again[0]["step"] <= before[rank][-1]["step"] + 1, "it resumed"
            assert len(again) >= 10, "and trained the rest"
            assert [event["step"] for event in again] == list(range(again[0]["step"], STEPS))
            assert trained(again) == {s: d for s, d in unbroken.items() if s >= again[0]["step"]}
            assert trained(before[rank]).items() <= unbroken.items()


@pytest.mark.long
def test_the_serving_actor_killed_mid_stream_is_not_noticed_by_the_trainer(loop: Loop) -> None:
    with loop.miner():
        with loop.torchrun("trainer") as trainer:
            for step in (12, 35):
                wait_until(lambda step=step: last_step(loop) >= step, f"step {step}")
                loop.kill_serving_actor()
            finish(trainer, loop, "trainer")
        for rank in (0, 1):
            journal = loop.journal(rank)
            assert [event["step"] for event in journal] == list(range(STEPS))
            assert trained(journal) == digests_of_plan(loop, rank)
    assert_rounds_are_sound(loop)


@pytest.mark.long
def test_the_whole_miner_killed_and_started_again_costs_only_time(loop: Loop) -> None:
    with loop.miner("first"), loop.torchrun("trainer") as trainer:
        wait_until(lambda: last_step(loop) >= 20, "step 20")
        rounds_before = RoundLog(loop.state_dir).sealed_ids()
        killed = loop.kill_miner()
        assert len(killed) > 3, "a driver, Ray's services and the actors"
        assert all(is_gone(pid) for pid in killed), "nothing of the first miner is left"
        with loop.miner("second"):
            finish(trainer, loop, "trainer")
            for rank in (0, 1):
                journal = loop.journal(rank)
                assert [event["step"] for event in journal] == list(range(STEPS))
                assert trained(journal) == digests_of_plan(loop, rank)
    assert RoundLog(loop.state_dir).sealed_ids()[: len(rounds_before)] == rounds_before
    assert_rounds_are_sound(loop)
