"""The feed behind a DataLoader: in the process, in a spawned worker, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from tests.trainer.feed.served_miner import ServerThread
from trainer.errors import ConfigError
from trainer.feed import TripletDataset, TripletFeed


def feed_of(miner: ServerThread) -> TripletFeed:
    return TripletFeed(miner.address, run_id="r", batch_rows=24, num_steps=12, patience_s=30)


def test_a_loader_without_workers_gives_the_batches_of_the_feed(miner: ServerThread) -> None:
    reference = [batch.digest() for batch in feed_of(miner)]
    loader = DataLoader(TripletDataset(feed_of(miner)), batch_size=None)
    assert [batch.digest() for batch in loader] == reference


def test_a_spawned_worker_gives_the_same_batches(miner: ServerThread) -> None:
    reference = [batch.digest() for batch in feed_of(miner)]
    loader = DataLoader(
        TripletDataset(feed_of(miner)),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert [batch.digest() for batch in loader] == reference


def test_an_open_feed_is_refused(miner: ServerThread) -> None:
    with feed_of(miner) as feed, pytest.raises(ConfigError, match="not open yet"):
        TripletDataset(feed)


REFUSED = """
from torch.utils.data import DataLoader
from trainer.errors import ConfigError
from trainer.feed import TripletDataset, TripletFeed

feed = TripletFeed("127.0.0.1:1", run_id="r", batch_rows=24, patience_s=0.5)
for workers, says in [(1, "does not survive a fork"), (2, "num_workers=2: use 0 or 1")]:
    options = {"num_workers": workers, "multiprocessing_context": "fork"}
    try:
        next(iter(DataLoader(TripletDataset(feed), batch_size=None, **options)))
    except ConfigError as exc:
        assert says in str(exc), exc
    else:
        raise SystemExit("a batch came")
"""


def test_a_forked_worker_and_a_second_one_are_refused() -> None:
    """In a process of its own, which holds no gRPC threads that a fork could break."""
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", REFUSED], cwd=root, check=True)
