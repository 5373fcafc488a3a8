"""Items of one column at random, out of the many record batches of a memory-mapped file; compiled.

Arrow's own ``take`` works on one batch at a time: of a large store nearly every row has another.
Shape legend: C = chunks of the column, R = items asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.compiled import compiled, copy_bytes, copy_pieces, int32_at

__all__ = ["ColumnGather", "Items", "Scattered"]

I64 = npt.NDArray[np.int64]
MAX_BYTES = 2**31 - 1
"""Of an array with 32-bit offsets."""


class Items(NamedTuple):
    """Items of a column that have places one after the other, and are not written there yet.

    Attributes:
        places: The memory of these places.
        ends_R1: [R + 1] int64 where in there each item begins, and where the last ends.
        sources_R: [R] int64 addresses at which the items lie.
    """

    places: Any
    ends_R1: I64
    sources_R: I64


class Scattered:
    """Items of columns that are written to their places, or elsewhere without the way round.

    What they are read from must stay mapped meanwhile.
    """

    def __init__(self, columns: Sequence[Items]) -> None:
        columns = sorted(columns, key=lambda items: items.places.ctypes.data)
        begins = [items.ends_R1[:-1] + items.places.ctypes.data for items in columns]
        none = np.empty(0, np.int64)
        self._places = [items.places for items in columns]
        self._begins_I = np.concatenate([none, *begins])
        self._sizes_I = np.concatenate([none, *(np.diff(items.ends_R1) for items in columns)])
        self._sources_I = np.concatenate([none, *(items.sources_R for items in columns)])

    def write(self) -> None:
        """Write all to their places."""
        copy_pieces(self._begins_I, self._sources_I, self._sizes_I)

    def copy(self, targets_P: I64, sources_P: I64, sizes_P: I64) -> None:
        """As `copy_pieces`, of memory that may have places of items: then as if they were there.

        A piece lies within the places of one column, or within other memory.
        """
        copy: Any = _copy_scattered
        copy(targets_P, sources_P, sizes_P, self._begins_I, self._sizes_I, self._sources_I)


class ColumnGather:
    """A column whose items are numbers, or byte strings or texts of any length; none is null."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        """Of these arrays; a ValueError if one has less memory than it has items."""
        self._chunks = chunks  # keeps the memory mapped
        self._kind = chunks[0].type
        self._item_bytes = 0 if _is_ragged(self._kind) else self._kind.bit_width // 8
        values = [chunk.buffers()[-1] for chunk in chunks]
        self._values_C = np.array([_address(buffer) for buffer in values], np.int64)
        self._sizes_C = np.array([buffer.size if buffer else 0 for buffer in values], np.int64)
        smallest = [self._item_bytes * len(chunk) for chunk in chunks]
        buffers = values
        if self._item_bytes == 0:
            buffers = offsets = [chunk.buffers()[1] for chunk in chunks]
            smallest = [4 * (len(chunk) + 1) if len(chunk) else 0 for chunk in chunks]
            self._offsets_C = np.array([_address(buffer) for buffer in offsets], np.int64)
        for buffer, size in zip(buffers, smallest, strict=True):
            if (buffer.size if buffer else 0) < size:
                raise ValueError("a column is shorter than its items")

    @classmethod
    def of(cls, chunks: Sequence[Any]) -> ColumnGather | None:
        """For these arrays of one type; None if it is not of the kinds above."""
        kind = chunks[0].type
        is_known = _is_ragged(kind) or (
            pa.types.is_primitive(kind) and kind.bit_width % 8 == 0 and kind.bit_width > 0
        )
        is_plain = all(chunk.null_count == 0 and chunk.offset == 0 for chunk in chunks)
        return cls(chunks) if is_known and is_plain else None

    def take(
        self, chunk_R: I64, place_R: I64, ends_P1: I64
    ) -> tuple[list[Any], Items | None] | None:
        """The items at ``place_R`` of chunks ``chunk_R``; None if there are too many bytes.

        These are not checked, but for what the file says: a damaged one is a ValueError.

        Returns:
            Arrays of items ``[ends_P1[p], ends_P1[p + 1])``, each as if it had been taken alone;
            and those that are still to be written to where these arrays expect them.
        """
        gather: Any
        parts = list(pairwise(ends_P1.tolist()))
        if self._item_bytes:
            size = self._item_bytes
            content = np.empty(len(chunk_R) * size, np.uint8)
            gather = _gather_fixed
            gather(self._values_C, chunk_R, place_R, size, content)
            buffer = pa.py_buffer(content)
            slices = [buffer.slice(size * begin, size * (end - begin)) for begin, end in parts]
            return [self._array(len(part) // size, part) for part in slices], None
        ends_R1 = self._ends(chunk_R, place_R)
        if ends_R1[-1] > MAX_BYTES:
            return None
        content = np.empty(int(ends_R1[-1]), np.uint8)
        sources_R = np.empty(len(chunk_R), np.int64)
        gather = _sources
        gather(self._values_C, self._offsets_C, chunk_R, place_R, sources_R)
        buffer, bytes_P1 = pa.py_buffer(content), ends_R1[ends_P1].tolist()
        arrays = []
        for part, (begin, end) in enumerate(parts):
            offsets = (ends_R1[begin : end + 1] - bytes_P1[part]).astype(np.int32)
            values = buffer.slice(bytes_P1[part], bytes_P1[part + 1] - bytes_P1[part])
            arrays.append(self._array(end - begin, pa.py_buffer(offsets), values))
        return arrays, Items(content, ends_R1, sources_R)

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
def _sources(values_C: I64, offsets_C: I64, chunk_R: I64, place_R: I64, sources_R: I64) -> None:
    for item in range(len(chunk_R)):
        chunk = chunk_R[item]
        sources_R[item] = values_C[chunk] + int32_at(offsets_C[chunk] + 4 * place_R[item])


@compiled
def _copy_scattered(  # noqa: PLR0913, PLR0917 - compiled: no keywords
    targets_P: I64, sources_P: I64, sizes_P: I64, begins_I: I64, sizes_I: I64, sources_I: I64
) -> None:
    for piece in range(len(sizes_P)):
        to, source, rest = targets_P[piece], sources_P[piece], sizes_P[piece]
        item = _last_not_above(begins_I, source)
        if item < 0 or source >= begins_I[item] + sizes_I[item]:
            copy_bytes(to, source, rest)
            continue
        within = source - begins_I[item]
        while rest > 0:
            size = min(rest, sizes_I[item] - within)
            copy_bytes(to, sources_I[item] + within, size)
            to, rest = to + size, rest - size
            item, within = item + 1, 0


@compiled
def _last_not_above(ascending: I64, number: int) -> int:
    """The place of the last of these numbers that is not above another; -1: all are."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] <= number:
            low = middle + 1
        else:
            high = middle
    return low - 1
