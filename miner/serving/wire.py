"""Messages of a stream: small batches share one, a large one is cut up; knows no plan, no run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from miner.serving.encode import Batches, varint
from miner.serving.fresh_bytes import fresh_bytes
from protos.coalface.v1 import mining_pb2

__all__ = ["PART_FRAME", "joined", "messages_of"]

PART_FRAME = 64
"""Bytes of a part's numbers, at most."""
_RESPONSE = mining_pb2.StreamTripletsResponse.DESCRIPTOR
_PART = varint(_RESPONSE.fields_by_name["part"].number << 3 | 2)
_CONTENT = varint(mining_pb2.BatchPart.DESCRIPTOR.fields_by_name["content"].number << 3 | 2)

Pieces = Sequence[memoryview]
"""Which one after the other are something whole."""


def messages_of(batches: Batches, payloads: Sequence[Pieces], max_bytes: int) -> list[bytes]:
    """Encoded StreamTripletsResponses: of as many batches as fit, or of parts of one that does not.

    Args:
        batches: The batches.
        payloads: Of each, its payload's field; empty: no batch has one.
        max_bytes: Of a message.
    """
    behind_B1 = np.concatenate(([0], np.cumsum(batches.sizes_B)))
    messages: list[bytes] = []
    first = 0
    while first < len(batches.sizes_B):
        room = behind_B1[first] + max_bytes
        stop = int(np.searchsorted(behind_B1, room, side="right")) - 1
        if stop > first:
            messages.append(_whole(batches, first, stop, payloads))
        else:
            stop = first + 1
            messages += _parts(batches, first, payloads[first] if payloads else (), max_bytes)
        first = stop
    return messages


def joined(messages: list[bytes]) -> list[bytes]:
    """The same batches in one message, unless there are parts."""
    if any(message.startswith(_PART) for message in messages):
        return messages
    return [b"".join(messages)]


def _whole(batches: Batches, first: int, stop: int, payloads: Sequence[Pieces]) -> bytes:
    if not payloads:
        message, out = fresh_bytes(int(batches.sizes_B[first:stop].sum()))
        batches.encode(first, stop, out)
        return message
    pieces: list[memoryview] = []
    for batch in range(first, stop):
        content, _ = _encoded(batches, batch)
        pieces += (content, *payloads[batch])
    return _joined(pieces)


def _parts(batches: Batches, batch: int, payload: Pieces, max_bytes: int) -> Iterator[bytes]:
    content, begin = _encoded(batches, batch)
    pieces = [content[begin:], *payload]
    step, total, offset = int(batches.values.step[batch]), sum(map(len, pieces)), 0
    for part in _cut(pieces, max_bytes - PART_FRAME):
        num_bytes = sum(map(len, part))
        numbers = mining_pb2.BatchPart(step=step, offset=offset, total_bytes=total)
        head = numbers.SerializeToString() + _CONTENT + varint(num_bytes)
        frame = _PART + varint(len(head) + num_bytes) + head
        yield _joined([memoryview(frame), *part])
        offset += num_bytes


def _encoded(batches: Batches, batch: int) -> tuple[memoryview, int]:
    """A batch without its payload, and where it begins behind its frame."""
    content = np.empty(int(batches.sizes_B[batch] - batches.following_B[batch]), np.uint8)
    (begin,), _ = batches.encode(batch, batch + 1, content)
    return memoryview(content.data), int(begin)


def _joined(pieces: Pieces) -> bytes:
    """As ``b"".join``, without the interpreter's lock."""
    message, out = fresh_bytes(sum(map(len, pieces)))
    at = 0
    for piece in pieces:
        out[at : at + len(piece)] = piece
        at += len(piece)
    return message


def _cut(pieces: Pieces, size: int) -> Iterator[list[memoryview]]:
    """Pieces of so many bytes together, the last of fewer, without a copy."""
    held: list[memoryview] = []
    room = size
    for piece in pieces:
        rest = piece
        while len(rest) >= room:
            yield [*held, rest[:room]]
            held, rest, room = [], rest[room:], size
        if len(rest):
            held.append(rest)
            room -= len(rest)
    if held:
        yield held
