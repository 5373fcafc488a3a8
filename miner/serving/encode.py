"""Batches as a stream's messages hold them, straight from a round's groups; compiled.

A stream sends some hundred thousand small batches a second, or large ones at the speed of memory;
message objects and their copies would take most of that time. A test compares every field with what
protobuf reads. Shape legend: G = groups of the round, R, T = their rows and triplets, S = groups
that are sent, B = batches, F = whole numbers of a batch, P = pieces of memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from miner.compiled import (
    BLOCK,
    compiled,
    copy_block,
    copy_bytes,
    prefetch,
    put_byte,
    put_int32,
    read_only,
)
from miner.types import Groups
from protos.coalface.v1 import mining_pb2

__all__ = ["PAYLOAD_TAG", "BatchValues", "Batches", "GroupRecords", "varint"]

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
_LINE = 64
_BATCHES_TAG = (
    mining_pb2.StreamTripletsResponse.DESCRIPTOR.fields_by_name["batches"].number << 3 | _BYTES
)
PAYLOAD_TAG = _NUMBER_OF["payload"] << 3 | _BYTES


class GroupRecords:
    """A round's groups, what belongs to one in one place: it is fetched at once from memory.

    A record has the columns one after the other, but for the offsets, which follow from the batch.

    Attributes:
        groups_G3: [G, 3] int64 where each record begins behind `address`, its rows, its triplets. A
            record begins with its row ids.
        strategy: [C] uint8 the text.
    """

    def __init__(self, groups: Groups, strategy: str) -> None:
        """Of a round that was mined by that strategy; copies all of it."""
        self.strategy = read_only(np.frombuffer(strategy.encode(), np.uint8))
        columns = [getattr(groups, f"{name}_{axis}") for name, axis in _RECORD]
        pack: Any = _pack
        self.groups_G3, self._content = pack(
            read_only(groups.row_offsets_G1),
            read_only(groups.triplet_offsets_G1),
            tuple(read_only(np.ascontiguousarray(column).view(np.uint8)) for column in columns),
        )

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.groups_G3)

    @property
    def address(self) -> int:
        """Of the first, while this object lives."""
        return int(self._content.ctypes.data)

    def rows_of(self, groups_S: I64, begins_B1: I64) -> I64:
        """[B] int64 rows that groups ``[begins_B1[b], begins_B1[b + 1])`` of some have together."""
        count: Any = _rows_of
        num_rows_B: I64 = count(self.groups_G3, groups_S, begins_B1)
        return num_rows_B


class Batches:
    """Batches that are going to be encoded, each behind its frame: tag and size of all of it.

    Positions within a group become positions among the batch's rows. A batch's payload, which has
    the last field, follows it and is its sender's work.

    Attributes:
        values: The whole numbers of each.
        sizes_B: [B] int64 bytes of each, frame and payload included.
        following_B: [B] int64 bytes of its payload's field.
        frames_B: [B] int64 bytes of its frame.
    """

    def __init__(
        self,
        records: GroupRecords,
        groups_S: I64,
        shares_B2: I64,
        values_BF: I64,
        following_B: I64 | None = None,
    ) -> None:
        """Of a round.

        Args:
            records: The round's.
            groups_S: [S] int64 numbers of groups.
            shares_B2: [B, 2] int64, which of these each batch has: from the first up to the second.
            values_BF: [B, F] int64, `BatchValues` of each.
            following_B: [B] int64 bytes of the payload's field; None: no batch has one.
        """
        self.values = BatchValues(*values_BF.T)
        self.following_B = (
            np.zeros(len(values_BF), np.int64) if following_B is None else following_B
        )
        self._records = records
        self._given = records.groups_G3, records.strategy, groups_S, shares_B2, values_BF
        measure: Any = _measure
        self._totals_B3, self.sizes_B = measure(*self._given, self.following_B)
        self.frames_B = self.sizes_B - self.following_B - self._totals_B3[:, 2]

    def encode(self, targets_B: I64) -> None:
        """Write each to an address, from its frame on, but for its payload.

        Cost: some 45 ns a group of 16 rows and 3 triplets.
        """
        encode: Any = _encode
        address = self._records.address
        encode(*self._given, self._totals_B3, self.following_B, address, targets_B)


_RECORD_BYTES = np.array([8, 4, 4, 4, 4, 4, 4, 1])
_RECORD = (
    ("row_ids", "R"),
    ("identity_ids", "R"),
    ("anchors", "T"),
    ("positives", "T"),
    ("negatives", "T"),
    ("similarities_ap", "T"),
    ("similarities_an", "T"),
    ("tiers", "T"),
)


def varint(number: int) -> bytes:
    """A whole number >= 0 as protobuf writes it: seven bits to a byte, the lowest first."""
    pieces = bytearray()
    while number > 127:
        pieces.append(number & 127 | 128)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


@compiled
def _pack(rows_G1: I64, triplets_G1: I64, columns: tuple[U8, ...]) -> tuple[I64, U8]:
    """[G, 3] where each record begins, its rows and triplets; the records."""
    row_ids, identity_ids, anchors, positives, negatives, ap, an, tiers = columns
    num_groups = len(rows_G1) - 1
    groups_G3 = np.empty((num_groups, 3), np.int64)
    size = 0
    for group in range(num_groups):
        num_rows = rows_G1[group + 1] - rows_G1[group]
        num_triplets = triplets_G1[group + 1] - triplets_G1[group]
        groups_G3[group] = size, num_rows, num_triplets
        size += 12 * num_rows + 21 * num_triplets
    content = np.empty(size, np.uint8)
    to = np.int64(content.ctypes.data)
    sources = (
        np.int64(row_ids.ctypes.data),
        np.int64(identity_ids.ctypes.data),
        np.int64(anchors.ctypes.data),
        np.int64(positives.ctypes.data),
        np.int64(negatives.ctypes.data),
        np.int64(ap.ctypes.data),
        np.int64(an.ctypes.data),
        np.int64(tiers.ctypes.data),
    )
    for group in range(num_groups):
        for column in range(len(sources)):
            begin = rows_G1[group] if column < 2 else triplets_G1[group]
            count = groups_G3[group, 1 if column < 2 else 2]
            item = _RECORD_BYTES[column]
            copy_bytes(to, sources[column] + item * begin, item * count)
            to += item * count
    return groups_G3, content


@compiled
def _rows_of(groups_G3: I64, groups_S: I64, begins_B1: I64) -> I64:
    num_rows_B = np.zeros(len(begins_B1) - 1, np.int64)
    for batch in range(len(num_rows_B)):
        for place in range(begins_B1[batch], begins_B1[batch + 1]):
            num_rows_B[batch] += groups_G3[groups_S[place], 1]
    return num_rows_B


@compiled
def _varint_bytes(number: int) -> int:
    num_bytes = 1
    while number > 127:
        num_bytes += 1
        number >>= 7
    return num_bytes


@compiled
def _put_varint(to: int, number: int) -> int:
    """What comes behind it."""
    while number > 127:
        put_byte(to, number & 127 | 128)
        to += 1
        number >>= 7
    put_byte(to, number)
    return to + 1


@compiled
def _content_bytes(column: int, num_groups: int, totals_3: I64) -> int:
    if column == _GROUP_OFFSETS:
        return 4 * (num_groups + 1)
    content: int = _ITEM_BYTES[column] * totals_3[0 if column < _FIRST_OF_TRIPLETS else 1]
    return content


@compiled
def _measure(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    groups_G3: I64,
    strategy: U8,
    groups_S: I64,
    shares_B2: I64,
    values_BF: I64,
    following_B: I64,
) -> tuple[I64, I64]:
    """[B, 3] rows, triplets and bytes of the fields but payload; [B] bytes of the whole."""
    totals_B3 = np.zeros((len(shares_B2), 3), np.int64)
    sizes_B = np.zeros(len(shares_B2), np.int64)
    for batch in range(len(shares_B2)):
        begin, end = shares_B2[batch]
        num_rows, num_triplets = 0, 0
        for place in range(begin, end):
            group = groups_S[place]
            num_rows += groups_G3[group, 1]
            num_triplets += groups_G3[group, 2]
        totals_B3[batch, 0], totals_B3[batch, 1] = num_rows, num_triplets
        num_bytes = 0
        for field in range(len(_FIELD_TAGS)):
            if values_BF[batch, field]:  # protobuf leaves zeros out
                num_bytes += _varint_bytes(_FIELD_TAGS[field])
                num_bytes += _varint_bytes(values_BF[batch, field])
        if len(strategy):
            num_bytes += _varint_bytes(_STRATEGY_TAG)
            num_bytes += _varint_bytes(len(strategy)) + len(strategy)
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
    groups_G3: I64,
    strategy: U8,
    groups_S: I64,
    shares_B2: I64,
    values_BF: I64,
    totals_B3: I64,
    following_B: I64,
    records: int,
    targets_B: I64,
) -> None:
    columns_at = np.zeros(len(_COLUMN_TAGS), np.int64)
    for batch in range(len(targets_B)):
        at = targets_B[batch]
        begin, end = shares_B2[batch]
        at = _put_varint(at, _BATCHES_TAG)
        at = _put_varint(at, totals_B3[batch, 2] + following_B[batch])
        for field in range(len(_FIELD_TAGS)):
            if values_BF[batch, field]:
                at = _put_varint(at, _FIELD_TAGS[field])
                at = _put_varint(at, values_BF[batch, field])
        if len(strategy):
            at = _put_varint(at, _STRATEGY_TAG)
            at = _put_varint(at, len(strategy))
            for character in strategy:
                put_byte(at, np.int64(character))
                at += 1
        for column in range(len(_COLUMN_TAGS)):
            content = _content_bytes(column, end - begin, totals_B3[batch])
            if content:
                at = _put_varint(at, _COLUMN_TAGS[column])
                at = _put_varint(at, content)
            columns_at[column] = at
            at += content
        _put_groups(groups_G3, records, groups_S, begin, end, columns_at)


@compiled
def _put_groups(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    groups_G3: I64, records: int, groups_S: I64, begin: int, end: int, columns_at: I64
) -> None:
    to_rows, to_identities, to_offsets = columns_at[0], columns_at[1], columns_at[2]
    to_anchors, to_positives, to_negatives = columns_at[3], columns_at[4], columns_at[5]
    to_ap, to_an, to_tiers = columns_at[6], columns_at[7], columns_at[8]
    last_place, rows_before = len(groups_S) - 1, 0
    put_int32(to_offsets, 0)
    for place in range(begin, end):
        coming = records + groups_G3[groups_S[min(place + _AHEAD, last_place)], 0]
        prefetch(coming)
        prefetch(coming + _LINE)
        prefetch(coming + 2 * _LINE)
        prefetch(coming + 3 * _LINE)
        group = groups_S[place]
        source, num_rows = records + groups_G3[group, 0], groups_G3[group, 1]
        num_triplets = groups_G3[group, 2]
        for offset in range(0, 2 * num_rows, BLOCK):
            copy_block(to_rows + 4 * offset, source + 4 * offset, 2 * num_rows - offset, 0)
        source += 8 * num_rows
        to_rows += 8 * num_rows
        for offset in range(0, num_rows, BLOCK):
            copy_block(to_identities + 4 * offset, source + 4 * offset, num_rows - offset, 0)
        source += 4 * num_rows
        to_identities += 4 * num_rows
        num_bytes = 4 * num_triplets
        for offset in range(0, num_triplets, BLOCK):
            at, rest = source + 4 * offset, num_triplets - offset
            copy_block(to_anchors + 4 * offset, at, rest, rows_before)
            at += num_bytes
            copy_block(to_positives + 4 * offset, at, rest, rows_before)
            at += num_bytes
            copy_block(to_negatives + 4 * offset, at, rest, rows_before)
            at += num_bytes
            copy_block(to_ap + 4 * offset, at, rest, 0)
            at += num_bytes
            copy_block(to_an + 4 * offset, at, rest, 0)
        source += 5 * num_bytes
        copy_bytes(to_tiers, source, num_triplets)
        to_anchors += num_bytes
        to_positives += num_bytes
        to_negatives += num_bytes
        to_ap += num_bytes
        to_an += num_bytes
        to_tiers += num_triplets
        rows_before += num_rows
        to_offsets += 4
        put_int32(to_offsets, rows_before)
