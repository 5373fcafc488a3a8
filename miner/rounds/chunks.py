"""Groups as an Arrow IPC file and back: one record per group, its columns as lists.

Any Arrow reader can open a chunk. Shape legend: G = groups, R = rows, T = triplets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.types import Groups

__all__ = ["decode_chunk", "encode_chunk"]

_ROW_COLUMNS = {"row_ids": pa.int64(), "identity_ids": pa.int32()}
_TRIPLET_COLUMNS = {
    "anchors": pa.int32(),
    "positives": pa.int32(),
    "negatives": pa.int32(),
    "similarities_ap": pa.float32(),
    "similarities_an": pa.float32(),
    "tiers": pa.uint8(),
}


def encode_chunk(groups: Groups) -> bytes:
    """The bytes of a chunk; equal groups give equal bytes."""
    columns = {
        name: _lists(getattr(groups, f"{name}_R"), groups.row_offsets_G1, of)
        for name, of in _ROW_COLUMNS.items()
    } | {
        name: _lists(getattr(groups, f"{name}_T"), groups.triplet_offsets_G1, of)
        for name, of in _TRIPLET_COLUMNS.items()
    }
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def decode_chunk(content: bytes) -> Groups:
    """The groups of a chunk, as read-only views of ``content``."""
    batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
    columns: dict[str, Any] = {
        f"{name}_R": batch.column(name).flatten().to_numpy() for name in _ROW_COLUMNS
    } | {f"{name}_T": batch.column(name).flatten().to_numpy() for name in _TRIPLET_COLUMNS}
    return Groups(
        **columns,
        row_offsets_G1=_offsets(batch.column("row_ids")),
        triplet_offsets_G1=_offsets(batch.column("anchors")),
    )


def _lists(values: npt.NDArray[Any], offsets_G1: npt.NDArray[np.int64], of: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets_G1, pa.int32()), pa.array(values, of))


def _offsets(column: Any) -> npt.NDArray[np.int64]:
    offsets: npt.NDArray[np.int64] = column.offsets.to_numpy().astype(np.int64)
    return offsets
