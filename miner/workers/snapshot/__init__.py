"""Snapshots: the embeddings of the whole catalog under one set of weights."""

from miner.workers.snapshot.keys import ChunkReceipt, SnapshotKey
from miner.workers.snapshot.known import DataFile, KnownRows
from miner.workers.snapshot.local import SnapshotStore
from miner.workers.snapshot.object_store import ObjectSnapshots
from miner.workers.snapshot.place import Snapshots, open_snapshots

__all__ = [
    "ChunkReceipt",
    "DataFile",
    "KnownRows",
    "ObjectSnapshots",
    "SnapshotKey",
    "SnapshotStore",
    "Snapshots",
    "open_snapshots",
]
