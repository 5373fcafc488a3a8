"""A search over several processes, each with a part of the rows; a lost one is replaced.

    anchors in blocks -> every shard, at its own pace -> the best of all, merged as they come

A block's vectors travel with it, so a shard reads no rows but its own. A shard has one block at a
time: a lost one costs that block, and what it takes to get ready again. It knows neither kinds of
index nor recall. Shape legend: N = rows, D = dimensions, A = anchors, B = anchors of a block,
K = candidates.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError, RayTaskError

from miner.errors import SearchError
from miner.logs import chosen_format
from miner.types import Candidates, IdentityTable
from miner.workers.config import WorkersConfig
from miner.workers.remote import POLL_S, Resources, Watch, not_started, result_of
from miner.workers.shard_actor import ShardActor, ShardRows

if TYPE_CHECKING:
    from miner.index.queries import Queries
    from miner.index.threads import Each

__all__ = ["SearchShards", "ShardedLists"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
T = TypeVar("T")

MESSAGE_BYTES = 2**25
"""Of a block's vectors and its answer: some 30,000 anchors, so that lists still meet many at once,
and a few messages are nothing beside the rows."""
MAX_ATTEMPTS = 3
"""A question that has taken so many processes down is given up."""


class Shard:
    """A part of the rows, and the process that answers for it, whichever it is by now.

    asked for -> placed -> ready (has learnt what the one before it knew) -> asked ...
        ^                                                                      |
        +------------------------------- lost ---------------------------------+
    """

    def __init__(self, number: int, rows: ShardRows, workers: WorkersConfig, watch: Watch) -> None:
        self.name = f"search shard {number} (rows {rows.begin} to {rows.end - 1})"
        self.pid = 0
        self._workers, self._watch = workers, watch
        self._learnt: list[tuple[str, tuple[Any, ...]]] = [("open", (rows,))]
        self._is_dismissed = False

    def ask_ray(self, resources: Resources) -> Any:
        """Have Ray place it; ready when what this returns is."""
        self._resources, self._is_ready = resources, False
        self._actor = resources.start(ShardActor, self._workers.nice, chosen_format())
        self._started = self._actor.start.remote()
        return self._started

    def ask(self, method: str, *args: Any, is_kept: bool = False) -> Any:
        """Its answer; asked again of another process if this one is lost.

        Args:
            method: Of `ShardSearch`.
            args: Of the method.
            is_kept: Whether its successors must have been asked this too.

        Raises:
            CoalfaceError: What the shard raises, with its class.
            SearchError: It was lost with this question `MAX_ATTEMPTS` times, or there is no room.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                self._get_ready()
                answer = self._submit("ask", (method, *args))
            except RayTaskError:
                raise
            except RayError as exc:
                if self._is_dismissed or attempt == MAX_ATTEMPTS:
                    loss = exc
                    break
                logger.warning("%s, process %d, was lost and is replaced", self.name, self.pid)
                ray.kill(self._actor)  # it may live on behind a broken connection
                self.ask_ray(self._resources)
            else:
                if is_kept:
                    self._learnt.append(("ask", (method, *args)))
                return answer
        raise SearchError(
            f"{self.name} was lost {attempt} times: {loss}; it needs memory for its embeddings, "
            "and as much again for lists"
        ) from loss

    def dismiss(self) -> None:
        """Kill its process; whoever waits for an answer gets an error."""
        self._is_dismissed = True
        ray.kill(self._actor)

    def _get_ready(self) -> None:
        if self._is_ready:
            return
        timeout_s = self._workers.placement_timeout_s
        if not_started([self._started], timeout_s, self._watch):
            raise SearchError(self._resources.explain_wait(self.name, timeout_s))
        self.pid = result_of(self._started)
        for method, args in self._learnt:
            self._submit(method, args)
        self._is_ready = True

    def _submit(self, method: str, args: tuple[Any, ...]) -> Any:
        return result_of(getattr(self._actor, method).remote(*args))


class SearchShards:
    """A snapshot's rows over equal shards, contiguous ones. Use it in a ``with`` block."""

    def __init__(
        self,
        shards: list[Shard],
        embeddings_ND: npt.NDArray[np.float32],
        identities: IdentityTable,
        watch: Watch,
    ) -> None:
        """See :meth:`placed`."""
        self.shards, self._watch = shards, watch
        self._embeddings_ND, self._identities = embeddings_ND, identities
        self._merging = threading.Lock()

    @classmethod
    def placed(
        cls,
        rows: ShardRows,
        workers: WorkersConfig,
        embeddings_ND: npt.NDArray[np.float32],
        identities: IdentityTable,
        watch: Watch,
    ) -> SearchShards:
        """Have Ray place the shards, all at once.

        Args:
            rows: All rows, and how they are searched.
            workers: How many shards, of which resources each.
            embeddings_ND: The whole snapshot, from which anchors are read.
            identities: Of the same rows.
            watch: Hears of the search; whatever it raises ends the work of all shards.

        Raises:
            SearchError: Not all are placed within the time allowed; says what each asks for and
                what there is.
        """
        num_rows, dim = embeddings_ND.shape
        cuts = np.linspace(0, num_rows, min(workers.search_shards, num_rows) + 1).astype(int)
        shards, refs = [], []
        for number, (begin, end) in enumerate(pairwise(cuts.tolist())):
            ids_R = rows.identity_ids_R[begin:end]
            part = replace(rows, begin=begin, end=end, identity_ids_R=ids_R)
            num_bytes = 4 * dim * (end - begin)
            resources = Resources(workers.search_cpus, workers.search_gpus, num_bytes)
            shards.append(Shard(number, part, workers, watch))
            refs.append(shards[-1].ask_ray(resources))
        placed = cls(shards, embeddings_ND, identities, watch)
        timeout_s = workers.placement_timeout_s
        try:
            missing = not_started(refs, timeout_s, watch)
            if missing:
                what = f"{len(missing)} of {len(refs)} search shards"
                raise SearchError(resources.explain_wait(what, timeout_s))
        except BaseException:
            placed.dismiss()
            raise
        return placed

    def exact(
        self, anchor_ids_A: I64, num_candidates: int, on_progress: Progress | None = None
    ) -> Candidates:
        """Each anchor's nearest rows of other identities, as :func:`~miner.index.sweep.sweep`."""
        return self.answers("exact", anchor_ids_A, num_candidates, on_progress)

    def answers(
        self,
        method: str,
        anchor_ids_A: I64,
        num_candidates: int,
        on_progress: Progress | None = None,
    ) -> Candidates:
        """The best of what all shards answer, best first, equal ones by row id, padded.

        Guarantee: as if one had answered for all rows; in whatever order answers come.

        Args:
            method: Of `ShardSearch`, that takes a block of anchors and K.
            anchor_ids_A: [A] row ids.
            num_candidates: K.
            on_progress: Called with (anchors done, anchors in all).

        Raises:
            CoalfaceError: As :meth:`Shard.ask`.
        """
        shape = len(anchor_ids_A), num_candidates
        found = Candidates(
            anchor_ids_A.astype(np.int64), np.full(shape, -1), np.full(shape, -np.inf, np.float32)
        )
        block = max(1, MESSAGE_BYTES // (4 * self._embeddings_ND.shape[1] + 12 * num_candidates))
        starts, num_answers = range(0, len(anchor_ids_A), block), 0

        def work(shard: Shard) -> None:
            nonlocal num_answers
            for begin in starts:
                part = slice(begin, begin + block)
                answer = shard.ask(method, self.queries(anchor_ids_A[part]), num_candidates)
                with self._merging:
                    self._merge(found, part, answer)
                    num_answers += 1
                    if on_progress is not None:
                        share = num_answers / (len(starts) * len(self.shards))
                        on_progress(int(share * len(anchor_ids_A)), len(anchor_ids_A))

        self.everywhere(work)
        return found

    def everywhere(self, work: Callable[[Shard], T]) -> list[T]:
        """Do something with every shard, all at once; the first error ends the work of all."""
        with ThreadPoolExecutor(len(self.shards)) as pool:
            futures = [pool.submit(work, shard) for shard in self.shards]
            try:
                while (found := wait(futures, POLL_S, FIRST_EXCEPTION)).not_done:
                    for future in found.done:
                        future.result()
                    self._watch.go_on()
            except BaseException:
                self.dismiss()  # so that nobody waits for answers of the others
                raise
        return [future.result() for future in futures]

    def queries(self, anchor_ids_B: I64) -> Queries:
        """Anchors with all that a shard needs to know of them."""
        from miner.index.queries import Queries

        owners_B = self._identities.identity_ids_N[anchor_ids_B]
        return Queries(anchor_ids_B, np.asarray(self._embeddings_ND[anchor_ids_B]), owners_B)

    def dismiss(self) -> None:
        """Kill all processes; what they are doing is lost."""
        for shard in self.shards:
            shard.dismiss()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    @staticmethod
    def _merge(found: Candidates, part: slice, answer: Candidates) -> None:
        from miner.index.merge import merge_into

        merge_into(
            found.similarities_AK[part],
            found.row_ids_AK[part],
            answer.similarities_AK,
            answer.row_ids_AK,
        )


@dataclass(slots=True)
class ShardedLists:
    """Inverted lists in every shard, in the place of `ListSearch`.

    Each shard chooses its depth by its own nearest rows of a sample. What lies among the nearest of
    all rows lies among the nearest of its shard, at its front, so that what all find together is
    about as much as each does; whether it is enough is for the caller to measure.
    """

    kind: str
    shards: SearchShards
    is_prepared: bool = False

    def prepare(self, exact: Candidates, num_candidates: int, each: Each) -> None:  # noqa: ARG002
        """Make lists in every shard; a shard compares the sample with its own rows."""
        sample, at = self.shards.queries(exact.anchor_ids_A), exact.row_ids_AK.shape[1]
        given = "prepare", self.kind, sample, at, num_candidates
        self.shards.everywhere(lambda shard: shard.ask(*given, is_kept=True))
        self.is_prepared = True

    def search(
        self,
        anchor_ids_A: I64,
        num_candidates: int,
        each: Each,  # noqa: ARG002 - as ListSearch
        on_progress: Progress | None = None,
    ) -> Candidates:
        """The best of what all shards find in their lists."""
        return self.shards.answers("search", anchor_ids_A, num_candidates, on_progress)

    def deepen(self, exact: Candidates, each: Each) -> bool:  # noqa: ARG002 - as ListSearch
        """Probe more lists from now on, in every shard; whether there were more in any."""
        sample, at = self.shards.queries(exact.anchor_ids_A), exact.row_ids_AK.shape[1]
        return any(
            self.shards.everywhere(lambda shard: shard.ask("deepen", sample, at, is_kept=True))
        )

    def remember(self, found: Candidates) -> None:
        """Nothing: lists of shards are made anew in every round."""

    def warm_start(self) -> None:
        """Nothing."""

    def describe(self) -> dict[str, int | float | str]:
        """What the manifest says: lists and probes of all shards together, the most axes."""
        parts = self.shards.everywhere(lambda shard: shard.ask("describe"))
        sums = {name: sum(part[name] for part in parts) for name in ("num_lists", "num_probes")}
        return {**parts[0], **sums, "num_axes": max(part["num_axes"] for part in parts)}
