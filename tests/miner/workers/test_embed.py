"""The pool and the search on a real local Ray; one Ray and one pool for the whole file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import ray

from miner.data.row_store import RowStore
from miner.errors import (
    EncoderError,
    PoisonSampleError,
    SearchError,
    SnapshotError,
    WeightsRefusedError,
)
from miner.index.config import IndexConfig
from miner.workers import ledger
from miner.workers.embed import EmbedPool, EmbedReport
from miner.workers.embed_worker import ChunkEmbedder
from miner.workers.remote import Resources, Watch
from miner.workers.search import SearchRequest, _watched, search, search_snapshot
from miner.workers.snapshot import SnapshotKey, SnapshotStore

FIRST_OF_CHUNK_2 = 32
pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def snapshots(module_workshop) -> SnapshotStore:
    return SnapshotStore(module_workshop.root / "snapshots")


@pytest.fixture(scope="module")
def pool(module_workshop, ray_local, snapshots) -> Iterator[EmbedPool]:
    shop = module_workshop
    pool = EmbedPool(shop.workers, shop.encoder, shop.store, snapshots)
    yield pool
    pool.shutdown()


def files_of(root, key: SnapshotKey) -> dict[str, bytes]:
    paths = sorted((root / key.digest).iterdir())
    return {path.name: path.read_bytes() for path in paths if path.name != "FILES.json"}


def embed_here(workshop, root, uri: str, sha256: str) -> dict[str, bytes]:
    """The files of an undisturbed snapshot, made in this process."""
    embedder = ChunkEmbedder(workshop.store, workshop.encoder, SnapshotStore(root))
    embedder.load(uri, sha256)
    key = embedder.key(sha256, workshop.workers.chunk_rows)
    for chunk in range(key.num_chunks):
        embedder.embed_chunk(key, chunk)
    workshop.calm()
    return files_of(root, key)


def worker_processes() -> list[psutil.Process]:
    descendants = psutil.Process().children(recursive=True)
    living = [p for p in descendants if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in living if "EmbedActor" in p.name()]


def test_a_worker_killed_mid_snapshot_costs_only_its_chunk(workshop, pool, snapshots, tmp_path):
    uri, sha256 = workshop.weights(1)
    undisturbed = embed_here(workshop, tmp_path, uri, sha256)
    workshop.trigger(FIRST_OF_CHUNK_2 + 9, "kill-once")
    key, progress = pool.key(sha256), []
    report = pool.embed(key, uri, lambda done, total: progress.append((done, total)))
    assert report == EmbedReport(
        num_chunks=7, num_embedded=7, num_reused=0, num_lost_workers=1, num_rows_embedded=100
    )
    # Its last retry rehearses chunk 2 row by row; but for that, its two batches are begun twice.
    begun = Counter(workshop.batches_begun())
    rehearsed = range(FIRST_OF_CHUNK_2, FIRST_OF_CHUNK_2 + 16)
    expected = Counter(range(0, 100, 8)) + Counter(rehearsed) + Counter([32, 40])
    assert begun == expected
    assert files_of(snapshots.root, key) == undisturbed
    assert progress == [(16 * n, 100) for n in range(1, 7)] + [(100, 100)]


def test_only_missing_and_damaged_chunks_are_embedded_again(workshop, pool, snapshots):
    uri, sha256 = workshop.weights(2)
    key = pool.key(sha256)
    assert pool.embed(key, uri).num_embedded == 7
    whole = files_of(snapshots.root, key)
    workshop.calm()
    folder = snapshots.root / key.digest
    chunk_bytes = 16 * 5 * 4
    rows = bytearray((folder / "rows-5d.f32").read_bytes())
    rows[:chunk_bytes] = bytes(chunk_bytes)
    rows[5 * chunk_bytes + 7] ^= 64
    (folder / "rows-5d.f32").write_bytes(rows)
    os.truncate(folder / "chunk-00000003.json", 11)
    with pytest.raises(SnapshotError):
        snapshots.open(key)
    assert pool.embed(key, uri) == EmbedReport(7, 3, 4, 0, 48)
    assert workshop.batches_begun() == [0, 8, 48, 56, 80, 88]
    assert files_of(snapshots.root, key) == whole
    workshop.calm()
    assert pool.embed(key, "/nowhere/to/be/read") == EmbedReport(7, 0, 7, 0, 0)
    assert workshop.batches_begun() == []


def test_a_poison_sample_fails_the_snapshot_and_what_was_done_stays(workshop, pool, snapshots):
    uri, sha256 = workshop.weights(3)
    key = pool.key(sha256)
    workshop.trigger(41, "raise")
    with pytest.raises(PoisonSampleError, match=r"row 41 \(sample id 's041'\)"):
        pool.embed(key, uri)
    assert len(workshop.batches_begun()) < 13
    assert snapshots.missing_chunks(key) == [2, 3, 4, 5, 6]
    workshop.calm()
    assert pool.embed(key, uri) == EmbedReport(7, 5, 2, 0, 68)


def test_a_sample_that_kills_its_worker_is_named_after_bounded_attempts(workshop, pool):
    uri, sha256 = workshop.weights(4)
    key = pool.key(sha256)
    workshop.trigger(50, "kill")
    with pytest.raises(PoisonSampleError, match=r"row 50 \(sample id 's050'\) .* chunk 3 .* 2 "):
        pool.embed(key, uri)
    # Chunks 0 to 2; then a batch; then rows 48, 49 and 50 alone.
    assert workshop.batches_begun() == [0, 8, 16, 24, 32, 40, 48, 48, 49, 50]
    workshop.calm()
    assert pool.embed(key, uri) == EmbedReport(7, 4, 3, 0, 52)


def test_refused_weights_keep_their_class_and_reason_over_ray(workshop, pool):
    uri, sha256 = workshop.weights(5)
    assert -1 < pool.validate(uri, sha256) < 0.95
    with pytest.raises(WeightsRefusedError, match=f"have sha256 {sha256}"):
        pool.validate(uri, "0" * 64)
    with pytest.raises(WeightsRefusedError, match="weights_prefixes"):
        pool.embed(pool.key(sha256), "/etc/hostname")


def test_weights_can_be_validated_while_a_snapshot_is_made(workshop, pool, snapshots, tmp_path):
    uri, sha256 = workshop.weights(6)
    undisturbed = embed_here(workshop, tmp_path, uri, sha256)
    key, validated = pool.key(sha256), []
    pool.embed(key, uri, lambda *_: validated.append(pool.validate(*workshop.weights(7))))
    assert len(validated) == 7
    assert files_of(snapshots.root, key) == undisturbed


def test_only_the_configured_number_of_snapshots_is_kept(workshop, pool, snapshots):
    keys = []
    for seed in (8, 9, 10):
        uri, sha256 = workshop.weights(seed)
        keys.append(pool.key(sha256))
        pool.embed(keys[-1], uri)
    kept = {path.name for path in snapshots.root.iterdir()}
    assert kept == {key.digest for key in keys[-workshop.workers.keep_snapshots :]}


def test_a_worker_killed_while_idle_is_replaced(workshop, pool):
    uri, sha256 = workshop.weights(11)
    key = pool.key(sha256)
    (worker,) = worker_processes()
    assert worker.nice() == workshop.workers.nice
    worker.kill()
    worker.wait(10)
    assert pool.validate(uri, sha256) < 0.95
    assert pool.embed(key, uri) == EmbedReport(7, 7, 0, 0, 100)


def test_a_worker_that_hangs_costs_its_chunk_some_times_the_median(workshop, snapshots):
    """Two workers; what the other one does not have to do, it waits for."""
    uri, sha256 = workshop.weights(13)
    changes = {"num_embed_workers": 2, "cpus_per_worker": 0.5, "late_factor": 3.0}
    two = workshop.workers.model_copy(update=changes)
    crowd = EmbedPool(two, workshop.encoder, workshop.store, snapshots)
    key = crowd.key(sha256)
    workshop.trigger(FIRST_OF_CHUNK_2 + 5, "hang-once")
    begin_s = time.monotonic()
    report = crowd.embed(key, uri)
    took_s = time.monotonic() - begin_s
    crowd.shutdown()
    assert report == EmbedReport(7, 7, 0, 1, 100)
    assert took_s < 60
    assert snapshots.missing_chunks(key) == []
    begun = Counter(workshop.batches_begun())
    assert begun == Counter(range(0, 100, 8)) + Counter([FIRST_OF_CHUNK_2])


def test_a_worker_that_hangs_alone_is_replaced(workshop, pool, snapshots, monkeypatch):
    monkeypatch.setattr(ledger, "LATE_ALONE_S", 1.0)
    uri, sha256 = workshop.weights(14)
    key = pool.key(sha256)
    workshop.trigger(70, "hang-once")
    assert pool.embed(key, uri) == EmbedReport(7, 7, 0, 1, 100)
    assert Counter(workshop.batches_begun()) == Counter(range(0, 100, 8)) + Counter([64])


@pytest.mark.long
def test_a_sample_that_always_hangs_is_named_after_bounded_attempts(workshop, pool, snapshots):
    pool.make_room()
    changes = {"late_factor": None, "chunk_timeout_s": 5.0}
    impatient = workshop.workers.model_copy(update=changes)
    crowd = EmbedPool(impatient, workshop.encoder, workshop.store, snapshots)
    uri, sha256 = workshop.weights(15)
    key = crowd.key(sha256)
    workshop.trigger(50, "hold")
    with pytest.raises(PoisonSampleError, match=r"row 50 \(sample id 's050'\) took too long.* 2 "):
        crowd.embed(key, uri)
    crowd.shutdown()
    assert snapshots.missing_chunks(key) == [3, 4, 5, 6]


@pytest.mark.long
def test_workers_make_room_for_a_search_and_come_back(workshop, pool, snapshots):
    """Beside an embedding worker of one CPU there is one left of two."""
    uri, sha256 = workshop.weights(16)
    key = pool.key(sha256)
    pool.embed(key, uri)
    identities = RowStore.open(workshop.store).catalog.identities
    request = SearchRequest(snapshots, key, identities, np.arange(0, 100, 3), 6)
    wide = workshop.workers.model_copy(update={"search_cpus": 2, "placement_timeout_s": 15})
    watch = Watch(make_room=pool.make_room)
    found = search_snapshot(request, IndexConfig(), wide, watch).candidates
    assert np.array_equal(found.row_ids_AK, search(request, IndexConfig(), 1).candidates.row_ids_AK)
    assert pool.validate(uri, sha256) < 0.95


def test_as_many_workers_as_the_cluster_has_gpus_for_and_at_least_one(monkeypatch):
    for num_gpus, per_worker, expected in (
        (8, 1, 8),
        (8, 0.5, 16),
        (3, 2, 1),
        (0, 1, 1),
        (4, 0, 1),
    ):
        monkeypatch.setattr(ray, "cluster_resources", lambda n=num_gpus: {"CPU": 4.0, "GPU": n})
        assert Resources(1.0, per_worker).room_for() == expected


def test_a_crew_that_finds_no_room_says_what_it_asked_for(workshop, snapshots):
    greedy = workshop.workers.model_copy(update={"cpus_per_worker": 64, "placement_timeout_s": 1})
    crowd = EmbedPool(greedy, workshop.encoder, workshop.store, snapshots)
    with pytest.raises(SnapshotError, match=r"each asks for 64 CPUs and 0 GPUs .* of 2 CPUs free"):
        crowd.key("0" * 64)
    crowd.shutdown()


def test_an_encoder_that_does_not_build_is_an_encoder_error(workshop, snapshots):
    broken = workshop.encoder.model_copy(update={"encoder": "tiny_encoder:build_raising"})
    crowd = EmbedPool(workshop.workers, broken, workshop.store, snapshots)
    with pytest.raises(EncoderError, match="no such backbone"):
        crowd.key("0" * 64)
    crowd.shutdown()


def test_a_search_on_ray_gives_what_a_search_here_gives(workshop, pool, snapshots):
    uri, sha256 = workshop.weights(12)
    key = pool.key(sha256)
    identities = RowStore.open(workshop.store).catalog.identities
    request = SearchRequest(snapshots, key, identities, np.arange(0, 100, 3), 6)
    with pytest.raises(SnapshotError, match="missing"):
        search_snapshot(request, IndexConfig(), workshop.workers)
    pool.embed(key, uri)
    there = search_snapshot(request, IndexConfig(), workshop.workers)
    here = search(request, IndexConfig(), num_threads=1)
    assert there.index == here.index == {"kind": "flat", "num_rows": 100, "dim": 5}
    assert np.array_equal(there.candidates.row_ids_AK, here.candidates.row_ids_AK)
    assert np.array_equal(there.candidates.similarities_AK, here.candidates.similarities_AK)
    others = identities.identity_ids_N[there.candidates.row_ids_AK]
    assert (others != identities.identity_ids_N[request.anchor_ids_A][:, None]).all()
    greedy = workshop.workers.model_copy(update={"search_cpus": 64, "placement_timeout_s": 1})
    with pytest.raises(SearchError, match=r"the search did not start within 1 s: .* 64 CPUs"):
        search_snapshot(request, IndexConfig(), greedy)


class Slow:
    """Searches until it is killed, and has done 3 of 10 anchors."""

    def search(self) -> None:
        threading.Event().wait()

    def progress(self) -> tuple[int, int]:
        return 3, 10


def test_the_progress_of_a_search_is_told_and_who_hears_it_may_end_it():
    actor = Resources(0.0, 0.0).start(Slow, num_threads=2)
    told = []

    def hear(done: int, total: int) -> None:
        told.append((done, total))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        _watched(actor, actor.search.remote(), Watch(on_progress=hear))
    assert told == [(3, 10)]
    with pytest.raises(InterruptedError):
        _watched(actor, actor.search.remote(), Watch(go_on=lambda: hear(0, 0)))
    ray.kill(actor)


def test_the_driver_loads_neither_torch_nor_faiss():
    code = (
        "import sys, miner.workers.embed, miner.workers.search;"
        "sys.exit(bool({'torch', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
