"""Streams of record batches are those that Arrow's own writer makes, one by one."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest

from miner.serving.arrow_stream import streams_of

COLUMNS: dict[str, Any] = {
    "binary": pa.array([b"one", b"", b"x" * 5000, b"four"]),
    "nulls": pa.array([1, None, 3, None], pa.int8()),
    "bool": pa.array([True, False, None, True]),
    "list": pa.array([[1], [], None, [2, 3]], pa.list_(pa.int32())),
    "struct": pa.array([{"x": 1}, {"x": None}, {"x": 3}, {"x": 4}]),
    "dictionary": pa.array(["a", "b", "a", "c"]).dictionary_encode(),
    "list of dictionaries": pa.ListArray.from_arrays(
        [0, 1, 2, 3, 4], pa.array(["a", "b", "a", "c"]).dictionary_encode()
    ),
    "extension over a dictionary": pa.ExtensionArray.from_storage(
        pa.opaque(pa.dictionary(pa.int32(), pa.string()), "kind", "tests"),
        pa.array(["a", "b", "a", "c"]).dictionary_encode(),
    ),
}


def plain(batch: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize("name", list(COLUMNS))
def test_each_stream_has_the_bytes_of_a_plain_writers(name: str) -> None:
    field = pa.field("column", COLUMNS[name].type, metadata={"of": name})
    schema = pa.schema([pa.field("row_id", pa.int64()), field], metadata={"at": name})
    whole = pa.RecordBatch.from_arrays([pa.array(range(4)), COLUMNS[name]], schema=schema)
    parts = [whole.slice(0, 2), whole.slice(2, 2), whole.slice(1, 0), whole]
    found = [b"".join(piece.to_pybytes() for piece in stream) for stream in streams_of(parts)]
    assert found == [plain(part) for part in parts]
    for stream, part in zip(found, parts, strict=True):
        assert pa.ipc.open_stream(stream).read_all().to_batches() == ([part] if len(part) else [])


def test_buffers_of_the_batches_are_not_copied() -> None:
    content = pa.py_buffer(bytearray(b"not yet!"))
    offsets = pa.array([0, 4, 8], pa.int32()).buffers()[1]
    items = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, content], null_count=0)
    (stream,) = streams_of([pa.record_batch({"image": items})])
    assert content.address in {piece.address for piece in stream}


def test_no_batches_are_no_streams() -> None:
    assert streams_of([]) == []
