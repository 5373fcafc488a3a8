"""Candidates beyond the nearest: negatives of earlier rounds, and neighbours of the positive.

Both are rows that a step or two of training may bring close to the anchor. Pure NumPy. Shape
legend: N = rows of the catalog, D = dimensions, A = anchors, K = candidates per anchor, X = further
rows per anchor, a = anchors of a block, P = pairs of an anchor's identity and a negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from miner.core.ragged import rank_in_runs
from miner.core.similarities import pair_similarities
from miner.types import Candidates, Groups, IdentityTable, Tier

__all__ = ["momentum_rows", "widen_candidates"]

_BLOCK_ENTRIES = 1 << 19
MOMENTUM_ROWS = 64
"""Most rows that an identity is reminded of; the newest rounds' come first."""

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


def widen_candidates(
    candidates: Candidates, more_AX: I64, embeddings_ND: F32, identities: IdentityTable
) -> Candidates:
    """The candidates and further rows together, as if the search had found them all.

    Guarantee: of each anchor every candidate and every row of ``more_AX`` that is of another
    identity, each once, nearest first and ties by row id. Similarities of new rows are inner
    products of ``embeddings_ND``, the ones that candidates and positives are compared with.

    Args:
        candidates: [A, K] from a search over ``embeddings_ND``.
        more_AX: [A, X] int64 row ids, in any order; -1 for none.
        embeddings_ND: [N, D] float32 L2-normalised.
        identities: The catalog's identities.

    Returns:
        [A, K + X], padded with -1 and -inf.

    Cost: O(A (K + X) log (K + X) + A X D) time; the result, and 2**19 entries at a time.
    Source: Sun et al., Reduce catastrophic forgetting of dense retrieval training with
        teleportation negatives (ANCE-Tele, 2022).
    """
    num_anchors, num_found = candidates.row_ids_AK.shape
    width = num_found + more_AX.shape[1]
    row_ids_AK = np.full((num_anchors, width), -1, np.int64)
    similarities_AK = np.full((num_anchors, width), -np.inf, np.float32)
    block = max(1, _BLOCK_ENTRIES // max(1, width))
    for begin in range(0, num_anchors, block):
        part = slice(begin, begin + block)
        anchors_a = candidates.anchor_ids_A[part]
        own_a = identities.identity_ids_N[anchors_a]
        more_aX = more_AX[part]
        new_aX = (more_aX >= 0) & (identities.identity_ids_N[more_aX] != own_a[:, None])
        similarities_aX = np.full(more_aX.shape, -np.inf, np.float32)
        owners = np.repeat(anchors_a, new_aX.sum(1))
        similarities_aX[new_aX] = pair_similarities(embeddings_ND, owners, more_aX[new_aX])
        rows = np.concatenate((candidates.row_ids_AK[part], np.where(new_aX, more_aX, -1)), 1)
        similar = np.concatenate((candidates.similarities_AK[part], similarities_aX), 1)
        # Found rows stand first, so a stable sort by row id keeps the search's similarity.
        by_row = np.argsort(rows, axis=1, kind="stable")
        rows, similar = (np.take_along_axis(x, by_row, axis=1) for x in (rows, similar))
        again = np.zeros(rows.shape, np.bool_)
        again[:, 1:] = rows[:, 1:] == rows[:, :-1]
        rows, similar = np.where(again, -1, rows), np.where(again, np.float32(-np.inf), similar)
        nearest = np.argsort(-similar, axis=1, kind="stable")
        row_ids_AK[part] = np.take_along_axis(rows, nearest, axis=1)
        similarities_AK[part] = np.take_along_axis(similar, nearest, axis=1)
    return Candidates(candidates.anchor_ids_A, row_ids_AK, similarities_AK)


def momentum_rows(earlier: Sequence[Groups], anchor_ids_A: I64, identities: IdentityTable) -> I64:
    """For each anchor the rows that earlier rounds mined as negatives for its identity.

    Anchors take turns, so it is the identity, not the anchor, that comes again.

    Args:
        earlier: Rounds of the same catalog, newest first.
        anchor_ids_A: [A] int64 row ids.
        identities: The catalog's identities.

    Returns:
        [A, X] int64 row ids, newest round first, padded with -1; X is 64 at most.
    """
    owners, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for groups in earlier:
        mined_T = groups.tiers_T != Tier.RANDOM
        anchors_T, _, negatives_T = (rows_T[mined_T] for rows_T in groups.triplet_rows())
        owners.append(identities.identity_ids_N[anchors_T].astype(np.int64))
        rows.append(negatives_T)
    owners_P, rows_P = np.concatenate(owners), np.concatenate(rows)
    order_P = np.argsort(owners_P, kind="stable")
    owners_P, rows_P = owners_P[order_P], rows_P[order_P]
    places_P = rank_in_runs(owners_P)
    kept_P = places_P < MOMENTUM_ROWS
    width = int(places_P[kept_P].max(initial=-1)) + 1
    table_IX = np.full((identities.num_identities, width), -1, np.int64)
    table_IX[owners_P[kept_P], places_P[kept_P]] = rows_P[kept_P]
    return table_IX[identities.identity_ids_N[anchor_ids_A]]
