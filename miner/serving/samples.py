"""Samples as one Arrow IPC stream, cut into parts of bounded size.

Shape legend: R = rows asked for.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.serving.assemble import RowReader

__all__ = ["sample_parts"]

ROWS_AT_A_TIME = 64
"""Rows that are held at a time, beside a part."""


def sample_parts(
    rows: RowReader, row_ids_R: npt.NDArray[np.int64], max_bytes: int
) -> Iterator[bytes]:
    """The stream of rows ``row_ids_R``, in their order, in parts of ``max_bytes`` at most.

    Cost: memory of one part and of 64 rows, whatever R.
    """
    collected, writer = _Collected(), None
    for begin in range(0, len(row_ids_R), ROWS_AT_A_TIME):
        batch = rows.read(row_ids_R[begin : begin + ROWS_AT_A_TIME])
        writer = writer or pa.ipc.new_stream(collected, batch.schema)
        writer.write_batch(batch)
        yield from collected.parts(max_bytes, is_last=False)
    if writer is not None:
        writer.close()
    yield from collected.parts(max_bytes, is_last=True)


class _Collected(io.RawIOBase):
    """What was written to it and not yet taken away."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._num_taken = 0

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        written = bytes(memoryview(content))  # type: ignore[arg-type]
        self._held += written
        return len(written)

    def tell(self) -> int:
        return self._num_taken + len(self._held)

    def parts(self, max_bytes: int, *, is_last: bool) -> Iterator[bytes]:
        while len(self._held) >= max_bytes or (is_last and self._held):
            part = bytes(self._held[:max_bytes])
            del self._held[:max_bytes]
            self._num_taken += len(part)
            yield part
