"""What an index is, and the exact one.

It knows neither identities nor anchors. Shape legend: N = rows, D = dimensions, Q = queries,
k = neighbours.
"""

from __future__ import annotations

from typing import Protocol

import faiss
import numpy as np
import numpy.typing as npt

from miner.errors import SearchError

__all__ = ["FlatIndex", "Index"]

NORM_TOLERANCE = 1e-3
CHECKED_ROWS = 65_536


class Index(Protocol):
    """Finds the rows with the largest inner product."""

    def build(self, embeddings_ND: npt.NDArray[np.float32]) -> None:
        """Take the gallery; row ``i`` of ``embeddings_ND`` is found as row id ``i``."""

    def search(
        self, queries_QD: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Give similarities [Q, k], best first, and row ids [Q, k]; -inf and -1 where N < k."""

    def describe(self) -> dict[str, int | str]:
        """What a round's manifest says about the index: kind, rows, dimensions."""


class FlatIndex:
    """Compares every query with every row: exact, up to float32 rounding and ties."""

    def __init__(self, num_threads: int | None = None) -> None:
        """`num_threads` of FAISS in this process; None leaves them as they are."""
        self._num_threads = num_threads
        self._embeddings_ND = np.empty((0, 0), np.float32)

    def build(self, embeddings_ND: npt.NDArray[np.float32]) -> None:
        """Check the gallery and keep a reference to it: nothing is copied if it is contiguous.

        Raises:
            SearchError: The array is empty, not two-dimensional or not float32, or rows are not
                of length 1 (NaN and infinity included); the text names the first of them.

        Cost: one pass over the rows.
        """
        if embeddings_ND.ndim != 2 or embeddings_ND.dtype != np.float32 or not embeddings_ND.size:
            raise SearchError(
                "an index needs a non-empty float32 array [rows, dimensions], got "
                f"{embeddings_ND.dtype} {list(embeddings_ND.shape)}"
            )
        _check_lengths(embeddings_ND)
        self._embeddings_ND = np.ascontiguousarray(embeddings_ND)

    def search(
        self, queries_QD: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The ``k`` rows with the largest inner products per query, best first.

        Raises:
            SearchError: The index is not built, ``k`` is below 1, or the queries have other
                dimensions than the gallery.

        Cost: O(Q N D) time, Q k result entries.
        """
        num_rows, dim = self._embeddings_ND.shape
        if k < 1 or queries_QD.ndim != 2 or queries_QD.shape[1] != dim or not num_rows:
            raise SearchError(
                f"cannot search k={k} neighbours of queries {list(queries_QD.shape)} in a gallery "
                f"of {num_rows} rows of {dim} dimensions"
            )
        if self._num_threads is not None:
            faiss.omp_set_num_threads(self._num_threads)
        found_k = min(k, num_rows)
        similarities_Qk, row_ids_Qk = faiss.knn(
            queries_QD, self._embeddings_ND, found_k, metric=faiss.METRIC_INNER_PRODUCT
        )
        missing = ((0, 0), (0, k - found_k))
        return (
            np.pad(similarities_Qk, missing, constant_values=-np.inf),
            np.pad(row_ids_Qk, missing, constant_values=-1),
        )

    def describe(self) -> dict[str, int | str]:
        """Kind, rows and dimensions."""
        num_rows, dim = self._embeddings_ND.shape
        return {"kind": "flat", "num_rows": num_rows, "dim": dim}


def _check_lengths(embeddings_ND: npt.NDArray[np.float32]) -> None:
    offenders: list[int] = []
    for begin in range(0, len(embeddings_ND), CHECKED_ROWS):
        block_BD = embeddings_ND[begin : begin + CHECKED_ROWS]
        lengths_B = np.sqrt(np.einsum("bd,bd->b", block_BD, block_BD))
        # Written so that NaN is an offender too.
        wrong_B = ~(np.abs(lengths_B - 1) <= NORM_TOLERANCE)
        offenders.extend((begin + np.flatnonzero(wrong_B)).tolist())
    if offenders:
        lengths = [float(np.linalg.norm(embeddings_ND[row])) for row in offenders[:3]]
        raise SearchError(
            f"{len(offenders)} of {len(embeddings_ND)} embeddings are not of length 1, the first "
            f"are rows {offenders[:3]} with lengths {lengths}; normalise them, and remove NaN"
        )
