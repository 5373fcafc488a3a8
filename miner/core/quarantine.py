"""Pairs of identities that look like one: found in the candidates, tested, listed with evidence.

Label noise (one person under two names) and copies (Latin A, Greek Alpha) show as identities whose
samples are each other's nearest neighbours. As negatives they teach the model to tell apart what
is the same.

    candidates -> suspects: another identity is nearer to an anchor than its own samples
               -> test on the samples of both: do they mix as one identity would? -> pairs

Pure NumPy. Shape legend: A = anchors, C = candidates looked at, Q = pairs, W = rows of a pair,
D = dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from miner.core.config import QuarantineConfig
from miner.core.pairs import IdentityPairs
from miner.core.positives import guard_similarities
from miner.core.ragged import bounded_blocks, ragged_arange
from miner.core.rng import Stream, draw_bits, stream_key
from miner.types import Candidates, IdentityTable

__all__ = ["Quarantine", "Suspicion", "inspect_identities"]

_COLUMNS = 16
"""Candidates per anchor in which suspects are looked for: nearer ones than all its own samples."""
_MAX_PAIRS = 1 << 15
_MAX_OWN = 1 << 12
_BLOCK_FLOATS = 1 << 21
_TIE = np.float32(1e-6)
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
        num_mutual_Q: [Q] int64, samples of the left identity that are nearest to a sample of the
            right one, and it to them.
        similarity_Q: [Q] float64, mean similarity of samples to their nearest of the other
            identity.
        p_value_Q: [Q] float64, bound on the chance that different identities mix as much, over all
            pairs looked at.
    """

    left_Q: I64
    right_Q: I64
    num_left_Q: I64
    num_right_Q: I64
    mixing_Q: F64
    num_mutual_Q: I64
    similarity_Q: F64
    p_value_Q: F64

    def __len__(self) -> int:
        return len(self.left_Q)

    def take(self, chosen: npt.NDArray[np.bool_] | I64) -> Suspicion:
        """The pairs under a mask, or at the given positions in that order."""
        return Suspicion(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What an inspection found.

    Attributes:
        suspicion: The pairs that passed the test.
        num_tested: Pairs that were looked at.
        confusion_rate: Share of anchors whose nearest row is of another identity: how often
            different identities mix in this embedding.
    """

    suspicion: Suspicion
    num_tested: int
    confusion_rate: float


def inspect_identities(  # noqa: PLR0913 - what the result is a function of
    candidates: Candidates,
    similarities_ap_A: F32,
    embeddings_ND: F32,
    identities: IdentityTable,
    *,
    config: QuarantineConfig,
    known: IdentityPairs,
    seed: int,
) -> Quarantine:
    """Find the pairs of identities that mix as only one identity would.

    A pair is suspected if an anchor of one has a row of the other nearer than all samples of its
    own, or if it is ``known`` from an earlier round. It is tested on up to ``max_rows`` samples of
    each: T of the n = n_i + n_j samples have their nearest one (ties count in part) across. It is
    listed if

    - ``T / (2 n_i n_j / (n - 1))`` is at least ``min_mixing``: the denominator is the expected T of
      one identity cut in two at random;
    - at least one sample of each is the other's nearest (they are mutual neighbours);
    - the chance of T or more such samples among n, each with probability ``confusion_rate``, times
      the number of pairs tested, is at most ``max_p_value``.

    Guarantee: a pure function of the *set* of anchors and the other arguments. At most 2**15 pairs
    are tested, those that most anchors point to. Anchors of identities with more than 4096 samples
    point to none (their own samples are too many to compare with), but others may point to these.

    Args:
        candidates: [A, K] nearest rows of other identities.
        similarities_ap_A: [A] of each anchor to any other sample of its identity: who is nearer to
            it than its nearest other identity needs no further look.
        embeddings_ND: [N, D] float32 L2-normalised.
        identities: The catalog's identities.
        config: Thresholds.
        known: Pairs to test again.
        seed: The round log's seed; draws the samples of identities larger than ``max_rows``.

    Cost: O(A (n_i + C)) products for the anchors that look suspicious, O(Q W^2 D) for the test.
    Source: Schilling, Multivariate two-sample tests based on nearest neighbors (1986); the tail of
        the binomial by Chernoff (1952), over all pairs by Bonferroni.
    """
    confused_A, left_n, right_n = _find_pointing(
        candidates, similarities_ap_A, embeddings_ND, identities
    )
    confusion_rate = float(confused_A.mean()) if len(confused_A) else 0.0
    pairs = _most_pointed(left_n, right_n, known, identities.num_identities)
    if not len(pairs):
        return Quarantine(_none(), 0, confusion_rate)
    shown = _shown_rows(identities, pairs, config.max_rows, seed)
    tested = _test(pairs, embeddings_ND, shown, confusion_rate)
    listed = tested.take(
        (tested.mixing_Q >= config.min_mixing)
        & (tested.num_mutual_Q > 0)
        & (tested.p_value_Q <= config.max_p_value)
    )
    order_Q = np.lexsort((listed.right_Q, listed.left_Q, -listed.similarity_Q, listed.p_value_Q))
    return Quarantine(listed.take(order_Q), len(pairs), confusion_rate)


def _find_pointing(
    candidates: Candidates,
    similarities_ap_A: F32,
    embeddings_ND: F32,
    identities: IdentityTable,
) -> tuple[npt.NDArray[np.bool_], I64, I64]:
    """Anchors whose nearest row is of another identity; and every (own, nearer other) identity."""
    ids_A = candidates.anchor_ids_A
    nearest_A = candidates.similarities_AK[:, 0]
    big_A = identities.sizes_I[identities.identity_ids_N[ids_A]] > _MAX_OWN
    suspicious = np.flatnonzero((nearest_A >= similarities_ap_A - _TIE) & ~big_A)
    own_A = np.full(len(ids_A), np.inf, np.float32)
    own_A[suspicious] = guard_similarities(embeddings_ND, identities, ids_A[suspicious], "max")
    confused_A = nearest_A >= own_A - _TIE
    where = np.flatnonzero(confused_A)
    rows_ac = candidates.row_ids_AK[where, :_COLUMNS]
    nearer_ac = candidates.similarities_AK[where, :_COLUMNS] >= own_A[where, None] - _TIE
    nearer_ac &= rows_ac >= 0
    left_n = np.repeat(identities.identity_ids_N[ids_A[where]], nearer_ac.sum(1))
    right_n = identities.identity_ids_N[rows_ac[nearer_ac]]
    different = left_n != right_n
    return confused_A, left_n[different].astype(np.int64), right_n[different].astype(np.int64)


def _most_pointed(left_n: I64, right_n: I64, known: IdentityPairs, num_identities: int) -> I64:
    """[Q] ascending keys of the pairs to test."""
    low_n, high_n = np.minimum(left_n, right_n), np.maximum(left_n, right_n)
    keys, counts = np.unique(low_n * num_identities + high_n, return_counts=True)
    if len(keys) > _MAX_PAIRS:
        keys = keys[np.lexsort((keys, -counts))[:_MAX_PAIRS]]
    return np.union1d(keys, known.keys_Q)


def _test(keys_Q: I64, embeddings_ND: F32, shown: IdentityTable, rate: float) -> Suspicion:
    """The evidence of each pair, from the samples of ``shown``."""
    left_Q, right_Q = np.divmod(keys_Q, shown.num_identities)
    num_left_Q, num_right_Q = shown.sizes_I[left_Q], shown.sizes_I[right_Q]
    rows_Q = num_left_Q + num_right_Q
    hits_Q, similarity_Q = np.empty(len(keys_Q)), np.empty(len(keys_Q))
    num_mutual_Q = np.empty(len(keys_Q), np.int64)
    for part in _blocks_of_alike(rows_Q, embeddings_ND.shape[1]):
        pair = _PairBlock.gather(shown, left_Q[part], right_Q[part])
        hits_Q[part], num_mutual_Q[part], similarity_Q[part] = pair.compare(embeddings_ND)
    # Of one identity cut in two, as many samples would have their nearest one across.
    expected_Q = 2.0 * num_left_Q * num_right_Q / np.maximum(rows_Q - 1, 1)
    return Suspicion(
        left_Q=left_Q,
        right_Q=right_Q,
        num_left_Q=num_left_Q,
        num_right_Q=num_right_Q,
        mixing_Q=hits_Q / expected_Q,
        num_mutual_Q=num_mutual_Q,
        similarity_Q=similarity_Q,
        p_value_Q=np.minimum(1.0, len(keys_Q) * _tail(hits_Q, rows_Q, rate)),
    )


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

    def compare(self, embeddings_ND: F32) -> tuple[F64, I64, F64]:
        """[Q] samples with their nearest one across, mutual pairs, mean similarity across."""
        inside_QW = self.rows_QW >= 0
        vectors_QWD = embeddings_ND[self.rows_QW]
        similar_QWW = vectors_QWD @ vectors_QWD.transpose(0, 2, 1)
        outside_QWW = ~(inside_QW[:, :, None] & inside_QW[:, None, :])
        outside_QWW |= np.eye(inside_QW.shape[1], dtype=np.bool_)
        similar_QWW[outside_QWW] = -np.inf
        across_QWW = self.is_right_QW[:, :, None] != self.is_right_QW[:, None, :]
        nearest_QWW = (similar_QWW >= similar_QWW.max(2, keepdims=True) - _TIE) & ~outside_QWW
        num_nearest_QW = np.maximum(nearest_QWW.sum(2), 1)
        hits_Q = ((nearest_QWW & across_QWW).sum(2) / num_nearest_QW).sum(1)
        mutual_QWW = nearest_QWW & nearest_QWW.transpose(0, 2, 1) & across_QWW
        num_mutual_Q = (mutual_QWW.any(2) & ~self.is_right_QW).sum(1)
        best_QW = np.where(across_QWW, similar_QWW, -np.inf).max(2)
        similarity_Q = np.where(inside_QW, best_QW, 0.0).sum(1) / inside_QW.sum(1)
        return hits_Q, num_mutual_Q, similarity_Q.astype(np.float64)


def _shown_rows(identities: IdentityTable, keys_Q: I64, max_rows: int, seed: int) -> IdentityTable:
    """The table of the samples to look at: of big identities a seeded draw, of others all."""
    wanted_I = np.unique(np.concatenate(np.divmod(keys_Q, identities.num_identities)))
    sizes = identities.sizes_I[wanted_I]
    position, owner = ragged_arange(sizes)
    rows = identities.rows_N[identities.offsets_I1[wanted_I][owner] + position]
    bits = draw_bits(stream_key(seed, 0, Stream.SUSPECT_ROWS), rows)
    order = np.lexsort((bits, owner))
    rows, owner = rows[order], owner[order]
    kept = position < max_rows  # positions count the same in any order within an identity
    rows, owner = rows[kept], wanted_I[owner[kept]]
    counts_I = np.bincount(owner, minlength=identities.num_identities)
    offsets_I1 = np.concatenate(([0], np.cumsum(counts_I))).astype(np.int64)
    return IdentityTable(identities.identity_ids_N, offsets_I1, rows)


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


def _none() -> Suspicion:
    nothing, none = np.empty(0, np.int64), np.empty(0)
    return Suspicion(nothing, nothing, nothing, nothing, none, nothing, none, none)
