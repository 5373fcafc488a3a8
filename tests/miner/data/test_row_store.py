"""The row store against the rows that were ingested."""

import importlib
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.data import DatasetConfig, RowStore, ingest, scan_catalog
from miner.data.fingerprint import PayloadDigest
from miner.errors import DatasetError

NUM_ROWS = 500
INGEST = importlib.import_module("miner.data.ingest")  # its function hides it in miner.data


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Two payload columns of awkward types, nulls among them."""
    rng = np.random.default_rng(3)
    return pa.table(
        {
            "sample_id": [f"s{i:03d}" for i in rng.permutation(NUM_ROWS)],
            "identity": pa.array(rng.integers(0, 40, NUM_ROWS)),
            "image": [rng.bytes(int(n)) if n else None for n in rng.integers(0, 60, NUM_ROWS)],
            "box": pa.array(rng.random((NUM_ROWS, 3)).tolist(), pa.list_(pa.float32(), 3)),
            "split": pa.array(rng.choice(["train", "test"], NUM_ROWS)).dictionary_encode(),
        }
    )


@pytest.fixture(scope="module")
def config(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    folder = tmp_path_factory.mktemp("dataset")
    for number, begin in enumerate(range(0, NUM_ROWS, 170)):
        pq.write_table(table.slice(begin, 170), folder / f"{number}.parquet", row_group_size=50)
    return DatasetConfig(uri=str(folder), payload_columns=("image", "box", "split"))


@pytest.fixture(scope="module")
def store(config: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> RowStore:
    with pytest.MonkeyPatch.context() as patch:
        # Batches far smaller than real ones, so that reads and scans cross many of them.
        patch.setattr(INGEST, "READ_ROWS", 16)
        patch.setattr(INGEST, "MAX_BATCH_ROWS", 37)
        path = ingest(config, tmp_path_factory.mktemp("work") / "store").path
    store = RowStore.open(path)
    assert len(store._batches) > 10
    return store


def expected_rows(table: pa.Table, row_ids: list[int]) -> list[dict[str, Any]]:
    payload = table.select(["image", "box", "split"]).to_pylist()
    return [{"row_id": row_id, **payload[row_id]} for row_id in row_ids]


@given(row_ids=st.lists(st.integers(0, NUM_ROWS - 1), max_size=60))
def test_read_gives_each_row_asked_for_in_order_with_repeats(
    store: RowStore, table: pa.Table, row_ids: list[int]
) -> None:
    batch = store.read(np.array(row_ids, np.int64))
    assert batch.schema == store.schema
    assert batch.to_pylist() == expected_rows(table, row_ids)


@given(row_ids=st.lists(st.integers(0, NUM_ROWS - 1), max_size=30), data=st.data())
def test_parts_that_are_read_together_have_the_bytes_of_each_by_itself(
    store: RowStore, row_ids: list[int], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(row_ids)), max_size=4))
    ends, rows = np.array([0, *sorted(cuts), len(row_ids)]), np.array(row_ids, np.int64)
    parts, scattered = store.lay_out(rows, ends)
    scattered.write()
    for part, (begin, end) in zip(parts, pairwise(ends), strict=True):
        assert part.serialize().equals(store.read(rows[begin:end]).serialize())


@given(
    bounds=st.tuples(st.integers(0, NUM_ROWS), st.integers(0, NUM_ROWS)), rows=st.integers(1, 90)
)
def test_scan_gives_the_range_in_batches_of_the_size_asked_for(
    store: RowStore, table: pa.Table, bounds: tuple[int, int], rows: int
) -> None:
    begin, end = sorted(bounds)
    batches = list(store.scan(begin, end, rows))
    assert all(batch.num_rows == rows for batch in batches[:-1])
    assert [row for batch in batches for row in batch.to_pylist()] == expected_rows(
        table, list(range(begin, end))
    )


def test_the_schema_is_row_id_then_payload_with_dictionaries_decoded(store: RowStore) -> None:
    assert [(field.name, str(field.type)) for field in store.schema] == [
        ("row_id", "int64"),
        ("image", "binary"),
        ("box", "fixed_size_list<element: float>[3]"),
        ("split", "string"),
    ]


def test_the_catalog_comes_back_from_disk_without_the_dataset(
    store: RowStore, config: DatasetConfig
) -> None:
    scanned, kept = scan_catalog(config), store.catalog
    assert kept.sample_ids.equals(scanned.sample_ids)
    assert kept.identity_names.equals(scanned.identity_names)
    assert (kept.fingerprint, kept.files) == (scanned.fingerprint, scanned.files)
    assert store.fingerprint == scanned.fingerprint
    assert store.num_rows == kept.num_rows == NUM_ROWS
    for name in ("identity_ids_N", "offsets_I1", "rows_N"):
        ours, theirs = getattr(kept.identities, name), getattr(scanned.identities, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("row_id", [-1, NUM_ROWS, 2**62])
def test_a_row_id_outside_the_store_is_refused(store: RowStore, row_id: int) -> None:
    with pytest.raises(DatasetError, match=rf"first are \[{row_id}\]: its rows are 0 to 499"):
        store.read(np.array([0, row_id, 1]))


@pytest.mark.parametrize("bad", [(-1, 5, 2), (5, 4, 2), (0, NUM_ROWS + 1, 2), (0, 5, 0)])
def test_a_scan_outside_the_store_is_refused(store: RowStore, bad: tuple[int, int, int]) -> None:
    with pytest.raises(DatasetError, match=f"cannot scan rows {bad[0]} to {bad[1]}"):
        store.scan(*bad)


def test_a_pickle_is_the_path_alone_and_opens_in_another_process(
    store: RowStore, table: pa.Table
) -> None:
    assert len(pickle.dumps(store)) < 1000
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        batch = pool.submit(store.read, np.array([499, 3])).result()
    assert batch.to_pylist() == expected_rows(table, [499, 3])


def test_random_reads_do_not_copy_the_store(tmp_path: Path) -> None:
    rows, size = 4096, 16_384
    (tmp_path / "d").mkdir()
    images = pa.array([bytes([i % 251]) * size for i in range(rows)])
    pq.write_table(
        pa.table(
            {"sample_id": range(rows), "identity": [i % 9 for i in range(rows)], "image": images}
        ),
        tmp_path / "d" / "a.parquet",
        row_group_size=256,
    )
    del images
    store = RowStore.open(ingest(DatasetConfig(uri=str(tmp_path / "d")), tmp_path / "s").path)
    pool = pa.default_memory_pool()
    pool.release_unused()
    before = pool.bytes_allocated()
    batch = store.read(np.array([4000, 7, 2000]))
    assert batch["image"].to_pylist() == [bytes([i % 251]) * size for i in (4000, 7, 2000)]
    assert pool.bytes_allocated() - before < 20 * size


@pytest.fixture
def copy(store: RowStore, tmp_path: Path) -> Path:
    """A store to damage."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in store.root.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_folder_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no row store in .*; ingest the dataset first"):
        RowStore.open(tmp_path)


@pytest.mark.parametrize("name", ["payload.arrow", "samples.arrow", "identities.arrow"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_truncated_file_is_found_at_opening(
    copy: Path, name: str, damage: str
) -> None:
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    if damage == "truncated":
        (copy / name).write_bytes(data[:-9])
    with pytest.raises(DatasetError, match=rf"is damaged: {name} has \d+ bytes of {len(data)}"):
        RowStore.open(copy)


def test_a_damaged_end_is_found_at_opening_and_a_flipped_byte_by_verify(copy: Path) -> None:
    assert RowStore.open(copy).verify() == []
    path = copy / "payload.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    problems = RowStore.open(copy).verify()
    assert len(problems) == 1
    assert "payload.arrow does not match its sha256" in problems[0]
    path.write_bytes(data[:-200] + bytes(200))
    with pytest.raises(DatasetError, match=r"payload\.arrow cannot be mapped"):
        RowStore.open(copy)


def test_a_store_of_an_earlier_version_is_not_called_damaged(copy: Path) -> None:
    manifest = json.loads((copy / "STORE.json").read_text())
    del manifest["payload_sha256s"]
    (copy / "STORE.json").write_text(json.dumps({**manifest, "version": 1}))
    with pytest.raises(DatasetError, match=r"has version 1, .* reads version 2; ingest again into"):
        RowStore.open(copy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 2', '"version": 7', "has version 7, this program reads version 2"),
        ('"num_rows": 500', '"num_rows": 501', "payload.arrow holds 500 rows of 501"),
        ('"fingerprint"', '"fingerprnt"', r"STORE\.json cannot be read"),
        ("}", "", r"STORE\.json cannot be read"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    copy: Path, old: str, new: str, message: str
) -> None:
    manifest = copy / "STORE.json"
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=message):
        RowStore.open(copy)


@given(cuts=st.lists(st.integers(0, 700), max_size=6), data=st.data())
def test_a_payload_digest_is_of_the_rows_and_not_of_their_batches(
    cuts: list[int], data: st.DataObject
) -> None:
    rng = np.random.default_rng(5)
    rows = pa.record_batch(
        {
            "image": [rng.bytes(int(n)) if n else None for n in rng.integers(0, 9, 700)],
            "box": pa.array(rng.integers(0, 9, (700, 2)).tolist(), pa.list_(pa.int8())),
            "weight": rng.random(700),
        }
    )

    def digest(batch: pa.RecordBatch, edges: list[int]) -> str:
        made = PayloadDigest(batch.schema)
        for begin, end in pairwise(edges):
            made.update(batch.slice(begin, end - begin))
        return made.sha256()

    whole = digest(rows, [0, 700])
    assert digest(rows, [0, *sorted(cuts), 700]) == whole
    changed = data.draw(st.integers(0, 699))
    weights = rows["weight"].to_numpy().copy()
    weights[changed] += 1
    assert digest(rows.set_column(2, "weight", pa.array(weights)), [0, 700]) != whole
    assert digest(rows.rename_columns(["image", "box", "w"]), [0, 700]) != whole
    assert digest(rows.slice(1), [0, 699]) != whole
