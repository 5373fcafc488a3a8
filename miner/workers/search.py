"""Searches a snapshot for candidates in a process of its own, with its own resources.

Row ids go in, row ids and similarities come out: it knows no strategy. Shape legend: A = anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError, RayTaskError

from miner.errors import SearchError
from miner.index.config import IndexConfig
from miner.logs import LogFormat, chosen_format, set_up_worker_logs
from miner.types import Candidates, IdentityTable
from miner.workers.config import WorkersConfig
from miner.workers.exact_search import torch_search
from miner.workers.remote import (
    POLL_S,
    Resources,
    Watch,
    lower_priority,
    not_started,
    result_of,
)
from miner.workers.shard_actor import ShardRows
from miner.workers.shards import SearchShards, ShardedLists
from miner.workers.snapshot import SnapshotKey, Snapshots

if TYPE_CHECKING:
    from miner.index.candidate_search import CandidateSearch

__all__ = ["SearchOutcome", "SearchRequest", "search", "search_snapshot"]

MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Which snapshot is searched, for which anchors, how deep.

    Where ``warm_path`` is given, what the search leaves to the next one is kept there.
    """

    snapshots: Snapshots
    key: SnapshotKey
    identities: IdentityTable
    anchor_ids_A: npt.NDArray[np.int64]
    num_candidates: int
    seed: int = 0
    warm_path: Path | None = None


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """The candidates, and what the round's manifest says about the index.

    ``recall`` is what was measured; None of an exact search.
    """

    candidates: Candidates
    index: dict[str, int | float | str]
    recall: float | None = None


def search(
    request: SearchRequest,
    config: IndexConfig,
    num_threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> SearchOutcome:
    """Search in this process; ``on_progress`` is called with (anchors done, anchors in all).

    Raises:
        SnapshotError: The snapshot is not complete.
        SearchError: As `CandidateSearch`.
    """
    from miner.index.candidate_search import CandidateSearch
    from miner.index.warm_start import WarmFile

    embeddings_ND = request.snapshots.open(request.key)
    warm = None
    if request.warm_path is not None:
        warm = WarmFile(request.warm_path, request.key.dataset_fingerprint)
    find = CandidateSearch(
        embeddings_ND,
        request.identities,
        config,
        seed=request.seed,
        num_threads=num_threads,
        before=warm.load(*embeddings_ND.shape) if warm else None,
        exact=torch_search(config.gpu, embeddings_ND, request.identities),
    )
    candidates = find(request.anchor_ids_A, request.num_candidates, on_progress)
    warm_start = find.warm_start
    if warm is not None and warm_start is not None:
        warm.save(warm_start)
    return _outcome(candidates, find, {})


def _search_in_shards(
    request: SearchRequest, config: IndexConfig, workers: WorkersConfig, watch: Watch
) -> SearchOutcome:
    """The same search, with shards that answer in place of the rows."""
    from miner.index.candidate_search import CandidateSearch

    embeddings_ND = request.snapshots.open(request.key)
    rows = ShardRows(
        request.snapshots,
        request.key,
        0,
        len(embeddings_ND),
        request.identities.identity_ids_N,
        request.identities.num_identities,
        config,
        request.seed,
        max(1, int(workers.search_cpus)),
    )
    with SearchShards.placed(rows, workers, embeddings_ND, request.identities, watch) as shards:
        find = CandidateSearch(
            embeddings_ND,
            request.identities,
            config,
            seed=request.seed,
            num_threads=1,
            exact=shards.exact,
            new_lists=lambda kind: ShardedLists(kind, shards),
        )
        candidates = find(request.anchor_ids_A, request.num_candidates, watch.on_progress)
    return _outcome(candidates, find, {"num_shards": len(shards.shards)})


def _outcome(
    candidates: Candidates, find: CandidateSearch, index: dict[str, int | float | str]
) -> SearchOutcome:
    recall = None if find.recall is None else find.recall.value
    return SearchOutcome(candidates, {**find.description, **index}, recall)


class _SearchActor:
    """Two threads: one searches, the other says how far it is."""

    def __init__(self, nice: int, log_format: LogFormat) -> None:
        set_up_worker_logs(log_format, "search")
        self._nice = nice
        self._progress = 0, 0

    def start(self) -> None:
        """Answers once Ray has placed the actor."""

    def search(self, request: SearchRequest, config: IndexConfig, threads: int) -> SearchOutcome:
        lower_priority(self._nice)
        return search(request, config, threads, self._note)

    def progress(self) -> tuple[int, int]:
        """Anchors done, and in all; (0, 0) before the first."""
        return self._progress

    def _note(self, done: int, total: int) -> None:
        self._progress = done, total


def search_snapshot(
    request: SearchRequest, config: IndexConfig, workers: WorkersConfig, watch: Watch | None = None
) -> SearchOutcome:
    """Search on Ray workers with the configured resources; a lost one is replaced, a few times.

    With several shards no warm start is read or left. Whatever ``watch`` raises ends the search.

    Raises:
        SnapshotError, SearchError: As `search`; also if the cluster has no room, or a worker is
            lost again and again.
    """
    watch = watch or Watch()
    if workers.search_shards > 1:
        return _search_in_shards(request, config, workers, watch)
    resources = Resources(workers.search_cpus, workers.search_gpus)
    for _ in range(MAX_ATTEMPTS):
        actor = resources.start(_SearchActor, workers.nice, chosen_format(), num_threads=2)
        try:
            started, timeout_s = actor.start.remote(), workers.placement_timeout_s
            if not_started([started], timeout_s, watch):
                raise SearchError(resources.explain_wait("the search", timeout_s))
            result_of(started)
            threads = max(1, int(workers.search_cpus))
            outcome = _watched(actor, actor.search.remote(request, config, threads), watch)
            assert isinstance(outcome, SearchOutcome)
            return outcome
        except RayTaskError:
            raise
        except RayError as exc:
            loss = exc
        finally:
            ray.kill(actor)
    raise SearchError(
        f"the search was lost {MAX_ATTEMPTS} times: {loss}; it needs memory for "
        f"{request.key.num_rows} embeddings"
    ) from loss


def _watched(actor: Any, found: Any, watch: Watch) -> Any:
    """What the search finds; until then its progress is told."""
    asked = actor.progress.remote()
    while not ray.wait([found], timeout=POLL_S)[0]:
        watch.go_on()
        if ray.wait([asked], timeout=0)[0]:
            done, total = result_of(asked)
            if total:
                watch.on_progress(done, total)
            asked = actor.progress.remote()
    return result_of(found)
