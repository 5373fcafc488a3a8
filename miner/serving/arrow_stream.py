"""Samples as Arrow IPC streams, without a copy of them; knows no batch and no message."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

__all__ = ["streams_of"]

_END = pa.py_buffer(b"\xff\xff\xff\xff\x00\x00\x00\x00")


def streams_of(parts: Sequence[Any]) -> list[list[Any]]:
    """Of record batches of one schema each as a stream of its own, in buffers one after the other.

    Those of the record batches are among these buffers, not copied: they may not be written yet.
    """
    if not parts:
        return []
    schema = parts[0].schema
    if any(_has_dictionary(field.type) for field in schema):
        # A writer of their own: it leaves out what it has written of a dictionary.
        return [[piece for written in _written([part]) for piece in written] for part in parts]
    begin = schema.serialize()
    first, *following, _ = _written(parts)
    return [[*first, _END], *([begin, *written, _END] for written in following)]


def _written(parts: Sequence[Any]) -> list[list[Any]]:
    """One stream of all parts: what is written with each, the schema with the first; the end."""
    sink = _Pieces()
    writer = pa.ipc.new_stream(sink, parts[0].schema)
    written = []
    for part in parts:
        writer.write_batch(part)
        written.append(sink.taken())
    writer.close()
    return [*written, sink.taken()]


def _has_dictionary(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    children = (kind.field(number).type for number in range(kind.num_fields))
    return pa.types.is_dictionary(kind) or any(map(_has_dictionary, children))


class _Pieces(io.RawIOBase):
    """A file whose content is taken away as buffers."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._written = bytearray()  # since the last piece, all but buffers
        self._num_bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._num_bytes

    def write(self, content: Any) -> int:
        num_bytes = len(content)
        self._num_bytes += num_bytes
        if isinstance(content, bytes):
            self._written += content
        elif num_bytes:
            self._put_written()
            self._pieces.append(content)
        return num_bytes

    def taken(self) -> list[Any]:
        self._put_written()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _put_written(self) -> None:
        if self._written:
            self._pieces.append(pa.py_buffer(bytes(self._written)))
            self._written.clear()
