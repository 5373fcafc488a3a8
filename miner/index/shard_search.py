"""A search in a part of the rows, for anchors that may be rows of another part.

    opened -> exact answers
           -> lists prepared -> searched -> deepened -> searched ...

It knows neither the other parts nor how recall is judged over all of them. Shape legend: R = rows
of the part, D = dimensions, Q = queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from miner.index.config import IndexConfig
from miner.index.list_search import ListSearch
from miner.index.queries import Queries
from miner.index.sweep import bounding_axes, sweep_queries
from miner.index.threads import workers
from miner.types import Candidates, IdentityTable

__all__ = ["ShardSearch"]

ExactSearch = Callable[[Queries, int], Candidates]


@dataclass(slots=True)
class ShardSearch:
    """Answers for rows ``first_row`` up to ``first_row + R`` of a catalog.

    What is found are row ids of the catalog; of each query as many as asked for, or R if that is
    less, padded with -1 and -inf.

    Attributes:
        embeddings_RD: [R, D] float32 of length 1; may be a memory map.
        identities: Of the same rows; identities have the numbers of the catalog.
        given_exact: An exact search of the same rows in place of the CPU's; counts them from 0.
    """

    embeddings_RD: npt.NDArray[np.float32]
    identities: IdentityTable
    first_row: int
    config: IndexConfig
    seed: int
    num_threads: int
    given_exact: ExactSearch | None = None
    _lists: ListSearch | None = None
    _latest: dict[int, Candidates] = field(default_factory=dict)

    def exact(self, queries: Queries, num_candidates: int) -> Candidates:
        """The nearest rows of other identities, as :func:`~miner.index.sweep.sweep`."""
        found = self._exact(queries, num_candidates)
        self._latest = {num_candidates: found}  # samples are often asked for twice
        return self._numbered(found)

    def prepare(self, kind: str, sample: Queries, at: int, num_candidates: int) -> None:
        """Make lists, and choose how many are probed: the sample's ``at`` nearest rows here."""
        lists = ListSearch(
            self.embeddings_RD,
            self.identities,
            self.config,
            is_coded=kind == "ivfpq",
            seed=self.seed,
            before=None,
        )
        exact, num_candidates = self._of_sample(sample, at), self._at_most(num_candidates)
        with workers(self.num_threads) as each:
            lists.prepare(exact, num_candidates, each, sample)
        self._lists = lists

    def search(self, queries: Queries, num_candidates: int) -> Candidates:
        """What the lists find, as deep as was chosen."""
        wanted = self._at_most(num_candidates)
        with workers(self.num_threads) as each:
            found = self._prepared.search(queries.row_ids_Q, wanted, each, queries=queries)
        return self._numbered(found)

    def deepen(self, sample: Queries, at: int) -> bool:
        """Probe more lists from now on; whether there were more."""
        exact = self._of_sample(sample, at)
        with workers(self.num_threads) as each:
            return self._prepared.deepen(exact, each, sample)

    def describe(self) -> dict[str, int | float | str]:
        """What the manifest says of the lists."""
        return self._prepared.describe()

    @property
    def _prepared(self) -> ListSearch:
        assert self._lists is not None, "prepare comes first"
        return self._lists

    def _at_most(self, num_candidates: int) -> int:
        return min(num_candidates, len(self.embeddings_RD))

    def _numbered(self, found: Candidates) -> Candidates:
        """The same with row ids of the catalog."""
        rows = found.row_ids_AK
        return replace(found, row_ids_AK=np.where(rows < 0, rows, rows + self.first_row))

    def _of_sample(self, sample: Queries, at: int) -> Candidates:
        latest = self._latest.get(at)
        if latest is not None and np.array_equal(latest.anchor_ids_A, sample.row_ids_Q):
            return latest
        return self._exact(sample, at)

    def _exact(self, queries: Queries, num_candidates: int) -> Candidates:
        wanted = self._at_most(num_candidates)
        if self.given_exact is not None:
            return self.given_exact(queries, wanted)
        axes = bounding_axes(self.embeddings_RD, len(queries))
        with workers(self.num_threads) as each:
            similarities_QK, row_ids_QK = sweep_queries(
                self.embeddings_RD,
                self.identities.identity_ids_N,
                queries.vectors_QD,
                queries.owners_Q,
                wanted,
                each,
                axes=axes,
            )
        return Candidates(queries.row_ids_Q, row_ids_QK, similarities_QK)
