"""Items gathered from many mapped batches are those that Arrow takes."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.data import DatasetConfig, RowStore, ingest
from miner.data.gather import ColumnGather, Items, Scattered
from miner.errors import DatasetError

KINDS: dict[Any, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.timestamp("ms"): st.integers(0, 2**40),
    pa.binary(): st.binary(max_size=9),
    pa.string(): st.text(max_size=5),
}
OTHERS = [pa.bool_(), pa.list_(pa.int32()), pa.large_binary(), pa.struct([("x", pa.int8())])]


@given(data=st.data(), kind=st.sampled_from(list(KINDS)))
def test_gathered_items_are_those_that_arrow_takes(data: st.DataObject, kind: Any) -> None:
    values = data.draw(st.lists(st.lists(KINDS[kind], max_size=6), min_size=1, max_size=4))
    chunks = [pa.array(chunk, kind) for chunk in values]
    gather = ColumnGather.of(chunks)
    assert gather is not None
    places = [(number, item) for number, chunk in enumerate(values) for item in range(len(chunk))]
    asked = data.draw(st.lists(st.sampled_from(places), max_size=12)) if places else []
    chunk_ids, items = np.array(asked, np.int64).reshape(-1, 2).T
    cuts = data.draw(st.lists(st.integers(0, len(asked)), max_size=3))
    ends = np.array([0, *sorted(cuts), len(asked)])
    where = np.ascontiguousarray(chunk_ids), np.ascontiguousarray(items)
    taken = gather.take(*where, ends)
    assert taken is not None
    parts, items = taken
    Scattered([] if items is None else [items]).write()
    for part, (begin, end) in zip(parts, pairwise(ends), strict=True):
        part.validate(full=True)
        assert part.equals(pa.array([chunks[c][i].as_py() for c, i in asked[begin:end]], kind))
    items_asked = [values[c][i] for c, i in asked]
    if pa.types.is_binary(kind):
        num_bytes = [len(item) for item in items_asked]
    elif pa.types.is_string(kind):
        num_bytes = [len(item.encode()) for item in items_asked]
    else:
        num_bytes = [kind.bit_width // 8] * len(asked)
    assert gather.item_bytes(*where).tolist() == num_bytes


@given(data=st.data(), columns=st.lists(st.lists(st.binary(max_size=5), max_size=5), max_size=3))
def test_what_is_copied_from_places_is_what_belongs_there(
    data: st.DataObject, columns: list[list[bytes]]
) -> None:
    scattered, wanted, kept = [], [], []
    for items in columns:
        lying = [np.frombuffer(item + b"!", np.uint8) for item in items]
        ends = np.cumsum([0, *map(len, items)])
        places = np.full(ends[-1] + 3, ord("?"), np.uint8)  # and memory behind them
        sources = np.array([array.ctypes.data for array in lying], np.int64)
        scattered.append(Items(places[: ends[-1]], ends, sources))
        wanted.append((places.ctypes.data, b"".join(items)))
        wanted.append((places.ctypes.data + int(ends[-1]), b"???"))
        kept += [places, *lying]
    plain = np.frombuffer(b"elsewhere", np.uint8)
    wanted.append((plain.ctypes.data, plain.tobytes()))
    pieces = data.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=8))
    copies, expected = [], b""
    for piece in pieces:
        address, content = wanted[piece]
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        copies.append((len(expected), address + begin, end - begin))
        expected += content[begin:end]
    copied = np.zeros(len(expected), np.uint8)
    targets, sources, sizes = np.array(copies, np.int64).reshape(-1, 3).T.copy()
    Scattered(scattered).copy(targets + copied.ctypes.data, sources, sizes)
    assert copied.tobytes() == expected


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_columns_of_other_kinds_are_left_to_arrow(kind: Any) -> None:
    assert ColumnGather.of([pa.array([], kind)]) is None


def test_columns_with_nulls_are_left_to_arrow() -> None:
    assert ColumnGather.of([pa.array([1, 2]), pa.array([3, None])]) is None


def test_more_bytes_than_an_array_can_hold_are_left_to_arrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("miner.data.gather.MAX_BYTES", 7)
    gather = ColumnGather.of([pa.array([b"abcd"])])
    assert gather is not None
    twice = np.zeros(2, np.int64)
    (arrays, items) = gather.take(twice[:1], twice[:1], np.array([0, 1])) or ([], None)
    assert items is not None
    Scattered([items]).write()
    assert arrays[0].to_pylist() == [b"abcd"]
    assert gather.take(twice, twice, np.array([0, 2])) is None


@pytest.mark.parametrize("damaged_bytes", [8 * 1000, 4 * 1001], ids=["numbers", "offsets"])
def test_a_column_with_less_memory_than_items_is_damage(tmp_path: Path, damaged_bytes: int) -> None:
    table = pa.table(
        {
            "sample_id": range(1000),
            "identity": [i // 2 for i in range(1000)],
            "image": [b"pixels %04d" % i for i in range(1000)],
            "width": np.arange(1000),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    columns = ("image", "width")
    dataset = DatasetConfig(uri=str(tmp_path / "data.parquet"), payload_columns=columns)
    ingest(dataset, tmp_path / "store")
    RowStore.open(tmp_path / "store")
    payload = tmp_path / "store" / "payload.arrow"
    content = payload.read_bytes()
    length = struct.pack("<q", damaged_bytes)  # of a buffer, in the batch's metadata
    assert content.count(length) == 1
    payload.write_bytes(content.replace(length, bytes(8)))
    with pytest.raises(DatasetError, match=r"payload\.arrow: a column is shorter than its items"):
        RowStore.open(tmp_path / "store")


def test_offsets_that_lead_outside_are_damage_and_no_crash(tmp_path: Path) -> None:
    table = pa.table(
        {
            "sample_id": range(100),
            "identity": [i // 2 for i in range(100)],
            "image": [b"pixels %02d" % i for i in range(100)],
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    ingest(DatasetConfig(uri=str(tmp_path / "data.parquet")), tmp_path / "store")
    offsets = np.arange(0, 101 * 9, 9, np.int32).tobytes()
    payload = tmp_path / "store" / "payload.arrow"
    content = payload.read_bytes()
    at = content.index(offsets) + 4 * 50
    payload.write_bytes(content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :])
    store = RowStore.open(tmp_path / "store")
    assert store.read(np.array([3, 7]))["image"].to_pylist() == [b"pixels 03", b"pixels 07"]
    for row in (49, 50):
        with pytest.raises(DatasetError, match=r"payload\.arrow: an item lies outside its column"):
            store.read(np.array([row]))
        with pytest.raises(DatasetError, match=r"payload\.arrow: an item lies outside its column"):
            store.row_bytes(np.array([row]))
