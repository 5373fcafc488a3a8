"""Batches in protobuf's encoding, straight from a round's arrays; compiled.

A stream sends a hundred thousand small batches a second, or large ones at the speed of memory;
message objects and their copies would take most of that time. A test compares every field with what
protobuf reads. Shape legend: G = groups of the round, R, T = their rows and triplets, S = groups
that are sent, s = of one batch, B = batches, F = whole numbers of a batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, copy_bytes, read_only
from miner.types import Groups
from protos.coalface.v1 import mining_pb2

__all__ = ["PAYLOAD_TAG", "BatchValues", "encode_batches", "varint"]

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
PAYLOAD_TAG = _NUMBER_OF["payload"] << 3 | _BYTES
_VARINT_BYTES = 10
_FRAME_BYTES = (len(BatchValues._fields) + len(_COLUMNS) + 1) * 2 * _VARINT_BYTES


def encode_batches(
    groups: Groups, groups_S: I64, shares_B2: I64, values_BF: I64, strategy: str
) -> list[bytes]:
    """Batches, encoded but for their payload, which can follow: it has the last field.

    Positions within a group become positions among the batch's rows.

    Args:
        groups: The round.
        groups_S: [S] int64 numbers of groups.
        shares_B2: [B, 2] int64, which of these each batch has: from the first up to the second.
        values_BF: [B, F] int64, `BatchValues` of each.
        strategy: Of all.

    Cost: some 30 ns a group beside the bytes.
    """
    named = np.frombuffer(strategy.encode(), np.uint8)
    num_batches, num_groups = len(values_BF), int((shares_B2[:, 1] - shares_B2[:, 0]).sum())
    num_rows = int(np.diff(groups.row_offsets_G1)[groups_S].sum())
    num_triplets = int(np.diff(groups.triplet_offsets_G1)[groups_S].sum())
    most = 12 * num_rows + 21 * num_triplets + 4 * (num_groups + num_batches)
    out = np.empty(most + num_batches * (_FRAME_BYTES + len(named)), np.uint8)
    ends_B = np.empty(num_batches, np.int64)
    integers = groups.anchors_T, groups.positives_T, groups.negatives_T
    encode: Any = _encode
    encode(
        read_only(groups.row_offsets_G1),
        read_only(groups.triplet_offsets_G1),
        _bytes_of(groups.row_ids_R),
        _bytes_of(groups.identity_ids_R),
        *(read_only(column) for column in integers),
        _bytes_of(groups.similarities_ap_T),
        _bytes_of(groups.similarities_an_T),
        _bytes_of(groups.tiers_T),
        groups_S,
        shares_B2,
        values_BF,
        read_only(named),
        out,
        ends_B,
    )
    return [out[begin:end].tobytes() for begin, end in pairwise([0, *ends_B.tolist()])]


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
def _put_varint(out: U8, at: int, number: int) -> int:
    while number > 127:
        out[at] = np.uint8(number & 127 | 128)
        at += 1
        number >>= 7
    out[at] = np.uint8(number)
    return at + 1


@compiled
def _put_int32(out: U8, at: int, number: int) -> int:
    out[at] = np.uint8(number & 255)
    out[at + 1] = np.uint8(number >> 8 & 255)
    out[at + 2] = np.uint8(number >> 16 & 255)
    out[at + 3] = np.uint8(number >> 24 & 255)
    return at + 4


@compiled
def _put_items(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    out: U8, at: int, content: U8, size: int, offsets_G1: I64, taken_s: I64
) -> int:
    """The items of some groups, of so many bytes each."""
    for group in taken_s:
        begin, end = offsets_G1[group] * size, offsets_G1[group + 1] * size
        copy_bytes(out, at, content, begin, end - begin)
        at += end - begin
    return at


@compiled
def _put_positions(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    out: U8,
    at: int,
    positions_T: npt.NDArray[np.int32],
    row_offsets_G1: I64,
    triplet_offsets_G1: I64,
    taken_s: I64,
) -> int:
    shift = 0
    for group in taken_s:
        for triplet in range(triplet_offsets_G1[group], triplet_offsets_G1[group + 1]):
            at = _put_int32(out, at, shift + positions_T[triplet])
        shift += row_offsets_G1[group + 1] - row_offsets_G1[group]
    return at


@compiled
def _encode(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    row_offsets_G1: I64,
    triplet_offsets_G1: I64,
    row_ids: U8,
    identity_ids: U8,
    anchors_T: npt.NDArray[np.int32],
    positives_T: npt.NDArray[np.int32],
    negatives_T: npt.NDArray[np.int32],
    similarities_ap: U8,
    similarities_an: U8,
    tiers: U8,
    groups_S: I64,
    shares_B2: I64,
    values_BF: I64,
    strategy: U8,
    out: U8,
    ends_B: I64,
) -> None:
    at = 0
    for batch in range(len(values_BF)):
        for field in range(len(_FIELD_TAGS)):
            if values_BF[batch, field]:  # protobuf leaves zeros out
                at = _put_varint(out, at, _FIELD_TAGS[field])
                at = _put_varint(out, at, values_BF[batch, field])
        if len(strategy):
            at = _put_varint(out, at, _STRATEGY_TAG)
            at = _put_varint(out, at, len(strategy))
            copy_bytes(out, at, strategy, 0, len(strategy))
            at += len(strategy)
        taken_s = groups_S[shares_B2[batch, 0] : shares_B2[batch, 1]]
        num_rows = num_triplets = 0
        for group in taken_s:
            num_rows += row_offsets_G1[group + 1] - row_offsets_G1[group]
            num_triplets += triplet_offsets_G1[group + 1] - triplet_offsets_G1[group]
        at = _put_varint(out, at, _COLUMN_TAGS[0])
        at = _put_varint(out, at, 8 * num_rows)
        at = _put_items(out, at, row_ids, 8, row_offsets_G1, taken_s)
        at = _put_varint(out, at, _COLUMN_TAGS[1])
        at = _put_varint(out, at, 4 * num_rows)
        at = _put_items(out, at, identity_ids, 4, row_offsets_G1, taken_s)
        at = _put_varint(out, at, _COLUMN_TAGS[2])
        at = _put_varint(out, at, 4 * (len(taken_s) + 1))
        offset = 0
        at = _put_int32(out, at, offset)
        for group in taken_s:
            offset += row_offsets_G1[group + 1] - row_offsets_G1[group]
            at = _put_int32(out, at, offset)
        if num_triplets:
            for column, positions_T in enumerate((anchors_T, positives_T, negatives_T)):
                at = _put_varint(out, at, _COLUMN_TAGS[3 + column])
                at = _put_varint(out, at, 4 * num_triplets)
                at = _put_positions(
                    out, at, positions_T, row_offsets_G1, triplet_offsets_G1, taken_s
                )
            for column, content in enumerate((similarities_ap, similarities_an)):
                at = _put_varint(out, at, _COLUMN_TAGS[6 + column])
                at = _put_varint(out, at, 4 * num_triplets)
                at = _put_items(out, at, content, 4, triplet_offsets_G1, taken_s)
            at = _put_varint(out, at, _COLUMN_TAGS[8])
            at = _put_varint(out, at, num_triplets)
            at = _put_items(out, at, tiers, 1, triplet_offsets_G1, taken_s)
        ends_B[batch] = at
