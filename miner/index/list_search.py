"""The search in inverted lists: which lists, in which axes, how many of them.

    cold or warm -> prepared -> searched -> deepened -> searched ... -> warm

It knows nothing of how recall is judged. Shape legend: N = rows, D = dimensions, P = axes,
A = anchors, S = anchors of a sample, L = lists, W = neighbours known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from miner.errors import SearchError
from miner.index.config import IndexConfig
from miner.index.depth import Depths
from miner.index.inverted_lists import Centroids, default_num_lists
from miner.index.list_join import ListJoin
from miner.index.memory import give_back
from miner.index.projection import Projection
from miner.index.queries import Queries
from miner.index.recall import measure_recall
from miner.index.threads import Each
from miner.index.warm_start import WarmStart
from miner.types import Candidates, IdentityTable

__all__ = ["ListSearch"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

AIM_HIGHER = 0.2
"""So much of what is allowed to be missed is kept in reserve for what the sample does not show."""
ENERGIES = (0.94, 0.99, 1.0)
"""Shares of the rows' squared length in the axes that are searched; the next if need be."""
STALE = 1.5
"""Lists are trained anew once they take so many times the probes."""
FEW_LISTS = 0.1
"""Training makes so many lists more or fewer than asked for."""
MAX_ROWS = 2**32 - 1


class ListSearch:
    """Finds candidates in inverted lists."""

    def __init__(  # noqa: PLR0913 - two inputs; all but those and the settings by name
        self,
        embeddings_ND: npt.NDArray[np.float32],
        identities: IdentityTable,
        config: IndexConfig,
        *,
        is_coded: bool,
        seed: int,
        before: WarmStart | None,
    ) -> None:
        """Take the rows; lists are made by :meth:`prepare`.

        Args:
            embeddings_ND: [N, D] float32 of length 1; may be a memory map.
            identities: Of the same rows.
            config: Lists, probes and the recall that is aimed at.
            is_coded: Whether lists hold product codes in place of vectors: kind `ivfpq`.
            seed: Draws training samples.
            before: What an earlier search over the same rows has left.
        """
        self._embeddings_ND, self._identities = embeddings_ND, identities
        self._config, self._seed, self._warm = config, seed, before
        self._is_coded = is_coded
        self._learnt: tuple[WarmStart | None, Centroids, int, I64, I64] | None = None
        self._join: ListJoin | None = None
        self._num_probes = self._unaided_probes = config.num_probes or 1

    @property
    def is_prepared(self) -> bool:
        """Whether there are lists."""
        return self._join is not None

    def prepare(
        self,
        exact: Candidates,
        num_candidates: int,
        each: Each,
        queries: Queries | None = None,
    ) -> None:
        """Make lists, and choose how many are probed by what a sample's anchors need.

        Lists of the last search are left for new ones once they take many more probes than when
        they were trained. Of new ones the first axes that do are taken: with too few, rows that
        are reached are not kept.

        Args:
            exact: [S, R] the sample's nearest rows.
            num_candidates: K of the searches to come.
            each: From :func:`~miner.index.threads.workers`.
            queries: The sample, where it is no rows of these.

        Raises:
            SearchError: There are 2**32 rows or more.
        """
        at = exact.row_ids_AK.shape[1]
        target = self._config.target_recall
        aim = target + AIM_HIGHER * (1 - target)
        warm = self.warm_start()
        known_NW = warm.neighbours_NW if warm else None
        for centroids in self._proposed():
            self._join = None  # frees the lists before
            self._join = ListJoin.build(
                self._embeddings_ND,
                self._identities,
                centroids,
                each,
                is_coded=self._is_coded,
                seed=self._seed,
            )
            depths = Depths.of(self._join, exact, each, queries)
            self._unaided_probes = depths.reaching(aim)
            if self._warm is not None and centroids is self._warm.centroids:
                if self._unaided_probes > STALE * self._warm.num_probes:
                    continue
                self._unaided_probes = self._warm.num_probes
            if known_NW is not None:
                depths = depths.helped_by(known_NW)
            self._num_probes = self._config.num_probes or depths.reaching(aim)
            found = self.search(exact.anchor_ids_A, num_candidates, each, queries=queries)
            reached = max(depths.share(self._num_probes), 1e-9)
            kept = max(measure_recall(found, exact, at).value / reached, 1e-9)
            if kept >= aim + (1 - aim) / 2:
                break
        if self._config.num_probes is None:
            self._num_probes = depths.reaching(min(1.0, aim / kept))

    def search(
        self,
        anchor_ids_A: I64,
        num_candidates: int,
        each: Each,
        on_progress: Progress | None = None,
        *,
        queries: Queries | None = None,
    ) -> Candidates:
        """As :meth:`~miner.index.list_join.ListJoin.search`, as deep as was chosen."""
        assert self._join is not None, "prepare comes first"
        known_NW = self._warm.neighbours_NW if self._warm else None
        self._num_probes = min(self._num_probes, self._join.centroids.num_lists)
        return self._join.search(
            anchor_ids_A,
            num_candidates,
            self._num_probes,
            each,
            on_progress,
            known_NW=known_NW,
            queries=queries,
        )

    def deepen(self, exact: Candidates, each: Each, queries: Queries | None = None) -> bool:
        """Probe twice as many lists from now on, or as many as these nearest rows need.

        Returns:
            Whether there were more lists to probe.
        """
        assert self._join is not None, "prepare comes first"
        if self._num_probes >= self._join.centroids.num_lists:
            return False
        enough = Depths.of(self._join, exact, each, queries).reaching(self._config.target_recall)
        self._num_probes = max(2 * self._num_probes, enough)
        return True

    def remember(self, found: Candidates) -> None:
        """Keep in mind what was found, and let the lists go: the memory is needed elsewhere."""
        assert self._join is not None, "prepare comes first"
        before = self.warm_start()
        rows = found.anchor_ids_A, found.row_ids_AK
        self._learnt = (before, self._join.centroids, self._unaided_probes, *rows)
        self._join = None
        give_back()

    def warm_start(self) -> WarmStart | None:
        """What the next search over these rows can start from; None if there is nothing.

        Made of what was found only when it is asked for, since that may still be in use.
        """
        if self._learnt is not None:
            self._warm = WarmStart.after(*self._learnt, len(self._embeddings_ND))
            self._warm.require_fit(*self._embeddings_ND.shape)  # whoever got it may have changed it
            self._learnt = None
        return self._warm

    def describe(self) -> dict[str, int | float | str]:
        """What the manifest says: lists, probes, axes, and whether an earlier search helped."""
        assert self._join is not None, "prepare comes first"
        return {
            "kind": "ivfpq" if self._is_coded else "ivf",
            "num_lists": self._join.centroids.num_lists,
            "num_probes": self._num_probes,
            "num_axes": self._join.centroids.projection.num_axes,
            "start": "cold" if self._warm is None else "warm",
        }

    def _proposed(self) -> Iterator[Centroids]:
        """Centroids to search with: those of the last search, then newly trained ones."""
        wanted = self._config.num_lists
        if self._warm is not None and (
            wanted is None or abs(self._warm.centroids.num_lists - wanted) <= FEW_LISTS * wanted
        ):
            yield self._warm.centroids
        num_rows, dim = self._embeddings_ND.shape
        if num_rows > MAX_ROWS:
            raise SearchError(f"an index of kind ivf takes {MAX_ROWS} rows, got {num_rows}")
        num_lists = min(self._config.num_lists or default_num_lists(num_rows), num_rows)
        for energy in ENERGIES:
            projection = Projection.whole(dim)
            if energy < 1:
                projection = Projection.fit(self._embeddings_ND, energy, self._seed)
            yield Centroids.train(self._embeddings_ND, projection, num_lists, self._seed)
