"""Groups out of anchors, positives and negatives: fills each identity up with further samples.

Pure NumPy; needs no embeddings. Shape legend: A = anchors, T = triplets, G = groups, B = blocks
(an identity within a group), L = leading rows of a block, W = rows of a block at most.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from miner.core.ordering import descending_bits, segment_order, stable_order
from miner.core.parallel import cut, map_blocks
from miner.core.pool import Anchors
from miner.core.rng import RoundSeed, Stream, draw_below, draw_bits
from miner.types import Groups, IdentityTable

__all__ = ["Negatives", "build_groups"]

_BLOCK = 1 << 14

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Negatives:
    """Negatives found for some anchors.

    Attributes:
        anchors_T: [T] int64 positions among the anchors.
        rows_T: [T] int64 row ids.
        similarities_T: [T] float32, ``s_an``; NaN without embeddings.
        tiers_T: [T] uint8, a :class:`~miner.types.Tier` each.
    """

    anchors_T: I64
    rows_T: I64
    similarities_T: npt.NDArray[np.float32]
    tiers_T: npt.NDArray[np.uint8]

    def take(self, chosen: npt.NDArray[np.bool_] | I64) -> Negatives:
        """The negatives under a mask, or at the given positions in that order."""
        return Negatives(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: list[Negatives]) -> Negatives:
        """One list out of several, which must not be none."""
        if len(parts) == 1:
            return parts[0]
        columns = (
            np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)
        )
        return cls(*columns)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The identities of all groups, group after group.

    Attributes:
        anchor_ids_B: [B] int64 row id of the group's anchor.
        leads_BL: [B, 2] int64 row ids that come first; the second is -1 for a negative's identity.
        num_rows_B: [B] int64 rows that the block is to have, if its identity has as many.
    """

    anchor_ids_B: I64
    leads_BL: I64
    num_rows_B: I64


def build_groups(
    anchors: Anchors,
    negatives: Negatives,
    identities: IdentityTable,
    samples_per_identity: int,
    keys: RoundSeed,
) -> Groups:
    """One group for each anchor that has a negative, in an order drawn from the anchors' rows.

    Guarantee: a group holds the anchor, its positive and random further rows of their identity up
    to ``samples_per_identity`` (two at least), then for each negative this row and random further
    rows of its identity; an identity with fewer rows gives all it has, no row occurs twice. Its
    triplets are (anchor, positive, negative), by tier and then hardest first. Neither the order of
    ``negatives`` nor that of other groups has an effect on a group.

    Args:
        anchors: The round's anchors.
        negatives: Of each anchor, of distinct identities other than its own.
        identities: The catalog's identities.
        samples_per_identity: Rows of each identity at most.
        keys: Keys of the round's draws.

    Returns:
        G groups with T triplets.

    Cost: O(T log T + R) time for R rows, O(R + N) memory.
    """
    order_T = _in_order(anchors, negatives, keys)
    begins_G = np.flatnonzero(np.diff(negatives.anchors_T[order_T], prepend=-1))
    anchors_G = negatives.anchors_T[order_T[begins_G]]
    offsets_G1 = np.append(begins_G, len(order_T)).astype(np.int64)
    places_N = np.empty(identities.num_rows, np.int64)
    places_N[identities.rows_N] = np.arange(identities.num_rows)

    num_triplets = len(order_T)
    negatives_T, tiers_T = np.empty(num_triplets, np.int32), np.empty(num_triplets, np.uint8)
    similarities_T = np.empty((2, num_triplets), np.float32)

    def build(part: slice) -> tuple[I64, I64]:
        """The rows of some groups, and how many each has; what triplets have is written."""
        triplets = slice(offsets_G1[part.start], offsets_G1[part.stop])
        of_these = negatives.take(order_T[triplets])
        own_B, blocks = _lay_out(anchors, anchors_G[part], of_these, samples_per_identity)
        rows_R, sizes_B = _fill(blocks, identities, places_N, keys)
        starts_B = np.cumsum(sizes_B) - sizes_B
        group_starts_G = starts_B[own_B]
        num_triplets_G = np.diff(own_B, append=len(sizes_B)) - 1
        negatives_T[triplets] = np.delete(starts_B, own_B)
        negatives_T[triplets] -= np.repeat(group_starts_G, num_triplets_G).astype(np.int32)
        tiers_T[triplets] = of_these.tiers_T
        similarities_T[0, triplets] = anchors.similarities_ap_A[of_these.anchors_T]
        similarities_T[1, triplets] = of_these.similarities_T
        return rows_R, np.diff(group_starts_G, append=len(rows_R))

    num_blocks_of_a_group = 1 + -(-num_triplets // max(1, len(begins_G)))
    parts = cut(len(begins_G), max(1, _BLOCK // num_blocks_of_a_group)) or [slice(0, 0)]
    sizes_N = identities.sizes_I[identities.identity_ids_N]
    num_rows = np.minimum(sizes_N[anchors.ids_A[anchors_G]], max(2, samples_per_identity)).sum()
    num_rows += np.minimum(sizes_N[negatives.rows_T], samples_per_identity).sum()
    rows_R, num_rows_G = np.empty(num_rows, np.int64), np.empty(len(begins_G), np.int64)
    end = 0
    for part, (rows_r, num_rows_g) in zip(parts, map_blocks(build, parts), strict=True):
        begin, end = end, end + len(rows_r)
        rows_R[begin:end], num_rows_G[part] = rows_r, num_rows_g
    return Groups(
        row_ids_R=rows_R,
        identity_ids_R=identities.identity_ids_N[rows_R],
        row_offsets_G1=np.append(0, np.cumsum(num_rows_G)).astype(np.int64),
        anchors_T=np.zeros(num_triplets, np.int32),
        positives_T=np.ones(num_triplets, np.int32),
        negatives_T=negatives_T,
        similarities_ap_T=similarities_T[0],
        similarities_an_T=similarities_T[1],
        tiers_T=tiers_T,
        triplet_offsets_G1=offsets_G1,
    )


def _in_order(anchors: Anchors, negatives: Negatives, keys: RoundSeed) -> I64:
    """Negatives by group, groups in random order; then by tier, hardest first, lowest row first."""
    bits_A = draw_bits(keys.key(Stream.ROUND_ORDER), anchors.ids_A)
    ranks_A = np.empty(len(bits_A), np.int64)
    ranks_A[np.argsort(bits_A, kind="stable")] = np.arange(len(bits_A))
    groups_T = ranks_A[negatives.anchors_T]
    order_T = stable_order(groups_T)
    groups_T = groups_T[order_T]
    order_T = order_T[segment_order(groups_T, negatives.rows_T[order_T])]
    key_T = negatives.tiers_T[order_T].astype(np.int64) << 32
    key_T |= descending_bits(negatives.similarities_T[order_T]).astype(np.int64)
    ordered_T: I64 = order_T[segment_order(groups_T, key_T)]
    return ordered_T


def _lay_out(
    anchors: Anchors, anchors_G: I64, negatives: Negatives, samples_per_identity: int
) -> tuple[I64, _Blocks]:
    """The blocks, and the positions of the groups' own (first) blocks among them."""
    num_groups, num_blocks = len(anchors_G), len(anchors_G) + len(negatives.rows_T)
    starts_group_T = np.diff(negatives.anchors_T, prepend=-1) != 0
    own_B = np.flatnonzero(starts_group_T) + np.arange(num_groups)
    is_own_B = np.zeros(num_blocks, np.bool_)
    is_own_B[own_B] = True
    anchor_ids_B = np.empty(num_blocks, np.int64)
    anchor_ids_B[own_B] = anchors.ids_A[anchors_G]
    anchor_ids_B[~is_own_B] = anchors.ids_A[negatives.anchors_T]
    leads_BL = np.full((num_blocks, 2), -1, np.int64)
    leads_BL[own_B, 0], leads_BL[own_B, 1] = (
        anchors.ids_A[anchors_G],
        anchors.positives_A[anchors_G],
    )
    leads_BL[~is_own_B, 0] = negatives.rows_T
    num_rows_B = np.where(is_own_B, max(2, samples_per_identity), samples_per_identity)
    return own_B, _Blocks(anchor_ids_B, leads_BL, num_rows_B)


def _fill(
    blocks: _Blocks, identities: IdentityTable, places_N: I64, keys: RoundSeed
) -> tuple[I64, I64]:
    """The rows of each block, its leading ones first, and how many they are.

    ``places_N`` says where each row stands in ``identities.rows_N``.
    """
    ids_B = identities.identity_ids_N[blocks.leads_BL[:, 0]]
    num_leads_B = np.count_nonzero(blocks.leads_BL >= 0, axis=1)
    spare_B = identities.sizes_I[ids_B] - num_leads_B
    wanted_B = np.minimum(blocks.num_rows_B - num_leads_B, spare_B)
    picks_BW = _pick_distinct(blocks, spare_B, wanted_B, keys)
    # Picks count the identity's rows without the leading ones: step over those, lowest first.
    begins_B = identities.offsets_I1[ids_B]
    lead_places_BL = places_N[blocks.leads_BL] - begins_B[:, None]
    lead_places_BL[blocks.leads_BL < 0] = np.iinfo(np.int64).max
    places_BW = picks_BW
    for lead_places_B in np.sort(lead_places_BL, axis=1).T:
        places_BW = places_BW + (places_BW >= lead_places_B[:, None])
    rows_BW = np.full_like(picks_BW, -1)
    picked_BW = picks_BW >= 0
    rows_BW[picked_BW] = identities.rows_N[(begins_B[:, None] + places_BW)[picked_BW]]
    rows_BW = np.concatenate((blocks.leads_BL, rows_BW), axis=1)
    present_BW = rows_BW >= 0
    return rows_BW[present_BW], np.count_nonzero(present_BW, axis=1)


def _pick_distinct(blocks: _Blocks, spare_B: I64, wanted_B: I64, keys: RoundSeed) -> I64:
    """[B, W] ``wanted_B`` distinct numbers below ``spare_B``, every set as likely; then -1.

    Source: Floyd's sampling; Bentley, Programming pearls: a sample of brilliance (1987).
    """
    picks_BW = np.full((len(wanted_B), int(wanted_B.max(initial=0))), -1, np.int64)
    for j in range(picks_BW.shape[1]):
        open_b = np.flatnonzero(wanted_B > j)
        last_b = (spare_B - wanted_B)[open_b] + j
        bits_b = draw_bits(
            keys.key(Stream.FILL, j), blocks.anchor_ids_B[open_b], blocks.leads_BL[open_b, 0]
        )
        drawn_b = draw_below(bits_b, last_b + 1)
        again_b = (picks_BW[open_b, :j] == drawn_b[:, None]).any(1)
        picks_BW[open_b, j] = np.where(again_b, last_b, drawn_b)
    return picks_BW
