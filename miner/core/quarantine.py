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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.config import QuarantineConfig
from miner.core.pairs import IdentityPairs
from miner.core.positives import guard_similarities
from miner.core.ragged import ragged_arange
from miner.core.rng import Stream, draw_bits, stream_key
from miner.core.suspicion import TIE, Suspicion, compare_pairs, no_suspicion, with_p_values
from miner.types import Candidates, IdentityTable

__all__ = ["Quarantine", "inspect_identities"]

_COLUMNS = 16
"""Candidates per anchor in which suspects are looked for: nearer ones than all its own samples."""
_MAX_PAIRS = 1 << 15
_CROWDING_ROWS = 1 << 12
_COLLAPSED = 1e-3
"""Rows at random this near to each other differ by little more than rounding."""

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What an inspection found.

    Attributes:
        suspicion: The pairs that passed the test.
        num_tested: Pairs that were looked at.
        confusion_rate: Share of anchors whose nearest row is of another identity.
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
    each, n = n_i + n_j in all, and listed for one of two reasons.

    Copies: of the identity with fewer samples a share of ``min_copied`` has a sample of the other
    that is its copy, and as many of the other have one of it.

    Mixed: T of the n samples have their nearest one (ties count in part) across, and

    - ``T / (2 n_i n_j / (n - 1))`` is within ``mixing_tolerance`` of 1: the denominator is the
      expected T of one identity cut in two at random;
    - at least one sample of each is the other's nearest (they are mutual neighbours);
    - T or more of n samples are far above chance, which is the share of anchors that have such a
      neighbour, those of identities with copies left out: the binomial tail is as small as
      ``max_false_share`` asks for by the rule of Benjamini and Hochberg;
    - that chance is at most ``max_confusion``.

    In a crowded space all are similar: copies must be as near to each other relative to rows at
    random as ``copy_similarity`` says of a space around the origin, and there are none where rows
    at random are hardly farther.

    Guarantee: a pure function of the *set* of anchors and the other arguments. At most 2**15 pairs
    are tested beside the known ones, those to which the largest shares of their samples point. Of
    identities with more than ``max_rows`` samples the same seeded draw of them serves as anchors
    and in the test.

    Args:
        candidates: [A, K] nearest rows of other identities.
        similarities_ap_A: [A] of each anchor to any other sample of its identity: an anchor that is
            nearer to it than to all candidates needs no further look.
        embeddings_ND: [N, D] float32 L2-normalised.
        identities: The catalog's identities.
        config: Thresholds.
        known: Pairs to test again.
        seed: The round log's seed; draws the samples of identities larger than ``max_rows``.

    Cost: O(A (n_i + C)) products for the anchors that look suspicious, O(Q W^2 D) for the test.
    Source: Schilling, Multivariate two-sample tests based on nearest neighbors (1986); the tail of
        the binomial by Chernoff (1952); the share of false ones by Benjamini and Hochberg (1995).
    """
    shown = _table_of_shown(identities, config.max_rows, seed)
    is_shown_N = np.zeros(identities.num_rows, np.bool_)
    is_shown_N[shown.rows_N] = True
    looked_at = np.flatnonzero(is_shown_N[candidates.anchor_ids_A])
    confused, own = _find_confused(
        candidates, looked_at, similarities_ap_A, embeddings_ND, identities
    )
    confusion_rate = len(confused) / max(1, len(looked_at))
    pairs = _most_pointed(*_point(candidates, confused, own, identities), known, identities)
    if not len(pairs):
        return Quarantine(no_suspicion(), 0, confusion_rate)
    tested = compare_pairs(
        pairs, embeddings_ND, shown, _copy_similarity(candidates, embeddings_ND, config)
    )
    smaller_Q = np.minimum(tested.num_left_Q, tested.num_right_Q)
    copied_Q = tested.num_copies_Q >= config.min_copied * smaller_Q
    # Who has copies says nothing of how well the embedding tells identities apart.
    original_I = np.ones(identities.num_identities, np.bool_)
    original_I[tested.left_Q[copied_Q]] = original_I[tested.right_Q[copied_Q]] = False
    original_A = original_I[identities.identity_ids_N[candidates.anchor_ids_A]]
    chance = np.count_nonzero(original_A[confused]) / max(1, original_A[looked_at].sum())
    tested = with_p_values(tested, float(chance))
    mixed_Q = np.abs(tested.mixing_Q - 1.0) <= config.mixing_tolerance
    mixed_Q &= chance <= config.max_confusion
    mixed_Q &= tested.num_mutual_Q > 0
    mixed_Q &= tested.p_value_Q <= _threshold(tested.p_value_Q, config.max_false_share)
    listed = tested.take(copied_Q | mixed_Q)
    order_Q = np.lexsort((listed.right_Q, listed.left_Q, -listed.similarity_Q, listed.p_value_Q))
    return Quarantine(listed.take(order_Q), len(pairs), confusion_rate)


def _copy_similarity(candidates: Candidates, embeddings_ND: F32, config: QuarantineConfig) -> float:
    """From which similarity on samples of this space are copies; above 1 if it has collapsed."""
    rows = np.sort(candidates.anchor_ids_A)
    rows = rows[:: -(-len(rows) // _CROWDING_ROWS)]
    mean_D = embeddings_ND[rows].mean(0, dtype=np.float64)
    apart = 1.0 - float(mean_D @ mean_D)  # mean distance of rows at random, as 1 - similarity
    if apart < _COLLAPSED:
        return 2.0
    return 1.0 - max((1.0 - config.copy_similarity) * apart, float(TIE))


def _find_confused(
    candidates: Candidates,
    looked_at: I64,
    similarities_ap_A: F32,
    embeddings_ND: F32,
    identities: IdentityTable,
) -> tuple[I64, F32]:
    """Places of anchors whose nearest row is of another identity, and their nearest own sample."""
    nearest = candidates.similarities_AK[looked_at, 0]
    suspicious = nearest >= similarities_ap_A[looked_at] - TIE
    places, nearest = looked_at[suspicious], nearest[suspicious]
    # By identity, so that its samples are read once for all anchors.
    by_identity = np.argsort(identities.identity_ids_N[candidates.anchor_ids_A[places]])
    places, nearest = places[by_identity], nearest[by_identity]
    own = guard_similarities(embeddings_ND, identities, candidates.anchor_ids_A[places], "max")
    confused = nearest >= own - TIE
    return places[confused], own[confused]


def _point(
    candidates: Candidates, confused: I64, own: F32, identities: IdentityTable
) -> tuple[I64, I64]:
    """Every (own, other) identity of anchors to which the other one is nearer than their own."""
    rows_aC = candidates.row_ids_AK[confused, :_COLUMNS]
    nearer_aC = candidates.similarities_AK[confused, :_COLUMNS] >= own[:, None] - TIE
    nearer_aC &= rows_aC >= 0
    own_ids = identities.identity_ids_N[candidates.anchor_ids_A[confused]]
    left_n = np.repeat(own_ids, nearer_aC.sum(1)).astype(np.int64)
    right_n = identities.identity_ids_N[rows_aC[nearer_aC]].astype(np.int64)
    different_n = left_n != right_n
    return left_n[different_n], right_n[different_n]


def _most_pointed(
    left_n: I64, right_n: I64, known: IdentityPairs, identities: IdentityTable
) -> I64:
    """[Q] ascending keys of the pairs to test."""
    low_n, high_n = np.minimum(left_n, right_n), np.maximum(left_n, right_n)
    keys, counts = np.unique(low_n * identities.num_identities + high_n, return_counts=True)
    if len(keys) > _MAX_PAIRS:
        low, high = np.divmod(keys, identities.num_identities)
        shares = counts / (identities.sizes_I[low] + identities.sizes_I[high])
        keys = keys[np.lexsort((keys, -counts, -shares))[:_MAX_PAIRS]]
    return np.union1d(keys, known.keys_Q)


def _threshold(p_value_Q: F64, max_false_share: float) -> float:
    """The greatest p value up to which a list holds at most this share of false ones; or -1."""
    ascending = np.sort(p_value_Q)
    expected_false = ascending * len(ascending)
    fine = np.flatnonzero(expected_false <= max_false_share * np.arange(1, len(ascending) + 1))
    return float(ascending[fine[-1]]) if len(fine) else -1.0


def _table_of_shown(identities: IdentityTable, max_rows: int, seed: int) -> IdentityTable:
    """The samples that are looked at: of identities larger than ``max_rows`` a seeded draw."""
    big_I = np.flatnonzero(identities.sizes_I > max_rows)
    if not len(big_I):
        return identities
    position, owner = ragged_arange(identities.sizes_I[big_I])
    rows = identities.rows_N[identities.offsets_I1[big_I][owner] + position]
    bits = draw_bits(stream_key(seed, 0, Stream.SUSPECT_ROWS), rows)
    drawn = rows[np.lexsort((bits, owner))]
    shown_N = np.ones(identities.num_rows, np.bool_)
    shown_N[drawn[position >= max_rows]] = False
    sizes_I = np.minimum(identities.sizes_I, max_rows)
    offsets_I1 = np.concatenate(([0], np.cumsum(sizes_I))).astype(np.int64)
    rows_N = identities.rows_N[shown_N[identities.rows_N]]
    return IdentityTable(identities.identity_ids_N, offsets_I1, rows_N)
