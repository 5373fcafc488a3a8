"""The gallery in lists of rows that lie near each other: training, assignment, order.

It knows neither identities nor anchors. Shape legend: N = rows, D = dimensions, L = lists,
S = rows of the training sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from miner.index.threads import Each

__all__ = ["InvertedLists", "default_num_lists"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SAMPLE_PER_LIST = 32
ITERATIONS = 8
MIN_ROWS_PER_LIST = 16
CHUNK = 2048
"""Rows compared with all centroids at a time: bounds a chunk's similarities to 32 MB."""


@dataclass(frozen=True, slots=True)
class InvertedLists:
    """Rows by list.

    Attributes:
        centroids_LD: [L, D] float32 of length 1.
        list_ids_N: [N] int32, each row's nearest centroid.
        rows_N: [N] int64 row ids by (list, row id).
        offsets_L1: [L+1] int64; list ``l`` holds ``rows_N[offsets_L1[l]:offsets_L1[l + 1]]``.
    """

    centroids_LD: F32
    list_ids_N: npt.NDArray[np.int32]
    rows_N: I64
    offsets_L1: I64

    @classmethod
    def build(cls, embeddings_ND: F32, num_lists: int, seed: int, each: Each) -> InvertedLists:
        """Train on a seeded sample, then put every row into the list of its nearest centroid.

        Cost: O(N L D) for the assignment; the training is small beside it, since centroids are
        trained in two levels.
        """
        centroids_LD = _train(embeddings_ND, num_lists, seed)
        list_ids_N = np.empty(len(embeddings_ND), np.int32)

        def assign(begin: int) -> None:
            rows_CD = np.asarray(embeddings_ND[begin : begin + CHUNK])
            list_ids_N[begin : begin + CHUNK] = (rows_CD @ centroids_LD.T).argmax(axis=1)

        each(assign, range(0, len(embeddings_ND), CHUNK))
        rows_N = np.argsort(list_ids_N, kind="stable")
        sizes_L = np.bincount(list_ids_N, minlength=len(centroids_LD))
        offsets_L1 = np.concatenate(([0], np.cumsum(sizes_L))).astype(np.int64)
        return cls(centroids_LD, list_ids_N, rows_N, offsets_L1)

    @property
    def num_lists(self) -> int:
        """Lists, L; some may be empty."""
        return len(self.centroids_LD)

    @property
    def sizes_L(self) -> I64:
        """[L] rows of each list."""
        return np.diff(self.offsets_L1)

    def rows_of(self, list_id: int) -> I64:
        """Row ids of a list, ascending."""
        return self.rows_N[self.offsets_L1[list_id] : self.offsets_L1[list_id + 1]]

    def rows_near(self, list_id: int, num_rows: int) -> tuple[I64, I64]:
        """The lists nearest to a list, itself first, with at least ``num_rows`` rows; the rows."""
        near_L = np.argsort(-(self.centroids_LD @ self.centroids_LD[list_id]), kind="stable")
        ends_L = np.cumsum(self.sizes_L[near_L])
        lists = near_L[: int(np.searchsorted(ends_L, num_rows)) + 1]
        return lists, np.concatenate([self.rows_of(int(near)) for near in lists])


def default_num_lists(num_rows: int) -> int:
    """About ``4 sqrt(N)``: comparing with centroids costs about as much as scanning lists."""
    return max(1, min(int(4 * num_rows**0.5), num_rows // MIN_ROWS_PER_LIST))


def _train(embeddings_ND: F32, num_lists: int, seed: int) -> F32:
    """Centroids of length 1 in two levels: k-means of a sample, then within each cluster."""
    rng = np.random.Generator(np.random.Philox(seed))
    wanted = min(len(embeddings_ND), num_lists * SAMPLE_PER_LIST)
    sample = np.sort(rng.choice(len(embeddings_ND), wanted, replace=False))
    sample_SD = np.ascontiguousarray(embeddings_ND[sample])
    if num_lists == 1:
        return _unit(sample_SD.mean(axis=0, keepdims=True))
    coarse_CD = _k_means(sample_SD, max(1, round(num_lists**0.5)), seed)
    coarse_S = (sample_SD @ coarse_CD.T).argmax(axis=1)
    shares_C = np.bincount(coarse_S, minlength=len(coarse_CD)) * (num_lists / wanted)
    parts = []
    for cluster in np.flatnonzero(shares_C):
        members_SD = sample_SD[coarse_S == cluster]
        parts.append(_k_means(members_SD, max(1, round(shares_C[cluster])), seed))
    return np.concatenate(parts)


def _k_means(sample_SD: F32, num_clusters: int, seed: int) -> F32:
    num_clusters = min(num_clusters, len(sample_SD))
    if num_clusters == 1:
        return _unit(sample_SD.mean(axis=0, keepdims=True))
    k_means = faiss.Kmeans(
        sample_SD.shape[1],
        num_clusters,
        niter=ITERATIONS,
        spherical=True,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample_SD),
    )
    k_means.train(sample_SD)
    return _unit(np.asarray(k_means.centroids))


def _unit(vectors_CD: F32) -> F32:
    lengths_C = np.linalg.norm(vectors_CD, axis=1, keepdims=True)
    unit_CD: F32 = vectors_CD / np.maximum(lengths_C, np.float32(1e-12))
    return unit_CD
