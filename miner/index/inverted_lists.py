"""Lists of rows that lie near each other: training, assignment.

Lists are trained in the leading axes of the rows, and stand in such an order that near ones have
near numbers. It knows neither identities nor anchors. Shape legend: N = rows, D = dimensions,
P = axes, L = lists, C = coarse clusters, S = rows of the training sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from miner.index.projection import Projection
from miner.index.threads import Each

__all__ = ["Centroids", "default_num_lists"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SAMPLE_PER_LIST = 32
ITERATIONS = 8
MIN_ROWS_PER_LIST = 16
MAX_LISTS = 2**16
CHUNK = 2048
"""Rows compared with centroids at a time: bounds a chunk's similarities to 32 MB."""
SMALLEST_PART, POWER_ITERATIONS = 4, 6
SHORTLIST = 4
"""Rows are compared with one in four centroids, those nearest to their coarse cluster."""
MIN_SHORTLISTED = 256


@dataclass(frozen=True, slots=True)
class Centroids:
    """What is trained, and lasts from round to round.

    Attributes:
        projection: Of rows to the axes that lists are made in.
        coarse_CP: [C, P] float32 of length 1.
        fine_LP: [L, P] float32 of length 1, the centroids of the lists.
    """

    projection: Projection
    coarse_CP: F32
    fine_LP: F32

    @classmethod
    def train(
        cls, embeddings_ND: F32, projection: Projection, num_lists: int, seed: int
    ) -> Centroids:
        """K-means in two levels of a seeded sample: coarse clusters, then lists within each."""
        rng = np.random.Generator(np.random.Philox(seed))
        wanted = min(len(embeddings_ND), num_lists * SAMPLE_PER_LIST)
        sample = np.sort(rng.choice(len(embeddings_ND), wanted, replace=False))
        sample_SP = projection(embeddings_ND[sample])
        coarse_CP = _k_means(sample_SP, max(1, round(num_lists**0.5)), seed)
        coarse_S = (sample_SP @ coarse_CP.T).argmax(axis=1)
        shares_C = np.bincount(coarse_S, minlength=len(coarse_CP)) * (num_lists / wanted)
        parts = []
        for cluster in np.flatnonzero(shares_C):
            members_SP = sample_SP[coarse_S == cluster]
            parts.append(_k_means(members_SP, max(1, round(shares_C[cluster])), seed))
        fine_LP = np.concatenate(parts)
        order_L = np.concatenate(_by_bisection(fine_LP, np.arange(len(fine_LP))))
        return cls(projection, coarse_CP, fine_LP[order_L])

    @property
    def num_lists(self) -> int:
        """L; a list may be empty."""
        return len(self.fine_LP)

    def assign(self, vectors_nP: F32, each: Each) -> npt.NDArray[np.int32]:
        """[n] the list of each row: that of its nearest centroid.

        A row is compared with a quarter of the centroids, those nearest to the coarse cluster that
        it is nearest to; for a row in a hundred or less the nearest centroid is not among them.

        Cost: O(n L P / 4).
        """
        coarse_n = np.empty(len(vectors_nP), np.int32)
        list_ids_n = np.empty(len(vectors_nP), np.int32)

        def coarsely(begin: int) -> None:
            scores_nC = vectors_nP[begin : begin + CHUNK] @ self.coarse_CP.T
            coarse_n[begin : begin + CHUNK] = scores_nC.argmax(axis=1)

        each(coarsely, range(0, len(vectors_nP), CHUNK))
        rows_n = np.argsort(coarse_n, kind="stable")
        ends_C = np.cumsum(np.bincount(coarse_n, minlength=len(self.coarse_CP)))

        def finely(cluster: int) -> None:
            near_L = np.argsort(-(self.fine_LP @ self.coarse_CP[cluster]), kind="stable")
            short = np.sort(near_L[: max(MIN_SHORTLISTED, self.num_lists // SHORTLIST)])
            near_LP = self.fine_LP[short]
            rows = rows_n[ends_C[cluster - 1] if cluster else 0 : ends_C[cluster]]
            for begin in range(0, len(rows), CHUNK):
                part = rows[begin : begin + CHUNK]
                list_ids_n[part] = short[(vectors_nP[part] @ near_LP.T).argmax(axis=1)]

        each(finely, range(len(self.coarse_CP)))
        return list_ids_n


def default_num_lists(num_rows: int) -> int:
    """Grows with ``N ** 0.7``: what each list costs is small beside searching it."""
    return max(1, min(int(num_rows**0.7 / 3), num_rows // MIN_ROWS_PER_LIST, MAX_LISTS))


def _k_means(sample_SP: F32, num_clusters: int, seed: int) -> F32:
    num_clusters = min(num_clusters, len(sample_SP))
    if num_clusters == 1:
        return _unit(sample_SP.mean(axis=0, keepdims=True))
    k_means = faiss.Kmeans(
        sample_SP.shape[1],
        num_clusters,
        niter=ITERATIONS,
        spherical=True,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample_SP),
    )
    k_means.train(sample_SP)
    return _unit(np.asarray(k_means.centroids))


def _by_bisection(centroids_LP: F32, lists: I64) -> list[I64]:
    """The lists in parts that lie together, at every scale: halved along their widest direction."""
    if len(lists) <= SMALLEST_PART:
        return [lists]
    centred_LP = centroids_LP[lists] - centroids_LP[lists].mean(axis=0)
    widest_P = centred_LP[np.square(centred_LP).sum(axis=1).argmax()]
    for _ in range(POWER_ITERATIONS):
        widest_P = centred_LP.T @ (centred_LP @ widest_P)
        widest_P /= max(float(np.linalg.norm(widest_P)), 1e-12)
    along = lists[np.argsort(centred_LP @ widest_P, kind="stable")]
    half = len(along) // 2
    return _by_bisection(centroids_LP, along[:half]) + _by_bisection(centroids_LP, along[half:])


def _unit(vectors_CP: F32) -> F32:
    lengths_C = np.linalg.norm(vectors_CP, axis=1, keepdims=True)
    unit_CP: F32 = vectors_CP / np.maximum(lengths_C, np.float32(1e-12))
    return unit_CP
