"""Snapshots: the embeddings of the whole catalog under one set of weights."""

from miner.workers.snapshot.keys import ChunkReceipt, SnapshotKey
from miner.workers.snapshot.known import DataFile, KnownRows
from miner.workers.snapshot.local import SnapshotStore

__all__ = ["ChunkReceipt", "DataFile", "KnownRows", "SnapshotKey", "SnapshotStore"]
