"""The evidence that pairs of identities are one: copies, and neighbours across.

Pure NumPy; finds no pairs itself. Shape legend: N = rows of the catalog, D = dimensions, Q = pairs,
W = samples of both identities of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from miner.core.parallel import do_blocks
from miner.core.ragged import bounded_blocks
from miner.types import IdentityTable

__all__ = ["TIE", "Suspicion", "compare_pairs", "no_suspicion", "with_p_values"]

_BLOCK_FLOATS = 1 << 21
TIE = np.float32(1e-6)
"""Rounding of a similarity in float32: what differs by less is equally near."""

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The evidence against pairs of identities, in columns, strongest first.

    Attributes:
        left_Q, right_Q: [Q] int64 identities, ``left < right``.
        num_left_Q, num_right_Q: [Q] int64 samples of each that were looked at.
        mixing_Q: [Q] float64, share of these samples whose nearest one is of the other identity,
            as a multiple of the share that one identity cut in two would show.
        num_copies_Q: [Q] int64, samples of each that have a copy in the other: the lesser number.
        num_mutual_Q: [Q] int64, samples of the left identity that are nearest to a sample of the
            right one, and it to them.
        similarity_Q: [Q] float64, mean similarity of samples to their nearest of the other
            identity.
        p_value_Q: [Q] float64, bound on the chance that a pair of different identities mixes as
            much.
    """

    left_Q: I64
    right_Q: I64
    num_left_Q: I64
    num_right_Q: I64
    mixing_Q: F64
    num_copies_Q: I64
    num_mutual_Q: I64
    similarity_Q: F64
    p_value_Q: F64

    def __len__(self) -> int:
        return len(self.left_Q)

    def take(self, chosen: npt.NDArray[np.bool_] | I64) -> Suspicion:
        """The pairs under a mask, or at the given positions in that order."""
        return Suspicion(*(getattr(self, field.name)[chosen] for field in fields(self)))


def no_suspicion() -> Suspicion:
    """An empty list."""
    nothing, none = np.empty(0, np.int64), np.empty(0)
    return Suspicion(nothing, nothing, nothing, nothing, none, nothing, nothing, none, none)


def compare_pairs(
    keys_Q: I64, embeddings_ND: F32, shown: IdentityTable, copy_similarity: float
) -> Suspicion:
    """Compare the samples of both identities of each pair; p values are 1 as yet.

    Args:
        keys_Q: [Q] int64, ``left * num_identities + right``.
        embeddings_ND: [N, D] float32 L2-normalised.
        shown: The samples to look at of each identity.
        copy_similarity: From which on a sample is a copy of another.

    Cost: O(Q W^2 D) time, some 50 MB in each thread.
    """
    copy = np.float32(copy_similarity)
    left_Q, right_Q = np.divmod(keys_Q, shown.num_identities)
    num_left_Q, num_right_Q = shown.sizes_I[left_Q], shown.sizes_I[right_Q]
    rows_Q = num_left_Q + num_right_Q
    hits_Q, similarity_Q = np.empty(len(keys_Q)), np.empty(len(keys_Q))
    num_mutual_Q, num_copies_Q = np.empty((2, len(keys_Q)), np.int64)

    def work(part: I64) -> None:
        pair = _PairBlock.gather(shown, left_Q[part], right_Q[part])
        found = pair.compare(embeddings_ND, copy)
        hits_Q[part], num_mutual_Q[part], num_copies_Q[part], similarity_Q[part] = found

    do_blocks(work, _blocks_of_alike(rows_Q, embeddings_ND.shape[1]))
    return Suspicion(
        left_Q=left_Q,
        right_Q=right_Q,
        num_left_Q=num_left_Q,
        num_right_Q=num_right_Q,
        mixing_Q=hits_Q / _expected(num_left_Q, num_right_Q),
        num_copies_Q=num_copies_Q,
        num_mutual_Q=num_mutual_Q,
        similarity_Q=similarity_Q,
        p_value_Q=np.ones(len(keys_Q)),
    )


def with_p_values(found: Suspicion, chance: float) -> Suspicion:
    """The same evidence with its p values.

    Args:
        found: Pairs.
        chance: Of a sample to have its nearest one across if the identities are different.
    """
    rows_Q = found.num_left_Q + found.num_right_Q
    hits_Q = found.mixing_Q * _expected(found.num_left_Q, found.num_right_Q)
    return replace(found, p_value_Q=_tail(hits_Q, rows_Q, chance))


def _expected(num_left_Q: I64, num_right_Q: I64) -> F64:
    """Of one identity cut in two at random, samples that have their nearest one across."""
    both_Q = num_left_Q + num_right_Q
    expected_Q: F64 = 2.0 * num_left_Q * num_right_Q / np.maximum(both_Q - 1, 1)
    return expected_Q


@dataclass(frozen=True, slots=True)
class _PairBlock:
    """The samples of some pairs: row ids, -1 at the end, and which are the right identity's."""

    rows_QW: I64
    is_right_QW: npt.NDArray[np.bool_]

    @classmethod
    def gather(cls, shown: IdentityTable, left_Q: I64, right_Q: I64) -> _PairBlock:
        counts_Q2 = shown.sizes_I[np.stack((left_Q, right_Q), 1)]
        width = int(counts_Q2.sum(1).max())
        place_QW = np.arange(width)[None, :]
        is_right_QW = place_QW >= counts_Q2[:, :1]
        begins_Q2 = shown.offsets_I1[np.stack((left_Q, right_Q), 1)]
        index_QW = np.where(
            is_right_QW, begins_Q2[:, 1:] + place_QW - counts_Q2[:, :1], begins_Q2[:, :1] + place_QW
        )
        inside_QW = place_QW < counts_Q2.sum(1)[:, None]
        rows_QW = np.where(inside_QW, shown.rows_N[np.where(inside_QW, index_QW, 0)], -1)
        return cls(rows_QW, is_right_QW)

    def compare(self, embeddings_ND: F32, copy: np.float32) -> tuple[F64, I64, I64, F64]:
        """[Q] samples with their nearest one across, mutual ones, copies, mean similarity."""
        inside_QW = self.rows_QW >= 0
        vectors_QWD = embeddings_ND[self.rows_QW]
        similar_QWW = vectors_QWD @ vectors_QWD.transpose(0, 2, 1)
        similar_QWW[~inside_QW] = -np.inf
        similar_QWW.transpose(0, 2, 1)[~inside_QW] = -np.inf
        np.einsum("qww->qw", similar_QWW)[:] = -np.inf  # nothing is its own neighbour
        across_QWW = self.is_right_QW[:, :, None] != self.is_right_QW[:, None, :]
        best_QW = similar_QWW.max(2)
        nearest_QWW = similar_QWW >= np.where(best_QW > -np.inf, best_QW - TIE, np.inf)[:, :, None]
        nearest_across_QWW = nearest_QWW & across_QWW
        num_nearest_QW = np.maximum(nearest_QWW.sum(2), 1)
        hits_Q = (nearest_across_QWW.sum(2) / num_nearest_QW).sum(1)
        mutual_QWW = nearest_across_QWW & nearest_QWW.transpose(0, 2, 1)
        num_mutual_Q = (mutual_QWW.any(2) & ~self.is_right_QW).sum(1)
        best_QW = np.where(across_QWW, similar_QWW, -np.inf).max(2)
        has_copy_QW = (best_QW >= copy) & inside_QW
        num_right_Q = (has_copy_QW & self.is_right_QW).sum(1)
        num_copies_Q = np.minimum(has_copy_QW.sum(1) - num_right_Q, num_right_Q)
        similarity_Q = np.where(inside_QW, best_QW, 0.0).sum(1) / inside_QW.sum(1)
        return hits_Q, num_mutual_Q, num_copies_Q, similarity_Q.astype(np.float64)


def _blocks_of_alike(rows_Q: I64, dim: int) -> Iterator[I64]:
    """Positions of pairs of about the same number of rows, as many as fit into memory together."""
    order_Q = np.argsort(rows_Q, kind="stable")
    # The last pair of a block is its widest, and all are padded to it; halving keeps padding low.
    cost_Q = rows_Q[order_Q] * np.maximum(rows_Q[order_Q], dim)
    for part in bounded_blocks(cost_Q, _BLOCK_FLOATS):
        yield order_Q[part]


def _tail(hits_Q: F64, rows_Q: I64, rate: float) -> F64:
    """Chernoff's bound on the chance of at least ``hits`` among ``rows`` trials at ``rate``."""
    share_Q = np.clip(hits_Q / rows_Q, 0.0, 1.0)
    rate = float(np.clip(rate, 1e-9, 1.0 - 1e-9))
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.where(share_Q > 0, share_Q * np.log(share_Q / rate), 0.0)
        below = np.where(share_Q < 1, (1 - share_Q) * np.log((1 - share_Q) / (1 - rate)), 0.0)
    tail_Q: F64 = np.where(share_Q > rate, np.exp(-rows_Q * (above + below)), 1.0)
    return tail_Q
