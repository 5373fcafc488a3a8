"""Messages of a stream: small batches share one, a large one is cut up; knows no plan, no run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.compiled import copy_pieces
from miner.serving.encode import Batches, varint
from miner.serving.fresh_bytes import fresh_bytes
from protos.coalface.v1 import mining_pb2

__all__ = ["PART_FRAME", "Copy", "joined", "messages_of", "size_of"]

PART_FRAME = 64
"""Bytes of a part's numbers, at most."""
_RESPONSE = mining_pb2.StreamTripletsResponse.DESCRIPTOR
_PART = varint(_RESPONSE.fields_by_name["part"].number << 3 | 2)
_CONTENT = varint(mining_pb2.BatchPart.DESCRIPTOR.fields_by_name["content"].number << 3 | 2)

Pieces = Sequence[Any]
"""Buffers of Arrow, which one after the other are something whole."""
Copy = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]], None]
"""To so many addresses, from as many, so many bytes each."""


def messages_of(
    batches: Batches,
    payloads: Sequence[Pieces],
    max_bytes: int,
    copy: Copy = copy_pieces,
    before_copying: Callable[[], None] | None = None,
) -> list[bytes]:
    """Encoded StreamTripletsResponses: of as many batches as fit, or of parts of one that does not.

    Args:
        batches: The batches.
        payloads: Of each, its payload's field; empty: no batch has one.
        max_bytes: Of a message.
        copy: Copies payloads.
        before_copying: Called when only memory is left to be filled, without the interpreter's
            lock.
    """
    layout = _Layout(batches, payloads)
    behind_B1 = np.concatenate(([0], np.cumsum(batches.sizes_B)))
    first = 0
    while first < len(batches.sizes_B):
        room = behind_B1[first] + max_bytes
        stop = int(np.searchsorted(behind_B1, room, side="right")) - 1
        if stop > first:
            layout.put_whole(first, stop)
        else:
            stop = first + 1
            layout.put_parts(first, max_bytes)
        first = stop
    return layout.filled(copy, before_copying)


def joined(messages: list[bytes]) -> list[bytes]:
    """The same batches in one message, unless there are parts."""
    if any(message.startswith(_PART) for message in messages):
        return messages
    return [b"".join(messages)]


class _Layout:
    """Where in the memory of which message everything goes, before any of it is written."""

    def __init__(self, batches: Batches, payloads: Sequence[Pieces]) -> None:
        self._batches = batches
        self._payloads = payloads
        self._messages: list[bytes] = []
        self._targets_B = np.empty(len(batches.sizes_B), np.int64)
        self._to_copy: list[tuple[int, Pieces]] = []  # an address, and what goes there
        self._kept: list[Any] = []  # memory that is copied from

    def put_whole(self, first: int, stop: int) -> None:
        """One message of batches ``[first, stop)``."""
        sizes_b, following_b = (
            of_all[first:stop] for of_all in (self._batches.sizes_B, self._batches.following_B)
        )
        ends_b = np.cumsum(sizes_b)
        address = self._message(int(ends_b[-1]))
        self._targets_B[first:stop] = ends_b - sizes_b + address
        if self._payloads:
            payloads_at = (ends_b - following_b + address).tolist()
            self._to_copy += zip(payloads_at, self._payloads[first:stop], strict=True)

    def put_parts(self, batch: int, max_bytes: int) -> None:
        """Messages of up to ``max_bytes`` with parts of one batch."""
        batches = self._batches
        content = np.empty(int(batches.sizes_B[batch] - batches.following_B[batch]), np.uint8)
        self._kept.append(content)
        self._targets_B[batch] = content.ctypes.data
        pieces = [pa.py_buffer(content[int(batches.frames_B[batch]) :])]
        pieces += self._payloads[batch] if self._payloads else ()
        step, total, offset = int(batches.values.step[batch]), size_of(pieces), 0
        for part in _cut(pieces, max_bytes - PART_FRAME):
            num_bytes = size_of(part)
            numbers = mining_pb2.BatchPart(step=step, offset=offset, total_bytes=total)
            head = numbers.SerializeToString() + _CONTENT + varint(num_bytes)
            frame = _PART + varint(len(head) + num_bytes) + head
            self._to_copy.append(
                (self._message(len(frame) + num_bytes), [pa.py_buffer(frame), *part])
            )
            offset += num_bytes

    def filled(self, copy: Copy, before_copying: Callable[[], None] | None) -> list[bytes]:
        """The messages."""
        sources, targets, sizes = [], [], []
        for target, pieces in self._to_copy:
            at = target
            for piece in pieces:
                sources.append(piece.address)
                targets.append(at)
                sizes.append(piece.size)
                at += piece.size
        copies = [np.array(numbers, np.int64) for numbers in (targets, sources, sizes)]
        if before_copying is not None:
            before_copying()
        self._batches.encode(self._targets_B)
        copy(*copies)
        return self._messages

    def _message(self, num_bytes: int) -> int:
        message, address = fresh_bytes(num_bytes)
        self._messages.append(message)
        return address


def size_of(pieces: Pieces) -> int:
    """Bytes of all together."""
    return sum(piece.size for piece in pieces)


def _cut(pieces: Pieces, size: int) -> Iterator[list[Any]]:
    """Pieces of so many bytes together, the last of fewer, without a copy."""
    held: list[Any] = []
    room = size
    for piece in pieces:
        rest = piece
        while rest.size >= room:
            yield [*held, rest.slice(0, room)]
            held, rest, room = [], rest.slice(room), size
        if rest.size:
            held.append(rest)
            room -= rest.size
    if held:
        yield held
