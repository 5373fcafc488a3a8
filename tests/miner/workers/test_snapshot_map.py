"""Snapshots as maps: what they cost, who may write when, and what a killed writer leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import SnapshotError
from miner.workers.snapshot import SnapshotKey, SnapshotStore

DIM = 3
ROW_BYTES = DIM * 4
KEY = SnapshotKey("w", "p", "d", num_rows=50, chunk_rows=16)
PWRITE = os.pwrite
ROWS = np.random.default_rng(0).normal(size=(KEY.num_rows, DIM)).astype(np.float32)
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


def write(store: SnapshotStore, *chunks: int) -> None:
    for chunk in chunks:
        store.write_chunk(KEY, chunk, ROWS[slice(*KEY.rows_of(chunk))])


def rows_path(store: SnapshotStore) -> Path:
    return store.root / KEY.digest / f"rows-{DIM}d.f32"


def poke(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.fixture
def store(tmp_path) -> SnapshotStore:
    return SnapshotStore(tmp_path)


class Killed(BaseException):
    """The end of the process."""


def killed(*_: object) -> None:
    raise Killed


def half_then_killed(file: int, data: memoryview, offset: int) -> int:
    PWRITE(file, data[: len(data) // 2], offset)
    raise Killed


def test_nobody_writes_through_the_map(store):
    write(store, *range(4))
    embeddings = store.open(KEY)
    assert (embeddings.shape, embeddings.dtype) == ((50, DIM), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        embeddings[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        embeddings.setflags(write=True)
    assert np.shares_memory(np.ascontiguousarray(embeddings), embeddings), "callers copy nothing"


@NEEDS_PROC
def test_a_snapshot_takes_no_memory_of_the_process(store):
    key = SnapshotKey("w", "p", "d", num_rows=8 * 2**15, chunk_rows=2**15)
    chunk = np.random.default_rng(0).random((2**15, 128), np.float32)
    for i in range(key.num_chunks):
        store.write_chunk(key, i, chunk)
    before = anonymous_bytes()
    embeddings = store.open(key)
    assert embeddings.nbytes == 128 * 2**20
    assert embeddings[:: 2**15].tolist() == [chunk[0].tolist()] * 8
    assert embeddings.max() == chunk.max()
    assert anonymous_bytes() - before < 8 * 2**20


def anonymous_bytes() -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


WRITER = """
import sys, numpy as np
from pathlib import Path
from miner.workers.snapshot import SnapshotKey, SnapshotStore
key = SnapshotKey("w", "p", "d", num_rows=2010, chunk_rows=20)
print("ready", flush=True)
sys.stdin.readline()
for chunk in map(int, sys.argv[2:]):
    begin, end = key.rows_of(chunk)
    rows = np.arange(begin * 3, end * 3, dtype=np.float32).reshape(-1, 3)
    SnapshotStore(Path(sys.argv[1])).write_chunk(key, chunk, rows)
"""


@pytest.mark.parametrize("shared", [False, True], ids=["chunks of their own", "the same chunks"])
def test_processes_write_one_snapshot_at_once(store, shared):
    key = SnapshotKey("w", "p", "d", num_rows=2010, chunk_rows=20)
    # The last chunk comes first, so that the file is created with a hole.
    chunks = [str(chunk) for chunk in reversed(range(key.num_chunks))]
    parts = [chunks, chunks] if shared else [chunks[::2], chunks[1::2]]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.root), *part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for part in parts
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate(b"go\n", timeout=60)
        assert writer.returncode == 0
    assert np.array_equal(store.open(key).ravel(), np.arange(2010 * 3))


@pytest.mark.parametrize("is_there", [False, True], ids=["first write", "of a damaged chunk"])
@pytest.mark.parametrize("at", ["before the rows", "amid the rows", "amid the receipt"])
def test_a_writer_killed_anywhere_leaves_the_chunk_missing(store, monkeypatch, at, is_there):
    write(store, 0, 3, *([1] if is_there else []))
    if is_there:
        poke(rows_path(store), 16 * ROW_BYTES, b"\0\0")
    with monkeypatch.context() as patch:
        if at == "amid the receipt":
            patch.setattr(Path, "replace", killed)
        else:
            patch.setattr(os, "pwrite", killed if at == "before the rows" else half_then_killed)
        with pytest.raises(Killed):
            write(store, 1)
    receipts = sorted(path.name for path in (store.root / KEY.digest).glob("chunk-*"))
    assert receipts == ["chunk-00000000.json", "chunk-00000003.json"], "none over half the rows"
    assert store.missing_chunks(KEY) == [1, 2]
    with pytest.raises(SnapshotError, match=r"chunk 1 of 4 \(rows 16 to 31\) is missing"):
        store.open(KEY)
    write(store, 2, 1)
    store.sweep(KEY)
    assert not list((store.root / KEY.digest).glob(".*"))
    assert np.array_equal(store.open(KEY), ROWS)


def test_a_write_that_the_kernel_cuts_short_goes_on(store, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: PWRITE(file, data[:50], at))
    write(store, *range(4))
    assert np.array_equal(store.open(KEY), ROWS)


def test_a_full_disk_is_an_error_and_the_chunk_is_missing(store):
    write(store, 0)
    rows_path(store).unlink()
    rows_path(store).symlink_to("/dev/full")
    with pytest.raises(SnapshotError, match=r"chunk 1 cannot be written to .*No space left"):
        write(store, 1)
    rows_path(store).unlink()
    assert store.missing_chunks(KEY) == [0, 1, 2, 3]
    write(store, *range(4))
    assert np.array_equal(store.open(KEY), ROWS)


def test_a_sound_chunk_written_again_is_not_touched(store, monkeypatch):
    write(store, *range(4))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", killed)
        write(store, 2)
    assert np.array_equal(store.open(KEY), ROWS)
    store.write_chunk(KEY, 2, -ROWS[32:48])
    assert np.array_equal(store.open(KEY)[32:48], -ROWS[32:48])


def test_an_open_map_follows_the_repair_of_a_chunk(store):
    write(store, *range(4))
    embeddings = store.open(KEY)
    poke(rows_path(store), 20 * ROW_BYTES, bytes(ROW_BYTES))
    assert not embeddings[20].any()
    with pytest.raises(SnapshotError, match=r"chunk 1 of 4 .* does not match its digest"):
        store.open(KEY)
    write(store, 1)
    assert np.array_equal(embeddings, ROWS)


def test_a_map_outlives_its_snapshot(store):
    write(store, *range(4))
    embeddings = store.open(KEY)
    assert store.prune(0) == [KEY.digest]
    assert np.array_equal(embeddings, ROWS)
    with pytest.raises(SnapshotError, match=r"chunk 0 of 4 .* is missing"):
        store.open(KEY)


def test_a_disk_that_cannot_read_rows_is_an_error(store, monkeypatch):
    class BadDisk(FileIO):
        def readinto(self, _: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    write(store, *range(4))
    monkeypatch.setattr("miner.workers.snapshot.chunk_files.FileIO", BadDisk)
    assert store.missing_chunks(KEY) == [0, 1, 2, 3]
    with pytest.raises(SnapshotError, match=r"chunk 0 of 4 .* does not match its digest"):
        store.open(KEY)


def test_a_file_cut_while_it_is_verified_is_an_error_not_a_signal(store, monkeypatch):
    write(store, *range(4))
    memmap = np.memmap

    def cut(*args: object, **options: object) -> object:
        os.truncate(rows_path(store), 49 * ROW_BYTES)
        return memmap(*args, **options)

    monkeypatch.setattr(np, "memmap", cut)
    with pytest.raises(SnapshotError, match=r"cannot be mapped: .*greater than file size"):
        store.open(KEY)


CHUNKS = st.integers(0, KEY.num_chunks - 1)
EVENTS = st.one_of(
    st.tuples(st.just("write"), CHUNKS),
    st.tuples(st.just("killed"), CHUNKS),
    st.tuples(st.just("lose receipt"), CHUNKS),
    st.tuples(st.just("damage"), st.integers(0, ROWS.nbytes - 1)),
    st.tuples(st.just("cut"), st.integers(0, ROWS.nbytes)),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(EVENTS, max_size=12))
def test_whatever_happens_a_chunk_is_whole_or_missing(events):
    sound: set[int] = set()
    with tempfile.TemporaryDirectory() as root:
        store = SnapshotStore(Path(root))
        for event, where in events:
            happen(store, event, where, sound)
            missing = [chunk for chunk in range(KEY.num_chunks) if chunk not in sound]
            assert store.missing_chunks(KEY) == missing
            if missing:
                with pytest.raises(SnapshotError, match=f"chunk {missing[0]} of 4"):
                    store.open(KEY)
            else:
                assert np.array_equal(store.open(KEY), ROWS)


def happen(store: SnapshotStore, event: str, where: int, sound: set[int]) -> None:
    """Do it, and change the set of sound chunks as it should."""
    path = rows_path(store)
    if event == "write":
        write(store, where)
        sound.add(where)
    elif event == "killed" and where not in sound:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", half_then_killed)
            with pytest.raises(Killed):
                write(store, where)
    elif event == "lose receipt":
        (path.parent / f"chunk-{where:08d}.json").unlink(missing_ok=True)
        sound.discard(where)
    elif event == "damage" and path.exists() and where < path.stat().st_size:
        poke(path, where, bytes([ROWS.tobytes()[where] ^ 1]))
        sound.discard(where // (KEY.chunk_rows * ROW_BYTES))
    elif event == "cut" and path.exists() and where < path.stat().st_size:
        os.truncate(path, where)
        sound -= {chunk for chunk in sound if KEY.rows_of(chunk)[1] * ROW_BYTES > where}
