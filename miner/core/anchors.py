"""Which rows anchor a round's groups: identity-balanced, and rotating over rounds.

Pure NumPy; needs no embeddings. Shape legend: A = anchors, I = identities with at least two
samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.quotas import allocate_quota
from miner.core.ragged import ragged_arange
from miner.core.rng import Stream, draw_bits, stream_key
from miner.errors import SelectionError
from miner.types import IdentityTable

__all__ = ["choose_anchors"]

MOST_DIFFICULT = 4.0
"""An identity's loss counts as at most so many times the mean, and at least as its inverse: one
mislabelled identity must not take over a round, nor a learnt one be forgotten."""

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def choose_anchors(
    identities: IdentityTable,
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
    losses_I: F32 | None = None,
) -> I64:
    """The anchors of one round.

    Guarantee: a pure function of its arguments. No row occurs twice. Identities share
    ``groups_per_round`` by ``n_i ** balance`` as :func:`~miner.core.quotas.allocate_quota` says,
    within ``min_groups_per_identity`` and ``max_groups_per_identity``, times its loss relative to
    the mean, bounded by 4 and 1/4, to the power of ``difficulty``;
    within an identity rows take turns through a seeded permutation that goes on across rounds, so
    an identity with at least ``q`` anchors a round has each of its rows once in ``ceil(n_i / q)``
    rounds as long as quotas stay as they are. Identities with a single sample anchor nothing.

    Args:
        identities: The catalog's identities.
        config: Budget, balance and cap.
        seed: The round log's seed; the same for all rounds.
        round_id: Counted from 1.
        losses_I: [I] float32 >= 0, how hard each identity is for the model, NaN where that is not
            known: it counts as the mean; None: of none.

    Returns:
        [A] int64 row ids in seeded random order, ``A <= config.groups_per_round``.

    Raises:
        SelectionError: If no identity has two samples.

    Cost: O(N log N) time at most, O(N) memory, for N rows of the chosen identities.

    Example:
        >>> table = IdentityTable.from_ids(np.array([0, 0, 1, 2, 2], np.int32))
        >>> config = SelectionConfig(groups_per_round=2)
        >>> sorted(choose_anchors(table, config, seed=3, round_id=1).tolist())
        [1, 4]
    """
    ids_I = np.flatnonzero(identities.sizes_I >= 2)
    if not len(ids_I):
        raise SelectionError(
            f"none of the {identities.num_identities} identities has two samples, so no row can "
            "be an anchor; check the identity column"
        )
    order_key = stream_key(seed, 0, Stream.IDENTITY_ORDER)
    ids_I = ids_I[np.argsort(draw_bits(order_key, ids_I), kind="stable")]
    sizes_I = identities.sizes_I[ids_I]
    cap = config.max_groups_per_identity
    caps_I = sizes_I if cap is None else np.minimum(sizes_I, cap)
    quota = allocate_quota(
        caps_I,
        sizes_I.astype(np.float64) ** config.balance * _difficulty(losses_I, ids_I, config),
        budget=config.groups_per_round,
        round_id=round_id,
        floors_I=np.minimum(caps_I, config.min_groups_per_identity),
    )
    chosen = np.flatnonzero(quota.units_I)
    anchors_A = _take_turns(
        identities, ids_I[chosen], quota.before_I[chosen], quota.units_I[chosen], seed
    )
    round_key = stream_key(seed, round_id, Stream.ANCHOR_ORDER)
    return anchors_A[np.argsort(draw_bits(round_key, anchors_A), kind="stable")]


def _difficulty(losses_I: F32 | None, ids_I: I64, config: SelectionConfig) -> F64:
    """Factors of the shares of identities ``ids_I``."""
    if losses_I is None:
        return np.ones(len(ids_I))
    losses = losses_I[ids_I].astype(np.float64)
    known = losses[~np.isnan(losses)]
    if not known.any():
        return np.ones(len(ids_I))
    relative = np.where(np.isnan(losses), 1.0, losses / known.mean())
    factors: F64 = np.clip(relative, 1 / MOST_DIFFICULT, MOST_DIFFICULT) ** config.difficulty
    return factors


def _take_turns(
    identities: IdentityTable, ids_I: I64, before_I: I64, units_I: I64, seed: int
) -> I64:
    """The next ``units_I`` rows of each identity's permutation after the first ``before_I``."""
    sizes_I = identities.sizes_I[ids_I]
    begins_I = np.cumsum(sizes_I) - sizes_I
    position, owner = ragged_arange(sizes_I)
    rows = identities.rows_N[identities.offsets_I1[ids_I][owner] + position]
    bits = draw_bits(stream_key(seed, 0, Stream.ROW_ROTATION), rows)
    permuted: I64 = rows[np.lexsort((bits, owner))]
    turn, owner = ragged_arange(units_I)
    return permuted[begins_I[owner] + (before_I[owner] + turn) % sizes_I[owner]]
