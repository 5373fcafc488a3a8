"""The evidence that pairs of identities are one: copies, and neighbours across.

Finds no pairs itself. Shape legend: N = rows of the catalog, D = dimensions, Q = pairs,
W = samples of both identities of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, read_only
from miner.core.parallel import cut, do_blocks
from miner.types import IdentityTable

__all__ = ["TIE", "Suspicion", "compare_pairs", "no_suspicion", "with_p_values"]

_BLOCK = 1 << 8
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

    Cost: O(Q W^2 D) time.
    """
    copy, rows_ND = np.float32(copy_similarity), read_only(embeddings_ND)
    left_Q, right_Q = np.divmod(keys_Q, shown.num_identities)
    num_left_Q, num_right_Q = shown.sizes_I[left_Q], shown.sizes_I[right_Q]
    hits_Q, similarity_Q = np.empty(len(keys_Q)), np.empty(len(keys_Q))
    num_mutual_Q, num_copies_Q = np.empty((2, len(keys_Q)), np.int64)

    table = read_only(shown.rows_N), read_only(shown.offsets_I1)

    def work(part: slice) -> None:
        found: Any = hits_Q[part], num_mutual_Q[part], num_copies_Q[part], similarity_Q[part]
        _compare_all(rows_ND, *table, left_Q[part], right_Q[part], copy, *found)

    do_blocks(work, cut(len(keys_Q), _BLOCK))
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


@compiled
def _compare_all(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    embeddings_ND: F32,
    rows_N: I64,
    offsets_I1: I64,
    left_Q: I64,
    right_Q: I64,
    copy: Any,
    hits_Q: F64,
    num_mutual_Q: I64,
    num_copies_Q: I64,
    similarity_Q: F64,
) -> None:
    for q in range(len(left_Q)):
        left_rows = rows_N[offsets_I1[left_Q[q]] : offsets_I1[left_Q[q] + 1]]
        right_rows = rows_N[offsets_I1[right_Q[q]] : offsets_I1[right_Q[q] + 1]]
        rows_W = np.concatenate((left_rows, right_rows))
        found = _compare(embeddings_ND, rows_W, len(left_rows), copy)
        hits_Q[q], num_mutual_Q[q], num_copies_Q[q], similarity_Q[q] = found


@compiled
def _compare(
    embeddings_ND: F32, rows_W: I64, num_left: int, copy: Any
) -> tuple[float, int, int, float]:
    """Samples with their nearest one across, mutual ones, copies, mean similarity; of one pair."""
    num_rows = len(rows_W)
    vectors_WD = np.empty((num_rows, embeddings_ND.shape[1]), np.float32)
    similar_WW = np.empty((num_rows, num_rows), np.float32)
    best_W = np.full(num_rows, -np.inf, np.float32)
    across_W = np.full(num_rows, -np.inf, np.float32)
    for this in range(num_rows):
        vectors_WD[this] = embeddings_ND[rows_W[this]]
        similar_WW[this, this] = -np.inf  # nothing is its own neighbour
        for other in range(this):
            similarity = np.float32(0)
            for axis in range(vectors_WD.shape[1]):
                similarity += vectors_WD[this, axis] * vectors_WD[other, axis]
            similar_WW[this, other] = similar_WW[other, this] = similarity
            best_W[this] = max(best_W[this], similarity)
            best_W[other] = max(best_W[other], similarity)
            if (this < num_left) != (other < num_left):
                across_W[this] = max(across_W[this], similarity)
                across_W[other] = max(across_W[other], similarity)
    hits, similarity_sum = 0.0, 0.0
    num_mutual, num_copies_left, num_copies_right = 0, 0, 0
    for this in range(num_rows):
        num_nearest, num_across, is_mutual = 0, 0, False
        for other in range(num_rows):
            if similar_WW[this, other] < best_W[this] - TIE:
                continue
            num_nearest += 1
            if (this < num_left) != (other < num_left):
                num_across += 1
                is_mutual |= similar_WW[this, other] >= best_W[other] - TIE
        hits += num_across / max(1, num_nearest)
        num_mutual += is_mutual and this < num_left
        num_copies_left += across_W[this] >= copy and this < num_left
        num_copies_right += across_W[this] >= copy and this >= num_left
        similarity_sum += across_W[this]
    copies = min(num_copies_left, num_copies_right)
    return hits, num_mutual, copies, similarity_sum / num_rows


def _tail(hits_Q: F64, rows_Q: I64, rate: float) -> F64:
    """Chernoff's bound on the chance of at least ``hits`` among ``rows`` trials at ``rate``."""
    share_Q = np.clip(hits_Q / rows_Q, 0.0, 1.0)
    rate = float(np.clip(rate, 1e-9, 1.0 - 1e-9))
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.where(share_Q > 0, share_Q * np.log(share_Q / rate), 0.0)
        below = np.where(share_Q < 1, (1 - share_Q) * np.log((1 - share_Q) / (1 - rate)), 0.0)
    tail_Q: F64 = np.where(share_Q > rate, np.exp(-rows_Q * (above + below)), 1.0)
    return tail_Q
