"""The process that answers for one part of a snapshot's rows.

placed -> open -> answers, blocks of anchors at a time
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from miner.index.config import IndexConfig
from miner.logs import LogFormat, set_up_worker_logs
from miner.types import IdentityTable
from miner.workers.exact_search import torch_queries
from miner.workers.remote import lower_priority
from miner.workers.snapshot import SnapshotKey, Snapshots

if TYPE_CHECKING:
    from miner.index.shard_search import ShardSearch

__all__ = ["ShardActor", "ShardRows"]


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Which rows a shard answers for, and how it searches them. Shape legend: R = these rows.

    Attributes:
        snapshots: Where they lie, for every machine.
        begin, end: Rows ``[begin, end)`` of the snapshot.
        identity_ids_R: Their identities.
        num_identities: Of the catalog.
    """

    snapshots: Snapshots
    key: SnapshotKey
    begin: int
    end: int
    identity_ids_R: npt.NDArray[np.int32]
    num_identities: int
    config: IndexConfig
    seed: int
    num_threads: int


class ShardActor:
    """What it is asked is safe to repeat; it holds nothing that cannot be made again."""

    def __init__(self, nice: int, log_format: LogFormat) -> None:
        lower_priority(nice)
        set_up_worker_logs(log_format, "search")
        self._search: ShardSearch | None = None

    def start(self) -> int:
        """Answers with its process id once Ray has placed it."""
        return os.getpid()

    def open(self, rows: ShardRows) -> None:
        """Map these rows, and no others.

        Raises:
            SnapshotError: They are not all there, or damaged.
            SearchError: The settings ask for a GPU that is not there.
        """
        from miner.index.shard_search import ShardSearch

        embeddings_RD = rows.snapshots.open(rows.key, range(rows.begin, rows.end))
        identities = IdentityTable.from_ids(np.array(rows.identity_ids_R), rows.num_identities)
        exact = torch_queries(rows.config.gpu, embeddings_RD, identities)
        self._search = ShardSearch(
            embeddings_RD,
            identities,
            rows.begin,
            rows.config,
            rows.seed,
            rows.num_threads,
            exact,
        )

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the `ShardSearch`."""
        assert self._search is not None, "open comes first"
        return getattr(self._search, method)(*args)
