"""The feed's own figures, for loops that have no Prometheus: what it gave, and what it cost."""

import subprocess
import sys
import time
from pathlib import Path

from tests.trainer.feed.served_miner import (
    FlakyProxy,
    ServerProcess,
    ServerThread,
    free_port,
    make_folder,
    seal_round,
)
from trainer.feed import FeedFigures, TripletFeed


def test_a_feed_that_gave_nothing_says_so(miner: ServerThread) -> None:
    assert TripletFeed(miner.address, run_id="r", batch_rows=24).figures() == FeedFigures()


def test_figures_are_those_of_the_batches(folder: Path, miner: ServerThread) -> None:
    seal_round(folder, 3, model_step=4)
    feed = TripletFeed(
        miner.address, run_id="r", batch_rows=24, num_steps=40, max_staleness_steps=10
    )
    batches = []
    with feed:
        for batch in feed:
            batches.append(batch)
            figures = feed.figures()
            assert figures.num_batches == len(batches)
            assert (figures.round_id, figures.staleness_steps) == (3, batch.staleness_steps)
            assert 0 <= figures.num_buffered <= feed.prefetch_steps
    figures = feed.figures()
    assert figures.num_rows == sum(batch.num_rows for batch in batches)
    assert figures.num_triplets == sum(batch.num_triplets for batch in batches)
    assert figures.num_over_stale == sum(batch.over_stale for batch in batches) > 0
    assert figures.num_rounds == 1, "a round that is gone through again counts once"
    assert figures.stalled_s == feed.stalled_s > 0
    assert (figures.num_reconnects, figures.num_buffered) == (0, 0)


def test_rounds_count_when_they_change_and_openings_add_up(
    folder: Path, miner: ServerThread
) -> None:
    feed = TripletFeed(miner.address, run_id="r", batch_rows=24, num_steps=48)
    for _ in range(16):
        next(feed)
    feed.close()
    seal_round(folder, 3)
    for batch in feed:
        last = batch
    assert last.round_id == 3
    figures = feed.figures()
    assert (figures.num_batches, figures.num_rounds) == (48, 2)


def test_connections_that_were_given_up_are_counted(tmp_path: Path) -> None:
    folder, port = make_folder(tmp_path / "miner"), free_port()
    first = ServerProcess(folder, port).wait_ready()
    feed = TripletFeed(first.address, run_id="r", batch_rows=24, num_steps=60, prefetch_steps=2)
    with feed:
        for batch in feed:
            if batch.step == 20:
                assert feed.figures().num_reconnects == 0
                first.kill()
                second = ServerProcess(folder, port)
    second.kill()
    assert feed.figures().num_reconnects >= 1
    assert feed.figures().num_batches == 60


def test_a_request_that_hangs_costs_one_connection(miner: ServerThread) -> None:
    proxy = FlakyProxy(miner.address, hanging={1})  # 0 opens the run
    feed = TripletFeed(proxy.address, run_id="r", batch_rows=24, num_steps=8, idle_s=1.0)
    begin_s = time.monotonic()
    with feed:
        assert len(list(feed)) == 8
    proxy.close()
    assert feed.figures().num_reconnects == 1
    assert 0.9 < feed.figures().stalled_s < time.monotonic() - begin_s


def test_figures_need_no_prometheus() -> None:
    code = "import sys, trainer.feed; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
