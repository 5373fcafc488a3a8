import dataclasses
import json
import os

import numpy as np
import pytest

from miner.errors import SnapshotError
from miner.workers.snapshot import SnapshotKey, SnapshotStore

KEY = SnapshotKey("w", "p", "d", num_rows=50, chunk_rows=16)


def rows(seed: int = 0, num_rows: int = 50, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, dim)).astype(np.float32)


def write_all(store: SnapshotStore, embeddings: np.ndarray, key: SnapshotKey = KEY) -> None:
    for chunk in range(key.num_chunks):
        begin, end = key.rows_of(chunk)
        store.write_chunk(key, chunk, embeddings[begin:end])


def file_of(store: SnapshotStore, name: str, key: SnapshotKey = KEY):
    return store.root / key.digest / name


def test_the_snapshot_is_the_chunks_in_order(tmp_path):
    store, embeddings = SnapshotStore(tmp_path), rows()
    for chunk in (3, 0, 2, 1):
        begin, end = KEY.rows_of(chunk)
        receipt = store.write_chunk(KEY, chunk, embeddings[begin:end])
        assert (receipt.chunk, receipt.num_rows, receipt.dim) == (chunk, end - begin, 3)
    assert np.array_equal(SnapshotStore(tmp_path).open(KEY), embeddings)
    assert [KEY.rows_of(chunk) for chunk in range(4)] == [(0, 16), (16, 32), (32, 48), (48, 50)]
    assert file_of(store, "rows-3d.f32").read_bytes() == embeddings.tobytes()
    names = sorted(path.name for path in (tmp_path / KEY.digest).iterdir())
    assert names == ["KEY.json", *(f"chunk-{c:08d}.json" for c in range(4)), "rows-3d.f32"]


def test_an_incomplete_snapshot_is_not_readable(tmp_path):
    store = SnapshotStore(tmp_path)
    assert store.missing_chunks(KEY) == [0, 1, 2, 3]
    store.write_chunk(KEY, 0, rows()[:16])
    store.write_chunk(KEY, 2, rows()[32:48])
    assert store.missing_chunks(KEY) == [1, 3]
    with pytest.raises(SnapshotError, match=r"chunk 1 of 4 \(rows 16 to 31\) is missing"):
        store.open(KEY)


def overwrite(path, offset: int, content: bytes):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


CHUNK_1 = slice(16 * 12, 32 * 12)
DAMAGES = {
    "first byte": ("rows-3d.f32", lambda path: overwrite(path, CHUNK_1.start, b"\0")),
    "last byte": ("rows-3d.f32", lambda path: overwrite(path, CHUNK_1.stop - 1, b"\0")),
    "a hole": ("rows-3d.f32", lambda path: overwrite(path, CHUNK_1.start, bytes(16 * 12))),
    "no receipt": ("chunk-00000001.json", lambda path: path.unlink()),
    "receipt cut short": ("chunk-00000001.json", lambda path: os.truncate(path, 20)),
    "receipt of something else": ("chunk-00000001.json", lambda path: path.write_text("[1]")),
    "other chunk's receipt": (
        "chunk-00000001.json",
        lambda path: path.write_text((path.parent / "chunk-00000002.json").read_text()),
    ),
    "digest flipped": (
        "chunk-00000001.json",
        lambda path: path.write_text(
            json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64})
        ),
    ),
    "of no dimensions": (
        "chunk-00000001.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"dim": 0})),
    ),
    "of dimensions that are no number": (
        "chunk-00000001.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"dim": "3"})),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_refused_and_counts_as_missing(tmp_path, damage):
    store, embeddings = SnapshotStore(tmp_path), rows()
    write_all(store, embeddings)
    name, harm = DAMAGES[damage]
    harm(file_of(store, name))
    with pytest.raises(SnapshotError, match="chunk 1 of 4"):
        store.open(KEY)
    assert store.missing_chunks(KEY) == [1]
    store.write_chunk(KEY, 1, embeddings[16:32])
    assert store.missing_chunks(KEY) == []
    assert np.array_equal(store.open(KEY), embeddings)


@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 17 * 12), os.remove])
def test_all_that_a_short_file_no_longer_holds_is_missing(tmp_path, harm):
    store, embeddings = SnapshotStore(tmp_path), rows()
    write_all(store, embeddings)
    path = file_of(store, "rows-3d.f32")
    harm(path)
    lost = store.missing_chunks(KEY)
    assert lost == ([1, 2, 3] if path.exists() else [0, 1, 2, 3])
    with pytest.raises(SnapshotError, match=f"chunk {lost[0]} of 4 .* is missing or truncated"):
        store.open(KEY)
    for chunk in reversed(lost):
        begin, end = KEY.rows_of(chunk)
        store.write_chunk(KEY, chunk, embeddings[begin:end])
    assert np.array_equal(store.open(KEY), embeddings)


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "w2"},
        {"preprocessing_fingerprint": "p2"},
        {"dataset_fingerprint": "d2"},
        {"num_rows": 51},
        {"chunk_rows": 25},
    ],
)
def test_snapshots_of_other_keys_share_nothing(tmp_path, change):
    store = SnapshotStore(tmp_path)
    write_all(store, rows())
    other = dataclasses.replace(KEY, **change)
    assert store.missing_chunks(other) == list(range(other.num_chunks))
    embeddings = rows(1, other.num_rows)
    write_all(store, embeddings, other)
    assert np.array_equal(store.open(other), embeddings)
    assert np.array_equal(store.open(KEY), rows())


def test_chunks_of_other_dimensions_do_not_go_together(tmp_path):
    store = SnapshotStore(tmp_path)
    write_all(store, rows())
    store.write_chunk(KEY, 2, rows(0, 16, 4))
    with pytest.raises(SnapshotError, match=r"chunk 2 .* has 4 dimensions, chunk 0 has 3"):
        store.open(KEY)
    store.write_chunk(KEY, 2, rows()[32:48])
    assert np.array_equal(store.open(KEY), rows()), "the others were not touched"


@pytest.mark.parametrize("shape", [(15, 3), (17, 3), (16,), (16, 0)])
def test_a_chunk_of_another_size_is_not_written(tmp_path, shape):
    store = SnapshotStore(tmp_path)
    with pytest.raises(SnapshotError, match="chunk 1 has rows 16 to 31, got an array"):
        store.write_chunk(KEY, 1, np.zeros(shape, np.float32))
    assert store.missing_chunks(KEY) == [0, 1, 2, 3]


def test_a_disk_that_refuses_is_a_snapshot_error(tmp_path):
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(SnapshotError, match="chunk 1 cannot be written to"):
        SnapshotStore(tmp_path / "root").write_chunk(KEY, 1, rows()[16:32])


def test_prune_keeps_the_snapshots_used_last(tmp_path):
    store = SnapshotStore(tmp_path)
    keys = [dataclasses.replace(KEY, weights_sha256=str(i)) for i in range(4)]
    for age, key in enumerate(keys):
        write_all(store, rows(age), key)
        os.utime(file_of(store, "KEY.json", key), (1000 + age, 1000 + age))
    leftover = tmp_path / "cut-short"
    leftover.mkdir()
    store.open(keys[0])
    assert store.prune(2) == [keys[2].digest, keys[1].digest, "cut-short"]
    assert np.array_equal(store.open(keys[0]), rows(0))
    assert np.array_equal(store.open(keys[3]), rows(3))
    assert store.missing_chunks(keys[2]) == [0, 1, 2, 3]
    assert store.prune(2) == []


def test_the_rows_at_work_are_noted_until_the_chunk_is_written(tmp_path):
    store = SnapshotStore(tmp_path)
    assert store.noted_rows(KEY, 1) == (16, 32)
    store.note_rows(KEY, 1, 20, 24)
    assert SnapshotStore(tmp_path).noted_rows(KEY, 1) == (20, 24)
    store.write_chunk(KEY, 1, rows()[16:32])
    assert store.noted_rows(KEY, 1) == (16, 32)
    store.note_rows(KEY, 2, 33, 34)
    store.sweep(KEY)
    assert store.noted_rows(KEY, 2) == (32, 48)
