"""Batches as a stream's messages hold them, straight from a round's arrays; compiled.

A stream sends some hundred thousand small batches a second, or large ones at the speed of memory;
message objects and their copies would take most of that time. A test compares every field with what
protobuf reads. Shape legend: G = groups of the round, R, T = their rows and triplets, S = groups
that are sent, s = of one batch, B = batches, F = whole numbers of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, copy_bytes, prefetch, put_int32, read_only
from miner.types import Groups
from protos.coalface.v1 import mining_pb2

__all__ = ["PAYLOAD_TAG", "BatchValues", "Batches", "RoundBytes", "varint"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


class BatchValues(NamedTuple):
    """The whole numbers of batches, [B] int64 each, named as on the wire; none is below 0."""

    step: I64
    round_id: I64
    model_step: I64
    staleness_steps: I64
    over_stale: I64
    pass_number: I64
    global_rows: I64
    global_groups: I64
    first_group: I64


_COLUMNS = (
    "row_ids",
    "identity_ids",
    "group_offsets",
    "anchors",
    "positives",
    "negatives",
    "similarities_ap",
    "similarities_an",
    "tiers",
)
_NUMBER_OF = {field.name: field.number for field in mining_pb2.Batch.DESCRIPTOR.fields}
_BYTES = 2
_FIELD_TAGS = np.array([_NUMBER_OF[name] << 3 for name in BatchValues._fields])
_STRATEGY_TAG = _NUMBER_OF["strategy"] << 3 | _BYTES
_COLUMN_TAGS = np.array([_NUMBER_OF[name] << 3 | _BYTES for name in _COLUMNS])
_ITEM_BYTES = np.array([8, 4, 4, 4, 4, 4, 4, 4, 1])
_GROUP_OFFSETS, _FIRST_OF_TRIPLETS = 2, 3
_AHEAD = 8
"""Groups. They lie anywhere in the round: each would be waited for if it were not asked early."""
_BATCHES_TAG = (
    mining_pb2.StreamTripletsResponse.DESCRIPTOR.fields_by_name["batches"].number << 3 | _BYTES
)
PAYLOAD_TAG = _NUMBER_OF["payload"] << 3 | _BYTES


class RoundBytes(NamedTuple):
    """A round's columns as the compiled functions take them; views, not copies."""

    row_offsets_G1: I64
    triplet_offsets_G1: I64
    row_ids: U8
    identity_ids: U8
    anchors_T: npt.NDArray[np.int32]
    positives_T: npt.NDArray[np.int32]
    negatives_T: npt.NDArray[np.int32]
    similarities_ap: U8
    similarities_an: U8
    tiers: U8
    strategy: U8

    @classmethod
    def of(cls, groups: Groups, strategy: str) -> RoundBytes:
        """Those of a round that was mined by that strategy."""
        return cls(
            row_offsets_G1=read_only(groups.row_offsets_G1),
            triplet_offsets_G1=read_only(groups.triplet_offsets_G1),
            row_ids=_bytes_of(groups.row_ids_R),
            identity_ids=_bytes_of(groups.identity_ids_R),
            anchors_T=read_only(groups.anchors_T),
            positives_T=read_only(groups.positives_T),
            negatives_T=read_only(groups.negatives_T),
            similarities_ap=_bytes_of(groups.similarities_ap_T),
            similarities_an=_bytes_of(groups.similarities_an_T),
            tiers=_bytes_of(groups.tiers_T),
            strategy=read_only(np.frombuffer(strategy.encode(), np.uint8)),
        )


class Batches:
    """Batches that are going to be encoded, each behind its frame: tag and size of all of it.

    Positions within a group become positions among the batch's rows. A batch's payload, which has
    the last field, follows it and is its sender's work.

    Attributes:
        sizes_B: [B] int64 bytes of each, frame and payload included.
    """

    def __init__(
        self,
        columns: RoundBytes,
        groups_S: I64,
        shares_B2: I64,
        values_BF: I64,
        following_B: I64 | None = None,
    ) -> None:
        """Of a round.

        Args:
            columns: The round's.
            groups_S: [S] int64 numbers of groups.
            shares_B2: [B, 2] int64, which of these each batch has: from the first up to the second.
            values_BF: [B, F] int64, `BatchValues` of each.
            following_B: [B] int64 bytes of the payload's field; None: no batch has one.
        """
        self.following_B = (
            np.zeros(len(values_BF), np.int64) if following_B is None else following_B
        )
        self._given = columns, groups_S, shares_B2, values_BF
        measure: Any = _measure
        self._totals_B3, self.sizes_B = measure(*self._given, self.following_B)

    @property
    def values(self) -> BatchValues:
        """Of each batch."""
        return BatchValues(*self._given[3].T)

    def encode(self, first: int, stop: int, out: U8) -> tuple[I64, I64]:
        """Write batches [first, stop) into ``out``, as many bytes as they have without payload.

        Returns:
            For each where its fields begin, behind the frame, and where they end.

        Cost: some 60 ns a group of 16 rows.
        """
        begins_b, ends_b = np.empty((2, stop - first), np.int64)
        encode: Any = _encode
        encode(*self._given, self._totals_B3, self.following_B, first, out, begins_b, ends_b)
        return begins_b, ends_b


def _bytes_of(column: npt.NDArray[Any]) -> U8:
    return read_only(np.ascontiguousarray(column).view(np.uint8))


def varint(number: int) -> bytes:
    """A whole number >= 0 as protobuf writes it: seven bits to a byte, the lowest first."""
    pieces = bytearray()
    while number > 127:
        pieces.append(number & 127 | 128)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


@compiled
def _varint_bytes(number: int) -> int:
    num_bytes = 1
    while number > 127:
        num_bytes += 1
        number >>= 7
    return num_bytes


@compiled
def _put_varint(out: U8, at: int, number: int) -> int:
    while number > 127:
        out[at] = np.uint8(number & 127 | 128)
        at += 1
        number >>= 7
    out[at] = np.uint8(number)
    return at + 1


@compiled
def _content_bytes(column: int, num_groups: int, totals_3: I64) -> int:
    if column == _GROUP_OFFSETS:
        return 4 * (num_groups + 1)
    content: int = _ITEM_BYTES[column] * totals_3[0 if column < _FIRST_OF_TRIPLETS else 1]
    return content


@compiled
def _measure(
    columns: RoundBytes, groups_S: I64, shares_B2: I64, values_BF: I64, following_B: I64
) -> tuple[I64, I64]:
    """[B, 3] rows, triplets and bytes of the fields but payload; [B] bytes of the whole."""
    totals_B3 = np.zeros((len(shares_B2), 3), np.int64)
    sizes_B = np.zeros(len(shares_B2), np.int64)
    rows_G1, triplets_G1 = columns.row_offsets_G1, columns.triplet_offsets_G1
    num_strategy = len(columns.strategy)
    for batch in range(len(shares_B2)):
        begin, end = shares_B2[batch]
        for place in range(begin, end):
            group = groups_S[place]
            totals_B3[batch, 0] += rows_G1[group + 1] - rows_G1[group]
            totals_B3[batch, 1] += triplets_G1[group + 1] - triplets_G1[group]
        num_bytes = 0
        for field in range(len(_FIELD_TAGS)):
            if values_BF[batch, field]:  # protobuf leaves zeros out
                num_bytes += _varint_bytes(_FIELD_TAGS[field])
                num_bytes += _varint_bytes(values_BF[batch, field])
        if num_strategy:
            num_bytes += _varint_bytes(_STRATEGY_TAG) + _varint_bytes(num_strategy) + num_strategy
        for column in range(len(_COLUMN_TAGS)):
            content = _content_bytes(column, end - begin, totals_B3[batch])
            if content:
                num_bytes += _varint_bytes(_COLUMN_TAGS[column]) + _varint_bytes(content) + content
        totals_B3[batch, 2] = num_bytes
        whole = num_bytes + following_B[batch]
        sizes_B[batch] = _varint_bytes(_BATCHES_TAG) + _varint_bytes(whole) + whole
    return totals_B3, sizes_B


@compiled
def _encode(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    columns: RoundBytes,
    groups_S: I64,
    shares_B2: I64,
    values_BF: I64,
    totals_B3: I64,
    following_B: I64,
    first_batch: int,
    out: U8,
    begins_b: I64,
    ends_b: I64,
) -> None:
    at, strategy = 0, columns.strategy
    columns_at = np.zeros(len(_COLUMN_TAGS), np.int64)
    for place_of_batch in range(len(begins_b)):
        batch = first_batch + place_of_batch
        begin, end = shares_B2[batch]
        at = _put_varint(out, at, _BATCHES_TAG)
        at = _put_varint(out, at, totals_B3[batch, 2] + following_B[batch])
        begins_b[place_of_batch] = at
        for field in range(len(_FIELD_TAGS)):
            if values_BF[batch, field]:
                at = _put_varint(out, at, _FIELD_TAGS[field])
                at = _put_varint(out, at, values_BF[batch, field])
        if len(strategy):
            at = _put_varint(out, at, _STRATEGY_TAG)
            at = _put_varint(out, at, len(strategy))
            copy_bytes(out, at, strategy, 0, len(strategy))
            at += len(strategy)
        for column in range(len(_COLUMN_TAGS)):
            content = _content_bytes(column, end - begin, totals_B3[batch])
            if content:
                at = _put_varint(out, at, _COLUMN_TAGS[column])
                at = _put_varint(out, at, content)
            columns_at[column] = at
            at += content
        ends_b[place_of_batch] = at
        _put_groups(columns, groups_S, begin, end, out, columns_at)


@compiled
def _put_groups(  # noqa: PLR0913, PLR0917 - compiled: no keywords; locals are faster
    columns: RoundBytes, groups_S: I64, begin: int, end: int, out: U8, columns_at: I64
) -> None:
    rows_G1, triplets_G1 = columns.row_offsets_G1, columns.triplet_offsets_G1
    row_ids, identity_ids = columns.row_ids, columns.identity_ids
    anchors_T, positives_T = columns.anchors_T, columns.positives_T
    negatives_T, tiers = columns.negatives_T, columns.tiers
    similarities_ap, similarities_an = columns.similarities_ap, columns.similarities_an
    at_rows, at_identities, at_offsets = columns_at[0], columns_at[1], columns_at[2]
    at_anchors, at_positives, at_negatives = columns_at[3], columns_at[4], columns_at[5]
    at_ap, at_an, at_tiers = columns_at[6], columns_at[7], columns_at[8]
    last_place, rows_before = len(groups_S) - 1, 0
    put_int32(out, at_offsets, 0)
    for place in range(begin, end):
        coming = groups_S[min(place + _AHEAD, last_place)]
        first = rows_G1[coming]
        prefetch(row_ids, 8 * first)
        prefetch(row_ids, 8 * first + 64)
        prefetch(identity_ids, 4 * first)
        first = triplets_G1[coming]
        prefetch(anchors_T, first)
        prefetch(positives_T, first)
        prefetch(negatives_T, first)
        prefetch(similarities_ap, 4 * first)
        prefetch(similarities_an, 4 * first)
        prefetch(tiers, first)
        group = groups_S[place]
        first, count = rows_G1[group], rows_G1[group + 1] - rows_G1[group]
        copy_bytes(out, at_rows, row_ids, 8 * first, 8 * count)
        at_rows += 8 * count
        copy_bytes(out, at_identities, identity_ids, 4 * first, 4 * count)
        at_identities += 4 * count
        first, last = triplets_G1[group], triplets_G1[group + 1]
        for triplet in range(first, last):
            at = 4 * (triplet - first)
            put_int32(out, at_anchors + at, rows_before + anchors_T[triplet])
            put_int32(out, at_positives + at, rows_before + positives_T[triplet])
            put_int32(out, at_negatives + at, rows_before + negatives_T[triplet])
        num_bytes = 4 * (last - first)
        at_anchors += num_bytes
        at_positives += num_bytes
        at_negatives += num_bytes
        copy_bytes(out, at_ap, similarities_ap, 4 * first, num_bytes)
        at_ap += num_bytes
        copy_bytes(out, at_an, similarities_an, 4 * first, num_bytes)
        at_an += num_bytes
        copy_bytes(out, at_tiers, tiers, first, last - first)
        at_tiers += last - first
        rows_before += count
        at_offsets += 4
        put_int32(out, at_offsets, rows_before)
