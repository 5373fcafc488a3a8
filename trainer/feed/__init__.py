"""The feed: batches of mined triplets for any training loop, in five lines.

Importing it loads neither torch nor any part of the miner; torch comes with ``TripletDataset``.

    with TripletFeed("miner:50051", run_id="faces-1", batch_rows=192) as feed:
        for batch in feed:
            embeddings = model(preprocess(batch.samples))
            ...
"""

from typing import TYPE_CHECKING, Any

from trainer.feed.access import TlsFiles
from trainer.feed.batch import TripletBatch
from trainer.feed.client import MinerClient, RunParameters
from trainer.feed.feed import TripletFeed
from trainer.feed.figures import FeedFigures

if TYPE_CHECKING:
    from trainer.feed.dataset import TripletDataset

__all__ = [
    "FeedFigures",
    "MinerClient",
    "RunParameters",
    "TlsFiles",
    "TripletBatch",
    "TripletDataset",
    "TripletFeed",
]


def __getattr__(name: str) -> Any:
    if name == "TripletDataset":
        from trainer.feed.dataset import TripletDataset

        return TripletDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
