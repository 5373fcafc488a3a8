"""The feed as a torch dataset, for loops that are built around ``DataLoader``.

It knows the feed and nothing of the wire. The only module of ``trainer.feed`` that imports torch.
"""

from collections.abc import Iterator
from multiprocessing import current_process
from multiprocessing.context import ForkProcess

from torch.utils.data import IterableDataset, get_worker_info

from trainer.errors import ConfigError
from trainer.feed.batch import TripletBatch
from trainer.feed.feed import TripletFeed

__all__ = ["TripletDataset"]


class TripletDataset(IterableDataset[TripletBatch]):
    """Yields the batches of a feed, in step order, whole.

    Use it with ``batch_size=None`` and either ``num_workers=0`` (the feed already reads ahead in a
    thread of its own), or ``num_workers=1, multiprocessing_context="spawn"`` to decode in another
    process. The connection is made where the iteration happens. More workers are refused: the
    order of steps is the miner's, and several readers would each stream every step.

    With a worker the loader reads ahead too: count the batches that arrive to know the position,
    or take ``batch.step + 1`` of the last one; ``feed.position`` belongs to the worker's copy.

    Args:
        feed: A feed that is not open yet.

    Example::

        feed = TripletFeed("miner:50051", run_id="faces-1", batch_rows=192)
        for batch in DataLoader(TripletDataset(feed), batch_size=None):
            ...
    """

    def __init__(self, feed: TripletFeed) -> None:
        if feed.is_open:
            raise ConfigError("TripletDataset opens the feed itself: pass one that is not open yet")
        self._feed = feed

    def __iter__(self) -> Iterator[TripletBatch]:
        """Open the feed here, and close it when the iteration ends.

        Raises:
            ConfigError: In a forked worker, or with more than one worker.
            FeedError: As :class:`TripletFeed` does.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError(
                f"TripletDataset has one reader, got num_workers={worker.num_workers}: use 0 or 1; "
                "the feed reads ahead by itself (prefetch_steps)"
            )
        if worker is not None and isinstance(current_process(), ForkProcess):
            raise ConfigError(
                "gRPC does not survive a fork: pass multiprocessing_context='spawn' to the "
                "DataLoader, or num_workers=0"
            )
        with self._feed as feed:
            yield from feed
