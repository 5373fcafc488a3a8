"""The feed against a real server: order, ranks, resume, flow control, and its comfort."""

import gc
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from miner.serving.plan import PlannedSteps
from tests.trainer.feed.served_miner import ServerThread, seal_round
from trainer.errors import (
    ConfigError,
    ProtocolError,
    RoundLostError,
    RunRefusedError,
    StepRangeError,
)
from trainer.feed import MinerClient, RunParameters, TripletBatch, TripletFeed


def feed_of(miner: ServerThread, **values: object) -> TripletFeed:
    defaults = {"run_id": "run-1", "batch_rows": 24, "patience_s": 10.0, "num_steps": 20}
    return TripletFeed(miner.address, **{**defaults, **values})  # type: ignore[arg-type]


def digests(feed: TripletFeed) -> list[str]:
    with feed:
        return [batch.digest() for batch in feed]


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "coalface-feed"]


def test_five_lines_in_a_loop(miner: ServerThread) -> None:
    rows = []
    for batch in feed_of(miner, num_steps=3):
        assert batch.samples is not None
        rows.append(batch.samples["image"].to_pylist())
    assert len(rows) == 3
    assert feed_threads() == []


def test_steps_come_in_order_each_once_within_the_batch_size(miner: ServerThread) -> None:
    with feed_of(miner, first_step=3, num_steps=50) as feed:
        batches = list(feed)
    assert [batch.step for batch in batches] == list(range(3, 53))
    assert all(3 <= batch.num_rows <= 24 for batch in batches)
    assert feed.position == 53


def test_samples_are_the_rows_of_the_dataset(miner: ServerThread) -> None:
    for batch in feed_of(miner):
        assert batch.samples is not None
        expected = [b"pixels of row %d " % row * 20 for row in batch.row_ids_R]
        assert batch.samples["image"].to_pylist() == expected


def test_without_payload_the_same_rows_come_without_samples(miner: ServerThread) -> None:
    full = list(feed_of(miner))
    bare = list(feed_of(miner, with_payload=False))
    assert all(batch.samples is None for batch in bare)
    for one, other in zip(full, bare, strict=True):
        np.testing.assert_array_equal(one.row_ids_R, other.row_ids_R)


@pytest.mark.parametrize("prefetch_steps", [1, 2, 3, 7, 64])
def test_read_ahead_does_not_change_what_is_read(miner: ServerThread, prefetch_steps: int) -> None:
    reference = digests(feed_of(miner))
    assert digests(feed_of(miner, prefetch_steps=prefetch_steps)) == reference


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_see_the_same_round_per_step_and_share_its_groups(
    miner: ServerThread, folder: Path, world_size: int
) -> None:
    """A round is sealed between the reads of two ranks: nobody changes over at another step."""
    values = {"run_id": "ranks", "batch_rows": 60, "num_steps": 30}
    shares: list[list[TripletBatch]] = []
    for rank in range(world_size):
        shares.append(list(feed_of(miner, rank=rank, world_size=world_size, **values)))
        seal_round(folder, 3 + rank)
    whole = list(feed_of(miner, **values))
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {part.round_id for part in parts} == {batch.round_id}
        assert sum(part.num_groups for part in parts) == batch.num_groups == batch.global_groups
        begins = np.cumsum([0, *[part.num_groups for part in parts]])[:-1]
        assert [part.first_group for part in parts] == begins.tolist()
        assert min(part.num_groups for part in parts) >= 1
        for name in ("row_ids_R", "identity_ids_R", "tiers_T"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_a_new_round_is_taken_up_at_a_stride_and_never_goes_back(
    miner: ServerThread, folder: Path
) -> None:
    rounds = []
    with feed_of(miner, num_steps=40) as feed:
        for batch in feed:
            rounds.append(batch.round_id)
            if batch.step == 4:
                seal_round(folder, 3)
    assert rounds == sorted(rounds)
    assert rounds[0] == 2
    changed = rounds.index(3)
    assert changed % 8 == 0
    assert changed <= 24


@pytest.mark.parametrize("world_sizes", [(1, 1), (2, 3), (3, 1)])
def test_resuming_at_a_position_goes_on_with_the_batches_of_an_unbroken_run(
    miner: ServerThread, world_sizes: tuple[int, int]
) -> None:
    before, after = world_sizes
    values = {"run_id": "resumed", "batch_rows": 60}
    with feed_of(miner, num_steps=None, world_size=before, **values) as feed:
        for _ in range(7):
            next(feed)
    assert feed.position == 7
    unbroken = digests(feed_of(miner, world_size=after, **values))
    rest = digests(feed_of(miner, world_size=after, first_step=7, num_steps=13, **values))
    assert rest == unbroken[7:]


def test_a_loop_that_was_left_can_be_entered_again_even_after_closing(
    miner: ServerThread,
) -> None:
    feed = feed_of(miner, num_steps=6)
    steps = []
    for leave_after in (1, 3, 5):
        for batch in feed:
            steps.append(batch.step)
            if batch.step == leave_after:
                break
        feed.close()
    assert steps == list(range(6))


def test_an_idle_consumer_bounds_the_plan(miner: ServerThread) -> None:
    """What is planned is what fits the buffer, rounded up to the miner's stride of 8."""
    with feed_of(miner, num_steps=None, prefetch_steps=4) as feed:
        next(feed)
        time.sleep(1.0)
        assert miner.runs.get("run-1").planned_steps == 8
        for _ in range(9):
            next(feed)
        time.sleep(0.5)
        assert miner.runs.get("run-1").planned_steps == 16


def test_a_run_that_starts_late_is_not_planned_ahead_either(miner: ServerThread) -> None:
    with feed_of(miner, num_steps=None, first_step=100) as feed:
        next(feed)
        time.sleep(0.5)
        assert 104 <= miner.runs.get("run-1").planned_steps <= 100 + 8 + 8


def test_waiting_is_counted_and_ends_with_the_round(folder: Path) -> None:
    miner = ServerThread(folder)
    with feed_of(miner, exhausted="wait", num_steps=None, idle_s=0.5) as feed:
        groups = 0
        while groups < 60:
            groups += next(feed).num_groups
        threading.Timer(1.5, seal_round, (folder, 3)).start()
        before_s = feed.stalled_s
        assert next(feed).round_id == 3  # after three requests that brought only heartbeats
        assert feed.stalled_s - before_s > 1.0
    miner.stop()


def test_heartbeats_keep_the_patience(folder: Path) -> None:
    miner = ServerThread(folder)
    with feed_of(miner, exhausted="wait", num_steps=None, patience_s=0.6, idle_s=0.3) as feed:
        groups = 0
        while groups < 60:
            groups += next(feed).num_groups
        threading.Timer(2.0, seal_round, (folder, 3)).start()
        assert next(feed).round_id == 3
    miner.stop()


def test_staleness_above_the_bound_is_marked_or_waited_for(
    miner: ServerThread, folder: Path
) -> None:
    seal_round(folder, 3, model_step=2)
    batches = list(feed_of(miner, max_staleness_steps=5, num_steps=12))
    assert [batch.staleness_steps for batch in batches] == [max(0, s - 2) for s in range(12)]
    assert [batch.over_stale for batch in batches] == [step > 7 for step in range(12)]
    waits = feed_of(miner, run_id="w", stale="wait", max_staleness_steps=5, num_steps=8)
    assert not any(batch.over_stale for batch in waits)


def test_a_miner_that_breaks_the_bound_is_caught_where_the_batch_is_consumed(
    folder: Path, miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_round(folder, 3, model_step=2)
    monkeypatch.setattr("miner.serving.plan._steps_before_stale", lambda *_: None)
    feed = feed_of(miner, stale="wait", max_staleness_steps=5)
    with pytest.raises(ProtocolError, match="step 8: the batch is 6 steps stale, the bound is 5"):
        list(feed)
    assert (feed.position, feed.is_open) == (8, False)


def test_staleness_that_does_not_fit_the_round_is_a_protocol_error(
    miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlannedSteps, "staleness_B", property(lambda self: self.steps_B + 1))
    with pytest.raises(ProtocolError, match="the miner says 1 steps of staleness"):
        list(feed_of(miner))


def test_losses_are_reported_at_the_position(miner: ServerThread) -> None:
    with feed_of(miner, num_steps=3) as feed:
        next(feed)
        assert feed.report_difficulty(np.array([5], np.int32), np.array([2.0], np.float32)) == 1
    quick = feed_of(miner, patience_s=0.2)
    miner.stop()
    assert quick.report_difficulty(np.array([5], np.int32), np.array([2.0], np.float32)) is None


def test_commit_tells_the_position(miner: ServerThread) -> None:
    with feed_of(miner) as feed:
        for _ in range(5):
            next(feed)
        assert feed.commit() == 5
        assert feed.commit(3) == 5
        with pytest.raises(StepRangeError):
            feed.commit(1000)


def test_a_commit_without_a_miner_is_reported_and_does_not_stop_training(
    miner: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    with feed_of(miner) as feed:
        next(feed)
        miner.stop()
        begin_s = time.monotonic()
        assert feed.commit() is None
        assert time.monotonic() - begin_s < 6.0
    assert "step 1 not committed" in caplog.text


def test_a_run_with_other_values_is_refused_when_the_feed_is_opened(miner: ServerThread) -> None:
    feed_of(miner).open().close()
    with pytest.raises(RunRefusedError, match="batch_rows=25"), feed_of(miner, batch_rows=25):
        pass


def test_a_refusal_in_the_stream_reaches_the_loop_after_the_batches_before_it(
    miner: ServerThread,
) -> None:
    sizes = [batch.global_groups for batch in feed_of(miner, num_steps=40)]
    fails_at = next(step for step, size in enumerate(sizes) if size < max(sizes))
    feed = feed_of(miner, num_steps=40, world_size=max(sizes), rank=1)
    received = []
    with pytest.raises(RunRefusedError, match=f"{max(sizes)} ranks"):
        received.extend(batch.step for batch in feed)
    assert feed_threads() == []
    assert feed.position == fails_at


def test_a_lost_round_is_an_error_and_not_a_silent_gap(miner: ServerThread, folder: Path) -> None:
    digests(feed_of(miner))
    next((folder / "log/rounds/00000002").glob("*.arrow")).write_bytes(b"damaged")
    restarted = ServerThread(folder)
    with pytest.raises(RoundLostError, match="round 2 is damaged"):
        digests(feed_of(restarted))
    restarted.stop()


def test_resuming_on_a_miner_that_never_planned_the_run_is_warned_of(
    miner: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), feed_of(miner, first_step=9, num_steps=1) as feed:
        assert next(feed).step == 9
    assert "planned 0 steps" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        {"rank": 1, "world_size": 1},
        {"rank": -1},
        {"first_step": -1},
        {"num_steps": -1},
        {"prefetch_steps": 0},
        {"patience_s": 0.0},
        {"idle_s": 0.0},
        {"exhausted": "stop"},
        {"stale": "maybe"},
    ],
)
def test_values_out_of_range_are_refused_at_once(values: dict[str, object]) -> None:
    name = next(iter(values))
    with pytest.raises(ConfigError, match=f"{name}="):
        TripletFeed("nowhere:1", **{"run_id": "r", "batch_rows": 24, **values})  # type: ignore[arg-type]


def test_no_steps_need_no_miner() -> None:
    assert list(TripletFeed("nowhere:1", run_id="r", batch_rows=24, num_steps=0)) == []


def test_a_forgotten_feed_gives_up_its_thread(miner: ServerThread) -> None:
    feed = feed_of(miner, num_steps=None)
    next(feed)
    assert len(feed_threads()) == 1
    del feed
    gc.collect()
    assert feed_threads() == []


def test_closing_interrupts_a_waiting_stream(folder: Path) -> None:
    miner = ServerThread(folder)
    with feed_of(miner, exhausted="wait", num_steps=None, prefetch_steps=100) as feed:
        next(feed)
        time.sleep(0.3)
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 1.0
    miner.stop()


def test_a_feed_and_a_client_share_a_run(miner: ServerThread) -> None:
    with feed_of(miner) as feed, MinerClient(miner.address, patience_s=5) as client:
        next(feed)
        assert not client.open_run(RunParameters(run_id="run-1", batch_rows=24)).created


def test_importing_the_feed_loads_no_engine() -> None:
    script = (
        "import sys, trainer.feed\n"
        "heavy = {'ray', 'faiss', 'miner', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import trainer.feed

    with pytest.raises(AttributeError, match="nothing_like_this"):
        trainer.feed.nothing_like_this  # noqa: B018
