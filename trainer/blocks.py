"""Rows sorted by identity, their similarities block by block, and exact nearest neighbours.

Pure NumPy. Shape legend: N = rows, I = identities, B = rows of a block, Q = queries among them,
D = dimensions, R = depth of a ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.errors import EvaluationError

__all__ = ["SortedRows", "nearest", "sort_rows"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SortedRows:
    """The rows sorted by the size of their identity, then identity, then row.

    Attributes:
        embeddings_ND: [N, D] float32.
        identities_N: [N] dense, ascending.
        offsets_I1: [I+1] int64; identity ``i`` owns rows ``offsets[i]:offsets[i+1]``.
        rows_N: [N] the row's place in the caller's arrays.
    """

    embeddings_ND: F32
    identities_N: I64
    offsets_I1: I64
    rows_N: I64

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.rows_N)

    @property
    def num_identities(self) -> int:
        """I."""
        return len(self.offsets_I1) - 1

    @property
    def sizes_I(self) -> I64:
        """[I] rows of each identity."""
        return np.diff(self.offsets_I1)

    @property
    def query_counts_I(self) -> I64:
        """[I] rows that are queries: all rows of identities with at least two."""
        return np.where(self.sizes_I >= 2, self.sizes_I, 0)

    def blocks(self, block: int) -> Iterator[tuple[int, int, F32]]:
        """(begin, end, similarities [B, N]) over all rows; a row's similarity to itself is -inf."""
        for begin in range(0, self.num_rows, block):
            end = min(begin + block, self.num_rows)
            similarities_BN = self.embeddings_ND[begin:end] @ self.embeddings_ND.T
            np.clip(similarities_BN, -1, 1, out=similarities_BN)
            similarities_BN[np.arange(end - begin), np.arange(begin, end)] = -np.inf
            yield begin, end, similarities_BN


def sort_rows(embeddings_ND: F32, identities_N: I64) -> SortedRows:
    """Check and sort; see :class:`SortedRows`.

    Raises:
        EvaluationError: Fewer than two identities, none with two rows, non-finite or unnormalised
            rows.
    """
    if len(embeddings_ND) != len(identities_N):
        raise EvaluationError(f"{len(embeddings_ND)} embeddings, {len(identities_N)} identities")
    lengths_N = np.linalg.norm(embeddings_ND.astype(np.float32, copy=False), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths_N - 1) < 1e-3))
    if len(wrong):
        raise EvaluationError(
            f"{len(wrong)} embeddings are not finite and of length 1: rows {wrong[:5].tolist()} "
            f"have lengths {lengths_N[wrong[:5]].tolist()}"
        )
    _, dense_N, sizes_I = np.unique(identities_N, return_inverse=True, return_counts=True)
    if len(sizes_I) < 2 or sizes_I.max() < 2:
        raise EvaluationError(
            f"{len(sizes_I)} identities of at most {sizes_I.max(initial=0)} rows: at least two "
            "identities are needed, one of them with two rows"
        )
    # By size, so that the rows of one block need about equally many neighbours.
    by_size_I = np.argsort(sizes_I, kind="stable")
    place_I = np.empty_like(by_size_I)
    place_I[by_size_I] = np.arange(len(by_size_I))
    rows_N = np.argsort(place_I[dense_N], kind="stable")
    return SortedRows(
        np.ascontiguousarray(embeddings_ND[rows_N], dtype=np.float32),
        place_I[dense_N][rows_N],
        np.concatenate(([0], np.cumsum(sizes_I[by_size_I]))),
        rows_N,
    )


def nearest(similarities_QN: F32, rows_N: I64, depth: int) -> I64:
    """[Q, depth] columns by descending similarity, ties by ascending ``rows_N``."""
    # One integer that sorts like (similarity, -row): float bits with the sign's order mended.
    bits_QN = (similarities_QN + np.float32(0)).view(np.int32).astype(np.int64)
    keys_QN = np.where(bits_QN < 0, np.int64(-(2**31)) - bits_QN, bits_QN) << 32
    keys_QN |= len(rows_N) - 1 - rows_N
    last = len(rows_N) - depth
    top_QR = np.argpartition(keys_QN, last, axis=1)[:, last:]
    order_QR = np.argsort(-np.take_along_axis(keys_QN, top_QR, axis=1), axis=1)
    return np.take_along_axis(top_QR, order_QR, axis=1)
