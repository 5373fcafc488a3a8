"""Embedding on a real Ray into a real S3 API: what is lost, what is kept, what comes out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.core import SelectionConfig, mine_round
from miner.data import DatasetConfig, ingest
from miner.data.row_store import RowStore
from miner.errors import PoisonSampleError, SnapshotError
from miner.index.config import IndexConfig
from miner.workers.config import WorkersConfig
from miner.workers.embed import EmbedPool, EmbedReport
from miner.workers.embed_worker import ChunkEmbedder
from miner.workers.search import SearchRequest, search, search_snapshot
from miner.workers.snapshot import ObjectSnapshots, SnapshotStore
from tests.miner.workers.conftest import ENTRY_POINTS
from tests.s3_server import S3Server, s3_server

pytestmark = pytest.mark.usefixtures("server", "ray_local")  # Ray's workers inherit credentials


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> str:
    server.asked.clear()
    return server.bucket()


@pytest.fixture
def snapshots(server: S3Server, bucket: str, tmp_path: Path) -> ObjectSnapshots:
    return ObjectSnapshots(server.uri(f"{bucket}/snapshots"), tmp_path / "cache")


@pytest.fixture
def pool(workshop: Any, server: S3Server, ray_local: None, snapshots: Any) -> Iterator[EmbedPool]:
    pool = EmbedPool(workshop.workers, workshop.encoder, workshop.store, snapshots)
    yield pool
    pool.shutdown()


def on_disk(workshop: Any, root: Path, uri: str, sha256: str) -> SnapshotStore:
    """The same snapshot, embedded into a folder by this process."""
    folder = SnapshotStore(root)
    embedder = ChunkEmbedder(workshop.store, workshop.encoder, folder)
    embedder.load(uri, sha256)
    key = embedder.key(sha256, workshop.workers.chunk_rows)
    for chunk in range(key.num_chunks):
        embedder.embed_chunk(key, chunk)
    workshop.calm()
    return folder


def test_a_killed_worker_costs_its_chunk_and_the_rows_are_those_of_a_folder(
    workshop: Any, pool: EmbedPool, server: S3Server, snapshots: ObjectSnapshots, tmp_path: Path
) -> None:
    uri, sha256 = workshop.weights(1)
    folder = on_disk(workshop, tmp_path / "folder", uri, sha256)
    workshop.trigger(32 + 9, "kill-once")
    key = pool.key(sha256)
    assert pool.embed(key, uri) == EmbedReport(7, 7, 0, 1, 100)
    rehearsed = range(32, 48)
    expected = Counter(range(0, 100, 8)) + Counter(rehearsed) + Counter([32, 40])
    assert Counter(workshop.batches_begun()) == expected
    put = server.count("PUT", "/chunk-")
    receipts = {path: n for path, n in put.items() if path.endswith(".json")}
    assert len(receipts) == 7
    assert set(receipts.values()) == {1}
    assert snapshots.open(key).tobytes() == folder.open(key).tobytes()


def test_damaged_objects_are_embedded_again_and_no_others(
    workshop: Any, pool: EmbedPool, server: S3Server, bucket: str, snapshots: ObjectSnapshots
) -> None:
    uri, sha256 = workshop.weights(2)
    key = pool.key(sha256)
    assert pool.embed(key, uri).num_embedded == 7
    whole = snapshots.open(key).tobytes()
    names = sorted(name for name in server.names(bucket) if name.endswith(".f32"))
    content = server.read(bucket, names[1])
    server.write(bucket, names[1], content[:7] + bytes([content[7] ^ 64]) + content[8:])
    server.write(bucket, names[4], server.read(bucket, names[4])[:-3])
    server.s3.delete_object(Bucket=bucket, Key=names[6])
    with pytest.raises(SnapshotError, match="chunk 1 of 7"):
        ObjectSnapshots(server.uri(f"{bucket}/snapshots"), snapshots.scratch / "new").open(key)
    workshop.calm()
    assert pool.embed(key, uri) == EmbedReport(7, 3, 4, 0, 36)
    assert workshop.batches_begun() == [16, 24, 64, 72, 96]
    assert snapshots.open(key).tobytes() == whole
    workshop.calm()
    restarted = EmbedPool(workshop.workers, workshop.encoder, workshop.store, snapshots)
    assert restarted.embed(key, "/nowhere/to/be/read") == EmbedReport(7, 0, 7, 0, 0)
    restarted.shutdown()
    assert workshop.batches_begun() == []


def test_a_store_that_goes_away_fails_the_snapshot_and_finished_chunks_are_kept(
    workshop: Any, pool: EmbedPool, server: S3Server, snapshots: ObjectSnapshots
) -> None:
    uri, sha256 = workshop.weights(3)
    key, done = pool.key(sha256), []

    def go_away_after_three(rows: int, _: int) -> None:
        done.append(rows)
        if len(done) == 3:
            server.stop()

    try:
        with pytest.raises(SnapshotError, match=r"s3://bucket-\S+ cannot be written: .*connect"):
            pool.embed(key, uri, go_away_after_three)
    finally:
        server.start()
    assert workshop.batches_begun() == list(range(0, 64, 8))
    workshop.calm()
    assert pool.embed(key, uri) == EmbedReport(7, 4, 3, 0, 52)
    assert workshop.batches_begun() == list(range(48, 100, 8))
    assert snapshots.open(key).shape == (100, 5)


@pytest.mark.long
def test_a_sample_that_kills_its_worker_is_named(workshop: Any, pool: EmbedPool) -> None:
    uri, sha256 = workshop.weights(4)
    workshop.trigger(50, "kill")
    with pytest.raises(PoisonSampleError, match=r"row 50 \(sample id 's050'\) .* chunk 3 .* 2 "):
        pool.embed(pool.key(sha256), uri)


@pytest.mark.long
def test_machines_that_share_no_disk_embed_the_same(
    workshop: Any, server: S3Server, bucket: str, snapshots: ObjectSnapshots, tmp_path: Path
) -> None:
    """The worker finds no row store, and its successor no weights, where the driver has them."""
    uri, sha256 = workshop.weights(7)
    expected = on_disk(workshop, tmp_path / "folder", uri, sha256)
    server.write(bucket, "data/all.parquet", (workshop.root / "data.parquet").read_bytes())
    dataset = DatasetConfig(uri=server.uri(f"{bucket}/data"), payload_columns=("vector",))
    store = tmp_path / "machine" / "state" / "store"
    pool = EmbedPool(workshop.workers, workshop.encoder, store, snapshots, dataset)
    copy = tmp_path / "copy" / "all.parquet"
    copy.parent.mkdir()
    copy.write_bytes(server.read(bucket, "data/all.parquet"))
    ingest(dataset.model_copy(update={"uri": str(copy)}), tmp_path / "driver")
    key = pool.key(sha256)
    assert key.dataset_fingerprint == RowStore.open(tmp_path / "driver").fingerprint
    workshop.trigger(40, "kill-once")
    report = pool.embed(key, uri, lambda *_: Path(uri).unlink(missing_ok=True))
    assert (report.num_embedded, report.num_lost_workers) == (7, 1)
    pool.shutdown()
    made = expected.find(sha256, RowStore.open(workshop.store).fingerprint)
    assert made is not None
    assert np.allclose(snapshots.open(key), expected.open(made), atol=1e-6)


DRIVER = """
import sys
from pathlib import Path
from miner.embedding.config import EncoderConfig
from miner.workers.embed_worker import ChunkEmbedder
from miner.workers.snapshot import ObjectSnapshots
store, config, uri, cache, weights, sha256 = sys.argv[1:]
snapshots = ObjectSnapshots(uri, Path(cache))
embedder = ChunkEmbedder(Path(store), EncoderConfig.model_validate_json(config), snapshots)
embedder.load(weights, sha256)
key = embedder.key(sha256, 16)
for chunk in snapshots.missing_chunks(key):
    embedder.embed_chunk(key, chunk)
"""


@pytest.mark.long
@pytest.mark.parametrize("at", ["receipt of chunk 2", "rows of chunk 3"])
def test_a_process_killed_between_two_puts_leaves_what_it_has_finished(
    workshop: Any, server: S3Server, bucket: str, tmp_path: Path, at: str
) -> None:
    """SIGKILL as the server is asked for the put named, which so never happens."""
    weights, sha256 = workshop.weights(5)
    uri = server.uri(f"{bucket}/snapshots")
    config = workshop.encoder.model_dump_json()
    arguments = [str(workshop.store), config, uri, str(tmp_path), weights, sha256]
    command = [sys.executable, "-c", DRIVER, *arguments]
    path = os.pathsep.join([str(ENTRY_POINTS), os.getcwd()])
    environment = os.environ | {"PYTHONPATH": path}
    name = "chunk-00000002.json" if at == "receipt of chunk 2" else "chunk-00000003-"

    def killed(method: str, path: str) -> bool:
        if method == "PUT" and f"/{name}" in path:
            first.kill()
            return True
        return False

    server.refuses = killed
    first = subprocess.Popen(command, env=environment)
    assert first.wait(60) == -signal.SIGKILL
    server.refuses = lambda method, path: False
    unfinished = 32 if at == "receipt of chunk 2" else 48
    assert workshop.batches_begun() == list(range(0, unfinished + 16, 8))
    workshop.calm()
    subprocess.run(command, env=environment, check=True)
    assert workshop.batches_begun() == list(range(unfinished, 100, 8))
    snapshots = ObjectSnapshots(uri, tmp_path)
    key = snapshots.find(sha256, RowStore.open(workshop.store).fingerprint)
    assert key is not None
    assert snapshots.missing_chunks(key) == []


def test_shards_find_the_candidates_and_groups_of_a_folder(
    workshop: Any,
    pool: EmbedPool,
    server: S3Server,
    bucket: str,
    snapshots: ObjectSnapshots,
    tmp_path: Path,
) -> None:
    uri, sha256 = workshop.weights(6)
    folder = on_disk(workshop, tmp_path / "folder", uri, sha256)
    key = pool.key(sha256)
    pool.embed(key, uri)
    pool.shutdown()  # its CPU is needed
    identities = RowStore.open(workshop.store).catalog.identities
    candidates, groups = [], []
    for store in (folder, snapshots):
        request = SearchRequest(store, key, identities, np.arange(100), 20)
        candidates.append(search(request, IndexConfig(), num_threads=1).candidates)
        mined = mine_round(
            lambda anchors, k, of=request: (
                search(
                    replace(of, anchor_ids_A=anchors, num_candidates=k),
                    IndexConfig(),
                    num_threads=1,
                ).candidates
            ),
            store.open(key),
            identities,
            SelectionConfig(groups_per_round=20, num_candidates=20),
            seed=1,
            round_id=1,
        )
        groups.append(mined.groups)
    elsewhere = ObjectSnapshots(server.uri(f"{bucket}/snapshots"), tmp_path / "elsewhere")
    server.asked.clear()
    request = SearchRequest(elsewhere, key, identities, np.arange(100), 20)
    shards = WorkersConfig(search_shards=2, search_cpus=0.5)
    candidates.append(search_snapshot(request, IndexConfig(), shards).candidates)
    assert sorted(server.count("GET", ".f32").values()) == [1] * 7, "one fetches for the machine"
    for found in candidates:
        assert np.array_equal(found.row_ids_AK, candidates[0].row_ids_AK)
        assert found.similarities_AK.tobytes() == candidates[0].similarities_AK.tobytes()
    assert groups[0].num_groups == 20
    for name in groups[0].__slots__:
        one, other = (np.asarray(getattr(group, name)) for group in groups)
        assert np.array_equal(one, other), name
