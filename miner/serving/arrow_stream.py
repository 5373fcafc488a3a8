"""Samples as an Arrow IPC stream, without a copy of them; knows no batch and no message."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import pyarrow as pa

__all__ = ["stream_pieces"]


_COPIED_BYTES = 2**20
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def stream_pieces(rows: Any) -> list[memoryview]:
    """The stream of one record batch, in pieces; large ones are the batch's own buffers.

    A small batch is copied: that is cheaper than a call of Python for each piece.
    """
    begin = _schema_message(rows.schema)
    if begin is not None and rows.nbytes <= _COPIED_BYTES:
        return [memoryview(part) for part in (begin, rows.serialize(), _END)]
    sink = _Pieces()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.pieces


@lru_cache(4)
def _schema_message(schema: Any) -> Any:
    """What such a stream begins with; None if dictionaries come next."""
    return None if any(_has_dictionary(field.type) for field in schema) else schema.serialize()


def _has_dictionary(kind: Any) -> bool:
    children = (kind.field(number).type for number in range(kind.num_fields))
    return pa.types.is_dictionary(kind) or any(map(_has_dictionary, children))


class _Pieces(io.RawIOBase):
    def __init__(self) -> None:
        self.pieces: list[memoryview] = []
        self._num_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._num_bytes

    def write(self, content: Any) -> int:
        piece = memoryview(content).cast("B")
        self.pieces.append(piece)
        self._num_bytes += len(piece)
        return len(piece)
