"""Which sample of its own identity an anchor is pulled to. Exact within the identity.

Pure NumPy. Shape legend: N = rows of the catalog, D = dimensions, A = anchors, P = pairs of an
anchor and another sample of its identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.parallel import do_blocks
from miner.core.ragged import bounded_blocks, ragged_arange
from miner.core.rng import Stream, draw_below, draw_bits, stream_key
from miner.core.similarities import pair_similarities
from miner.errors import SelectionError
from miner.types import IdentityTable

__all__ = ["choose_positives", "guard_similarities", "random_positives"]

_BLOCK_PAIRS = 1 << 17

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """All other samples of the identities of a block of anchors, anchor after anchor."""

    part: slice
    rows_P: I64
    similarities_P: F32
    begins_A: I64
    counts_A: I64


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The positives of a block of anchors, each anchor's from hardest to easiest."""

    similarities_P: F32
    begins_A: I64
    counts_A: I64


def choose_positives(  # noqa: PLR0913 - what the result is a function of
    embeddings_ND: F32,
    identities: IdentityTable,
    anchor_ids_A: I64,
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
) -> tuple[I64, F32]:
    """One positive for each anchor, and its similarity to the anchor.

    Guarantee: the positive has the anchor's identity and is another row; the result for an anchor
    depends on nothing but that anchor, the embeddings, ``config``, ``seed`` and ``round_id``. Of
    equally similar positives the one with the lowest row id counts as hardest. By
    ``config.positive``:

    - ``random``: uniform over the identity's other samples;
    - ``hardest``, ``easiest``: the least or most similar one;
    - ``semi_hard``: the hardest of those within ``margin`` of the easiest, so an outlier of the
      identity is passed over;
    - ``hardest_percentile``: the one ``positive_percentile`` percent of the way from the hardest
      to the easiest, rounded towards the hardest.

    Args:
        embeddings_ND: [N, D] float32 L2-normalised; may be a memory map.
        identities: The catalog's identities.
        anchor_ids_A: [A] int64 row ids.
        config: Which positive.
        seed: The round log's seed.
        round_id: The round.

    Returns:
        ``positive_ids_A`` [A] int64 and ``similarities_ap_A`` [A] float32.

    Raises:
        SelectionError: If an anchor's identity has no other sample, or a similarity is not finite;
            the text names the first anchors.

    Cost: O(A D) time for ``random``, else O(P (D + log P)); memory is bounded by about 2**17 pairs
        or one identity's rows, whichever is more, in each thread.
    Source: Hermans et al., In defense of the triplet loss (2017), for the hardest; percentiles, in
        place of the hardest, are ours. Xuan et al., Improved embeddings with easy positive triplet
        mining (2020), for easiest and semi-hard positives.
    """
    if config.positive == "random":
        positive_ids_A = random_positives(identities, anchor_ids_A, seed=seed, round_id=round_id)
        similarities_ap_A = pair_similarities(embeddings_ND, anchor_ids_A, positive_ids_A)
        _require_finite(similarities_ap_A, anchor_ids_A)
        return positive_ids_A, similarities_ap_A
    positive_ids_A = np.empty(len(anchor_ids_A), np.int64)
    similarities_ap_A = np.empty(len(anchor_ids_A), np.float32)

    def pick(pairs: _Pairs) -> None:
        owner = np.repeat(np.arange(len(pairs.counts_A)), pairs.counts_A)
        order_P = np.lexsort((pairs.rows_P, pairs.similarities_P, owner))
        ranked = _Ranked(pairs.similarities_P[order_P], pairs.begins_A, pairs.counts_A)
        picked = order_P[pairs.begins_A + _PICKERS[config.positive](ranked, config)]
        positive_ids_A[pairs.part] = pairs.rows_P[picked]
        similarities_ap_A[pairs.part] = pairs.similarities_P[picked]

    _for_all_pairs(pick, embeddings_ND, identities, anchor_ids_A)
    return positive_ids_A, similarities_ap_A


def guard_similarities(
    embeddings_ND: F32,
    identities: IdentityTable,
    anchor_ids_A: I64,
    rule: Literal["min", "mean", "max"],
) -> F32:
    """[A] float32, the least, mean or greatest similarity to the other samples of the identity.

    Guarantee: exact within the identity; the mean is taken in float64.

    Raises:
        SelectionError: As :func:`choose_positives`.

    Cost: O(P D) time, memory as :func:`choose_positives`.
    """
    similarities_A = np.empty(len(anchor_ids_A), np.float32)

    def reduce(pairs: _Pairs) -> None:
        if rule == "mean":
            sums_A = np.add.reduceat(pairs.similarities_P, pairs.begins_A, dtype=np.float64)
            similarities_A[pairs.part] = sums_A / pairs.counts_A
        else:
            extreme = np.minimum if rule == "min" else np.maximum
            similarities_A[pairs.part] = extreme.reduceat(pairs.similarities_P, pairs.begins_A)

    _for_all_pairs(reduce, embeddings_ND, identities, anchor_ids_A)
    return similarities_A


def random_positives(
    identities: IdentityTable, anchor_ids_A: I64, *, seed: int, round_id: int
) -> I64:
    """[A] int64, for each anchor another sample of its identity, uniformly at random.

    Raises:
        SelectionError: If an anchor's identity has no other sample.
    """
    others_A = _count_others(identities, anchor_ids_A)
    bits_A = draw_bits(stream_key(seed, round_id, Stream.POSITIVE), anchor_ids_A)
    return _other_row(identities, anchor_ids_A, draw_below(bits_A, others_A))


def _for_all_pairs(
    use: Callable[[_Pairs], None], embeddings_ND: F32, identities: IdentityTable, anchor_ids_A: I64
) -> None:
    """Show all pairs, block by block, to a function that may be called by several threads."""
    others_A = _count_others(identities, anchor_ids_A)

    def work(part: slice) -> None:
        position, owner = ragged_arange(others_A[part])
        anchors_P = anchor_ids_A[part][owner]
        rows_P = _other_row(identities, anchors_P, position)
        similarities_P = pair_similarities(embeddings_ND, anchors_P, rows_P)
        _require_finite(similarities_P, anchors_P)
        begins_A = np.cumsum(others_A[part]) - others_A[part]
        use(_Pairs(part, rows_P, similarities_P, begins_A, others_A[part]))

    do_blocks(work, bounded_blocks(others_A, _BLOCK_PAIRS))


def _hardest(ranked: _Ranked, _: SelectionConfig) -> I64:
    return np.zeros_like(ranked.counts_A)


def _easiest(ranked: _Ranked, _: SelectionConfig) -> I64:
    return ranked.counts_A - 1


def _semi_hard(ranked: _Ranked, config: SelectionConfig) -> I64:
    floor_A = ranked.similarities_P[ranked.begins_A + ranked.counts_A - 1] - config.margin
    below_P = ranked.similarities_P < np.repeat(floor_A, ranked.counts_A)
    rank_A: I64 = np.add.reduceat(below_P, ranked.begins_A, dtype=np.int64)
    return rank_A


def _hardest_percentile(ranked: _Ranked, config: SelectionConfig) -> I64:
    share = config.positive_percentile / 100.0
    rank_A: I64 = np.floor((ranked.counts_A - 1) * share).astype(np.int64)
    return rank_A


_PICKERS: dict[str, Callable[[_Ranked, SelectionConfig], I64]] = {
    "hardest": _hardest,
    "easiest": _easiest,
    "semi_hard": _semi_hard,
    "hardest_percentile": _hardest_percentile,
}


def _count_others(identities: IdentityTable, anchor_ids_A: I64) -> I64:
    others_A = identities.sizes_I[identities.identity_ids_N[anchor_ids_A]] - 1
    lonely = anchor_ids_A[others_A < 1]
    if len(lonely):
        raise SelectionError(
            f"{len(lonely)} anchors have no other sample of their identity, so no positive: rows "
            f"{lonely[:5].tolist()}; choose anchors from identities with two samples or more"
        )
    return others_A


def _other_row(identities: IdentityTable, anchors_P: I64, position_P: I64) -> I64:
    """The ``position``-th row of the anchor's identity, not counting the anchor."""
    begins_P = identities.offsets_I1[identities.identity_ids_N[anchors_P]]
    rows_P = identities.rows_N[begins_P + position_P]
    # Rows ascend within an identity, so the anchor shifts exactly those from its own place on.
    next_P = identities.rows_N[begins_P + position_P + 1]
    others_P: I64 = np.where(rows_P >= anchors_P, next_P, rows_P)
    return others_P


def _require_finite(similarities_P: F32, anchors_P: I64) -> None:
    broken = np.unique(anchors_P[~np.isfinite(similarities_P)])
    if len(broken):
        raise SelectionError(
            f"the similarity to a positive is NaN or infinite for {len(broken)} anchors: rows "
            f"{broken[:5].tolist()}; the embeddings of these or of their identity are broken"
        )
