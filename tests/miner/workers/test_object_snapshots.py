"""Snapshots below a URI of an object store, without workers."""

from __future__ import annotations

import dataclasses
import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from miner.errors import ConfigError, SnapshotError
from miner.workers.snapshot import (
    DataFile,
    ObjectSnapshots,
    SnapshotKey,
    Snapshots,
    SnapshotStore,
    open_snapshots,
)
from miner.workers.snapshot.check import check_snapshots
from tests.integration.loop import wait_until
from tests.s3_server import S3Server, s3_server

LOCKS = Path("/proc/locks")
KEY = SnapshotKey("w", "p", "d", num_rows=50, chunk_rows=16)
ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    yield server.bucket()
    server.refuses = lambda method, path: False
    server.before = lambda method, path: None


@pytest.fixture
def store(server: S3Server, bucket: str, tmp_path: Path) -> ObjectSnapshots:
    return ObjectSnapshots(server.uri(f"{bucket}/snapshots"), tmp_path / "cache")


@pytest.fixture(params=["folder", "objects"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    if request.param == "folder":
        return SnapshotStore(tmp_path / "snapshots")
    made: ObjectSnapshots = request.getfixturevalue("store")
    return made


def elsewhere(server: S3Server, bucket: str, tmp_path: Path) -> ObjectSnapshots:
    """The same store, seen from another machine."""
    return ObjectSnapshots(server.uri(f"{bucket}/snapshots"), tmp_path / "elsewhere")


def write(store: Snapshots, *chunks: int, rows: np.ndarray = ROWS, key: SnapshotKey = KEY) -> None:
    for chunk in chunks:
        store.write_chunk(key, chunk, rows[slice(*key.rows_of(chunk))])


def rows_name(server: S3Server, bucket: str, chunk: int, key: SnapshotKey = KEY) -> str:
    start = f"snapshots/{key.digest}/chunk-{chunk:08d}-"
    (name,) = (n for n in server.names(bucket) if n.startswith(start))
    return name


# What both kinds of store promise.


def test_the_snapshot_is_the_chunks_in_order(either: Snapshots) -> None:
    write(either, 3, 0, 2)
    assert either.find("w", "d") == KEY
    assert either.missing_chunks(KEY) == [1]
    with pytest.raises(SnapshotError, match=r"chunk 1 of 4 \(rows 16 to 31\) is missing"):
        either.open(KEY)
    write(either, 1)
    assert either.missing_chunks(KEY) == []
    assert np.array_equal(either.open(KEY), ROWS)
    assert np.array_equal(either.open(KEY, range(20, 40)), ROWS[20:40])
    assert np.array_equal(either.read_rows(KEY, 10, 49), ROWS[10:49])
    assert either.open(KEY).flags.writeable is False
    again: Snapshots = pickle.loads(pickle.dumps(either))
    assert np.array_equal(again.open(KEY), ROWS)


def test_a_chunk_written_again_replaces_the_one_before(either: Snapshots) -> None:
    write(either, 0, 1, 2, 3)
    assert np.array_equal(either.open(KEY), ROWS)
    either.write_chunk(KEY, 2, -ROWS[32:48])
    assert np.array_equal(either.open(KEY)[32:48], -ROWS[32:48])
    either.sweep(KEY)
    assert either.missing_chunks(KEY) == []


def test_chunks_that_do_not_go_together_are_an_error(either: Snapshots) -> None:
    write(either, 0, 1, 2, 3)
    either.write_chunk(KEY, 2, np.ones((16, 4), np.float32))
    with pytest.raises(SnapshotError, match=r"chunk 2 .* has 4 dimensions, chunk 0 has 3"):
        either.open(KEY)
    with pytest.raises(SnapshotError, match="chunk 1 has rows 16 to 31, got an array"):
        either.write_chunk(KEY, 1, ROWS[:3])
    assert either.read_rows(KEY, 20, 40) is None


def test_snapshots_of_other_keys_share_nothing(either: Snapshots) -> None:
    write(either, 0, 1, 2, 3)
    for change in ({"weights_sha256": "w2"}, {"num_rows": 49}, {"chunk_rows": 25}):
        other = dataclasses.replace(KEY, **change)
        assert either.missing_chunks(other) == list(range(other.num_chunks))


def test_rows_of_equal_files_are_known(either: Snapshots) -> None:
    files = [DataFile(30, "a" * 64), DataFile(20, "b" * 64)]
    assert either.find("w", "d") is None
    assert either.known_rows(KEY, files) == []
    assert either.find("w", "d") == KEY
    write(either, 0, 1, 2, 3)
    grown = SnapshotKey("w", "p", "grown", num_rows=57, chunk_rows=16)
    known = either.known_rows(grown, [DataFile(7, "c" * 64), files[1], files[0]])
    assert [(k.begin, k.end, k.first, k.key) for k in known] == [(7, 27, 30, KEY), (27, 57, 0, KEY)]
    other_weights = dataclasses.replace(grown, weights_sha256="w2")
    assert either.known_rows(other_weights, files) == []
    assert either.find("w", "grown") == grown
    assert either.find("w", "none") is None


def test_the_row_at_work_is_noted_until_the_chunk_is_written(either: Snapshots) -> None:
    assert either.noted_rows(KEY, 1) == (16, 32)
    either.note_rows(KEY, 1, 20, 21)
    assert either.noted_rows(KEY, 1) == (20, 21)
    write(either, 1)
    assert either.noted_rows(KEY, 1) == (16, 32)
    either.note_rows(KEY, 2, 33, 34)
    either.sweep(KEY)
    assert either.noted_rows(KEY, 2) == (32, 48)


def test_prune_keeps_as_many_and_the_newest(either: Snapshots) -> None:
    keys = [dataclasses.replace(KEY, weights_sha256=str(i)) for i in range(3)]
    for key in keys:
        either.known_rows(key, [])
        write(either, 0, 1, 2, 3, key=key)
    for key in keys:  # whatever a clock of whole seconds says
        pruned: Snapshots = pickle.loads(pickle.dumps(either))
        assert len(pruned.prune(3, newest=key)) == 0
    assert len(either.prune(2, newest=keys[0])) == 1
    assert np.array_equal(either.open(keys[0]), ROWS)
    assert either.prune(1, newest=keys[0]) != []
    assert np.array_equal(either.open(keys[0]), ROWS)
    assert [either.find(str(i), "d") for i in range(3)] == [keys[0], None, None]
    assert either.prune(1) == []


# What goes wrong with objects.

DAMAGES = {
    "a flipped bit": lambda rows: bytes([rows[0] ^ 1]) + rows[1:],
    "cut short": lambda rows: rows[:-5],
    "grown": lambda rows: rows + rows,
    "of nothing": lambda rows: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_refused_and_count_as_missing(
    store: ObjectSnapshots, server: S3Server, bucket: str, tmp_path: Path, damage: str
) -> None:
    write(store, 0, 1, 2, 3)
    name = rows_name(server, bucket, 1)
    content = server.read(bucket, name)
    server.asked.clear()
    server.write(bucket, name, DAMAGES[damage](content))
    with pytest.raises(SnapshotError, match=r"s3://.* chunk 1 of 4 .* does not match its digest"):
        store.open(KEY)
    assert np.array_equal(store.open(KEY, range(32, 50)), ROWS[32:]), "no row of chunk 1"
    assert store.read_rows(KEY, 0, 20) is None
    assert store.missing_chunks(KEY) == [1]
    is_read = bool(server.count("GET", name))
    assert is_read == (damage == "a flipped bit"), "its size is enough"
    ((number, (problem,)),) = [check_snapshots(store)]
    assert number == 1
    assert "chunk-00000001.json" in problem
    write(store, 1)
    assert store.missing_chunks(KEY) == []
    assert check_snapshots(store) == (1, [])
    assert np.array_equal(store.open(KEY), ROWS)


@pytest.mark.parametrize(
    "receipt",
    [None, b"", b"{", b"[1]", {"sha256": "0" * 64}, {"chunk": 2}, {"dim": 0}, {"dim": "3"}],
)
def test_rows_without_a_sound_receipt_do_not_count(
    store: ObjectSnapshots, server: S3Server, bucket: str, receipt: dict | bytes | None
) -> None:
    write(store, 0, 1, 2, 3)
    store.open(KEY)
    name = f"snapshots/{KEY.digest}/chunk-00000001.json"
    if receipt is None:
        server.s3.delete_object(Bucket=bucket, Key=name)
    elif isinstance(receipt, bytes):
        server.write(bucket, name, receipt)
    else:
        content = json.loads(server.read(bucket, name)) | receipt
        server.write(bucket, name, json.dumps(content).encode())
    assert store.missing_chunks(KEY) == [1], "although the cache has it"
    with pytest.raises(SnapshotError, match="chunk 1 of 4"):
        store.open(KEY)
    problems = check_snapshots(store)[1]
    assert len(problems) == (0 if receipt is None else 1)
    write(store, 1)
    assert np.array_equal(store.open(KEY), ROWS)


def test_a_cached_chunk_does_not_hide_damage_from_who_embeds(
    store: ObjectSnapshots, server: S3Server, bucket: str
) -> None:
    write(store, 0, 1, 2, 3)
    store.open(KEY)
    server.write(bucket, rows_name(server, bucket, 3), b"other")
    assert store.missing_chunks(KEY) == [3]


def test_the_later_of_two_writers_counts_and_the_other_rows_are_swept(
    store: ObjectSnapshots, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    other = elsewhere(server, bucket, tmp_path)
    write(store, 0, 1, 2, 3)
    write(other, 1, rows=-ROWS)  # a replaced worker, on another kind of machine
    expected = ROWS.copy()
    expected[16:32] *= -1
    for reader in (store, other):
        assert reader.missing_chunks(KEY) == []
        assert np.array_equal(reader.open(KEY), expected)
    assert sum(n.endswith(".f32") for n in server.names(bucket)) == 5
    store.sweep(KEY)
    assert sum(n.endswith(".f32") for n in server.names(bucket)) == 4
    assert np.array_equal(store.open(KEY), expected)


# What is fetched, and kept.


def test_only_the_chunks_of_the_rows_are_fetched_and_only_once(
    store: ObjectSnapshots, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    write(store, 0, 1, 2, 3)
    reader = elsewhere(server, bucket, tmp_path)
    server.asked.clear()
    assert np.array_equal(reader.open(KEY, range(20, 33)), ROWS[20:33])
    fetched = server.count("GET", ".f32")
    assert {path.rpartition("/")[2][:14] for path in fetched} == {
        "chunk-00000001",
        "chunk-00000002",
    }
    assert sum(fetched.values()) == 2
    server.asked.clear()
    assert np.array_equal(reader.open(KEY, range(20, 33)), ROWS[20:33])
    assert not server.count("GET", ".f32")
    assert np.array_equal(reader.open(KEY), ROWS)
    assert sum(server.count("GET", ".f32").values()) == 2, "the other two"
    assert (tmp_path / "elsewhere" / KEY.digest / "rows-3d.f32").read_bytes() == ROWS.tobytes()


def test_a_damaged_cache_is_fetched_again(
    store: ObjectSnapshots, server: S3Server, tmp_path: Path
) -> None:
    write(store, 0, 1, 2, 3)
    store.open(KEY)
    path = tmp_path / "cache" / KEY.digest / "rows-3d.f32"
    path.write_bytes(path.read_bytes()[:100] + b"\1" + path.read_bytes()[101:])
    server.asked.clear()
    assert np.array_equal(store.open(KEY), ROWS)
    assert sum(server.count("GET", ".f32").values()) == 1
    path.unlink()
    assert np.array_equal(store.open(KEY), ROWS)


def test_the_cache_keeps_what_the_store_keeps(
    store: ObjectSnapshots, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    reader, new = elsewhere(server, bucket, tmp_path), dataclasses.replace(KEY, weights_sha256="2")
    write(store, 0, 1, 2, 3)
    old = reader.open(KEY)
    write(store, 0, 1, 2, 3, key=new)
    assert store.prune(1, newest=new) == [KEY.digest]
    assert not any(KEY.digest in name for name in server.names(bucket))
    reader.open(new)
    folders = [path.name for path in (tmp_path / "elsewhere").iterdir() if path.is_dir()]
    assert folders == [new.digest]
    assert np.array_equal(old, ROWS), "a map outlives it"


READER = """
import sys, numpy as np
from pathlib import Path
from miner.workers.snapshot import ObjectSnapshots, SnapshotKey
store = ObjectSnapshots(sys.argv[1], Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
rows = store.open(SnapshotKey("w", "p", "d", num_rows=50, chunk_rows=16))
sys.stdout.write(str(float(rows.astype(np.float64).sum())))
"""


@pytest.mark.skipif(not LOCKS.exists(), reason="needs Linux")
def test_readers_of_one_machine_fetch_once_for_all(
    store: ObjectSnapshots, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    write(store, 0, 1, 2, 3)
    arguments = [server.uri(f"{bucket}/snapshots"), str(tmp_path / "shared")]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"ready\n"
    lock = tmp_path / "shared" / ".lock"

    def once_the_others_wait(method: str, path: str) -> None:
        if path.endswith(".f32"):
            blocked = f":{lock.stat().st_ino} "
            wait_until(
                lambda: (
                    sum("->" in at and blocked in at for at in LOCKS.read_text().splitlines()) == 2
                ),
                "readers that wait for the first one",
            )

    server.asked.clear()
    server.before = once_the_others_wait
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write(b"go\n")
        reader.stdin.flush()
    sums = {reader.communicate(timeout=60)[0] for reader in readers}
    assert sums == {str(float(ROWS.astype(np.float64).sum())).encode()}
    assert sorted(server.count("GET", ".f32").values()) == [1, 1, 1, 1]


# A store that is away or refuses.


def test_a_store_that_is_away_is_an_error_in_time_and_nothing_is_lost(
    store: ObjectSnapshots, server: S3Server, tmp_path: Path
) -> None:
    write(store, 0, 1)
    server.stop()
    try:
        with pytest.raises(SnapshotError, match=r"s3://bucket.* cannot be written.*snapshots_dir"):
            write(store, 2)
    finally:
        server.start()
    assert store.missing_chunks(KEY) == [2, 3]
    write(store, 2, 3)
    assert np.array_equal(store.open(KEY), ROWS)


def test_a_store_that_is_not_there_yet_is_opened_when_it_is(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    away = ObjectSnapshots(f"s3://b/c?scheme=http&endpoint_override=127.0.0.1:{port}", tmp_path)
    with pytest.raises(SnapshotError, match=r"s3://b/c/\w+ cannot be listed: .*Could not connect"):
        away.missing_chunks(KEY)


def test_a_bucket_that_does_not_exist_is_an_error(server: S3Server, tmp_path: Path) -> None:
    store = ObjectSnapshots(server.uri("no-such-bucket/snapshots"), tmp_path)
    with pytest.raises(SnapshotError, match=r"s3://no-such-bucket/.*NO_SUCH_BUCKET.*snapshots_dir"):
        write(store, 1)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_denied_access_is_an_error(
    store: ObjectSnapshots, server: S3Server, bucket: str, method: str
) -> None:
    write(store, 0, 1, 2, 3)
    server.refuses = lambda how, path: how == method and bucket in path
    act = {"GET": lambda: store.missing_chunks(KEY), "PUT": lambda: write(store, 1)}[method]
    with pytest.raises(SnapshotError, match=r"(?s)s3://bucket-.*ACCESS_DENIED.*snapshots_dir"):
        act()


def test_what_a_store_does_not_delete_is_only_logged(
    store: ObjectSnapshots, server: S3Server, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 0, 1, 2, 3)
    other = dataclasses.replace(KEY, weights_sha256="2")
    write(store, 0, key=other)
    server.refuses = lambda how, path: how == "DELETE" or (how == "POST" and bucket in path)
    assert store.prune(1, newest=KEY) == [other.digest]
    assert "what is not needed any more stays" in caplog.text
    assert np.array_equal(store.open(KEY), ROWS)


def test_a_cache_that_cannot_be_made_is_an_error_that_names_its_setting(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = ObjectSnapshots(server.uri(f"{bucket}/snapshots"), tmp_path / "file" / "cache")
    write(store, 0, 1, 2, 3)
    with pytest.raises(SnapshotError, match="snapshots_cache_dir"):
        store.open(KEY)


# URIs.


def test_nothing_shows_the_secrets_of_a_uri(server: S3Server, tmp_path: Path) -> None:
    uri = server.uri("k3y:s3cret@no-such-bucket/snapshots", "&region=us-east-1")
    store = ObjectSnapshots(uri, tmp_path)
    with pytest.raises(SnapshotError) as caught:
        write(store, 1)
    for text in (str(caught.value), repr(store), repr([store])):
        assert "s3cret" not in text
        assert "s3://no-such-bucket/snapshots" in text
    for broken in ("nosuch://k3y:s3cret@host/x", "s3://k3y:s3cret@b/x?nope=s3cret"):
        with pytest.raises(ConfigError, match="snapshots_dir") as refused:
            ObjectSnapshots(broken, tmp_path)
        assert "s3cret" not in str(refused.value)


def test_places_are_folders_or_uris(server: S3Server, bucket: str, tmp_path: Path) -> None:
    for place in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        folder = open_snapshots(place, tmp_path / "cache")
        assert isinstance(folder, SnapshotStore)
        assert folder.root == tmp_path
    uri = server.uri(f"{bucket}/snapshots/")
    store = open_snapshots(uri, tmp_path / "cache")
    assert isinstance(store, ObjectSnapshots)
    write(store, 0, 1, 2, 3)
    assert {name.split("/")[0] for name in server.names(bucket)} == {"snapshots"}
    assert np.array_equal(store.open(KEY), ROWS)
