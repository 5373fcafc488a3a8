"""Items of one column at random, out of the many record batches of a memory-mapped file; compiled.

Arrow's own ``take`` works on one batch at a time: of a large store nearly every row has another.
Shape legend: C = chunks of the column, R = items asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.compiled import compiled, copy_bytes, int32_at

__all__ = ["ColumnGather"]

I64 = npt.NDArray[np.int64]
MAX_BYTES = 2**31 - 1
"""Of an array with 32-bit offsets."""


class ColumnGather:
    """A column whose items are numbers, or byte strings or texts of any length; none is null."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._chunks = chunks  # keeps the memory mapped
        self._kind = chunks[0].type
        self._item_bytes = 0 if _is_ragged(self._kind) else self._kind.bit_width // 8
        values = [chunk.buffers()[-1] for chunk in chunks]
        self._values_C = np.array([_address(buffer) for buffer in values], np.int64)
        self._sizes_C = np.array([buffer.size if buffer else 0 for buffer in values], np.int64)
        if self._item_bytes == 0:
            offsets = [chunk.buffers()[1] for chunk in chunks]
            self._offsets_C = np.array([_address(buffer) for buffer in offsets], np.int64)

    @classmethod
    def of(cls, chunks: Sequence[Any]) -> ColumnGather | None:
        """For these arrays of one type; None if it is not of the kinds above."""
        kind = chunks[0].type
        is_known = _is_ragged(kind) or (
            pa.types.is_primitive(kind) and kind.bit_width % 8 == 0 and kind.bit_width > 0
        )
        is_plain = all(chunk.null_count == 0 and chunk.offset == 0 for chunk in chunks)
        return cls(chunks) if is_known and is_plain else None

    def take(self, chunk_R: I64, place_R: I64, ends_P1: I64) -> list[Any] | None:
        """The items at ``place_R`` of chunks ``chunk_R``; None if there are too many bytes.

        These are not checked, but for what the file says: a damaged one is a ValueError.

        Returns:
            Arrays of items ``[ends_P1[p], ends_P1[p + 1])``, each as if it had been taken alone.
        """
        gather: Any
        if self._item_bytes:
            content = np.empty(len(chunk_R) * self._item_bytes, np.uint8)
            gather = _gather_fixed
            gather(self._values_C, chunk_R, place_R, self._item_bytes, content)
            buffer, size = pa.py_buffer(content), self._item_bytes
            return [
                self._array(end - begin, buffer.slice(size * begin, size * (end - begin)))
                for begin, end in pairwise(ends_P1.tolist())
            ]
        ends_R1 = self._ends(chunk_R, place_R)
        if ends_R1[-1] > MAX_BYTES:
            return None
        content = np.empty(int(ends_R1[-1]), np.uint8)
        gather = _gather_ragged
        gather(self._values_C, self._offsets_C, chunk_R, place_R, ends_R1, content)
        buffer, bytes_P1 = pa.py_buffer(content), ends_R1[ends_P1].tolist()
        arrays = []
        for part, (begin, end) in enumerate(pairwise(ends_P1.tolist())):
            offsets = (ends_R1[begin : end + 1] - bytes_P1[part]).astype(np.int32)
            values = buffer.slice(bytes_P1[part], bytes_P1[part + 1] - bytes_P1[part])
            arrays.append(self._array(end - begin, pa.py_buffer(offsets), values))
        return arrays

    def item_bytes(self, chunk_R: I64, place_R: I64) -> I64:
        """[R] int64 the bytes of these items; a ValueError as of `take`."""
        if self._item_bytes:
            return np.full(len(chunk_R), self._item_bytes)
        return np.diff(self._ends(chunk_R, place_R))

    def _ends(self, chunk_R: I64, place_R: I64) -> I64:
        measure: Any = _measure
        ends_R1: I64 = measure(self._offsets_C, self._sizes_C, chunk_R, place_R)
        if ends_R1[-1] < 0:
            raise ValueError("an item lies outside its column")
        return ends_R1

    def _array(self, num_items: int, *buffers: Any) -> Any:
        return pa.Array.from_buffers(self._kind, num_items, [None, *buffers], null_count=0)


def _is_ragged(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_string(kind))


def _address(buffer: Any) -> int:
    return 0 if buffer is None else int(buffer.address)  # nothing is read from an empty one


@compiled
def _gather_fixed(values_C: I64, chunk_R: I64, place_R: I64, size: int, out: Any) -> None:
    to = np.int64(out.ctypes.data)
    for item in range(len(chunk_R)):
        copy_bytes(to + item * size, values_C[chunk_R[item]] + place_R[item] * size, size)


@compiled
def _measure(offsets_C: I64, sizes_C: I64, chunk_R: I64, place_R: I64) -> I64:
    """[R + 1] where each item begins, one after the other, and where the last ends; -1: damage."""
    ends_R1 = np.zeros(len(chunk_R) + 1, np.int64)
    for item in range(len(chunk_R)):
        at = offsets_C[chunk_R[item]] + 4 * place_R[item]
        begin, end = int32_at(at), int32_at(at + 4)
        if not 0 <= begin <= end <= sizes_C[chunk_R[item]]:
            ends_R1[-1] = -1
            return ends_R1
        ends_R1[item + 1] = ends_R1[item] + end - begin
    return ends_R1


@compiled
def _gather_ragged(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    values_C: I64, offsets_C: I64, chunk_R: I64, place_R: I64, ends_R1: I64, out: Any
) -> None:
    to = np.int64(out.ctypes.data)
    for item in range(len(chunk_R)):
        chunk, num_bytes = chunk_R[item], ends_R1[item + 1] - ends_R1[item]
        begin = int32_at(offsets_C[chunk] + 4 * place_R[item])
        copy_bytes(to + ends_R1[item], values_C[chunk] + begin, num_bytes)
