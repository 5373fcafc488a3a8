"""A dataset that has grown or changed embeds only the rows that no snapshot has."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.data import DatasetConfig, RowStore, ingest
from miner.workers.embed import EmbedPool
from miner.workers.embed_worker import ChunkEmbedder
from miner.workers.snapshot import DataFile, ObjectSnapshots, SnapshotKey, Snapshots, SnapshotStore
from tests.s3_server import s3_server

DIM = 3


class GrowingSet:
    """A folder of Parquet files, whose payload are the vectors of the tiny encoder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stores = 0
        (root / "data").mkdir()

    def write(self, name: str, rows: int, seed: int) -> None:
        vectors = np.random.default_rng(seed).normal(size=(rows, 7)).astype(np.float32)
        table = pa.table(
            {
                "sample_id": [f"{name}-{seed}-{row}" for row in range(rows)],
                "identity": [row % 5 for row in range(rows)],
                "vector": [vector.tobytes() for vector in vectors],
            }
        )
        pq.write_table(table, self._root / "data" / f"{name}.parquet")

    def remove(self, name: str) -> None:
        (self._root / "data" / f"{name}.parquet").unlink()

    def rename(self, name: str, new_name: str) -> None:
        data = self._root / "data"
        (data / f"{name}.parquet").rename(data / f"{new_name}.parquet")

    def ingested(self) -> Path:
        self._stores += 1
        store = self._root / f"store-{self._stores}"
        config = DatasetConfig(uri=str(self._root / "data"), payload_columns=("vector",))
        ingest(config, store)
        return store


@pytest.fixture
def growing(tmp_path: Path) -> GrowingSet:
    return GrowingSet(tmp_path)


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


@pytest.fixture(params=["folder", "objects"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Snapshots]:
    if request.param == "folder":
        yield SnapshotStore(tmp_path / "snapshots")
        return
    with s3_server() as server:
        yield ObjectSnapshots(server.uri(f"{server.bucket()}/snapshots"), tmp_path / "cache")


def files_of(store: Path) -> list[DataFile]:
    manifest = RowStore.open(store).manifest
    pairs = zip(manifest.dataset_files, manifest.payload_sha256s, strict=True)
    return [DataFile(file.num_rows, sha256) for file, sha256 in pairs]


def embed(
    workshop: Any, store: Path, snapshots: Snapshots, chunk_rows: int = 16
) -> tuple[int, npt.NDArray[np.float32]]:
    """Rows that were embedded, and all embeddings."""
    embedder = ChunkEmbedder(store, workshop.encoder, snapshots)
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    key = embedder.key(sha256, chunk_rows)
    known = snapshots.known_rows(key, files_of(store))
    chunks = snapshots.missing_chunks(key)
    num_rows = sum(embedder.embed_chunk(key, chunk, known=known) for chunk in chunks)
    return num_rows, snapshots.open(key)


def test_only_rows_of_new_and_changed_files_are_embedded(
    workshop: Any, growing: GrowingSet, either: Snapshots, tmp_path: Path
) -> None:
    for name, rows, seed in (("b", 37, 1), ("d", 20, 2), ("f", 41, 3)):
        growing.write(name, rows, seed)
    first = growing.ingested()
    assert embed(workshop, first, either)[0] == 98
    assert embed(workshop, first, either)[0] == 0
    growing.write("a", 11, 4)  # moves the numbers of all other rows
    growing.write("d", 20, 5)
    growing.rename("f", "e")
    second = growing.ingested()
    workshop.calm()
    num_rows, embeddings = embed(workshop, second, either)
    assert num_rows == 11 + 20
    fresh = embed(workshop, second, SnapshotStore(tmp_path / "fresh"))
    assert fresh[0] == 109
    np.testing.assert_allclose(embeddings, fresh[1], atol=1e-6)  # batches have other sizes
    growing.remove("a")
    assert embed(workshop, growing.ingested(), either)[0] == 0


def test_other_sizes_of_chunks_share_rows_and_other_weights_do_not(
    workshop: Any, growing: GrowingSet, either: Snapshots
) -> None:
    growing.write("a", 60, 1)
    store = growing.ingested()
    assert embed(workshop, store, either, chunk_rows=16)[0] == 60
    assert embed(workshop, store, either, chunk_rows=25)[0] == 0
    embedder = ChunkEmbedder(store, workshop.encoder, either)
    assert either.known_rows(embedder.key("ab" * 32, 16), files_of(store)) == []


def test_damaged_rows_of_another_snapshot_are_embedded_and_not_copied(
    workshop: Any, growing: GrowingSet, snapshots: SnapshotStore
) -> None:
    growing.write("b", 48, 1)
    embed(workshop, growing.ingested(), snapshots)
    (path,) = snapshots.root.glob("*/rows-5d.f32")
    rows = bytearray(path.read_bytes())
    rows[20 * 5 * 4] ^= 1  # of row 20: chunk 1
    path.write_bytes(rows)
    growing.write("c", 16, 2)
    num_rows, embeddings = embed(workshop, growing.ingested(), snapshots)
    assert num_rows == 16 + 16
    assert np.isfinite(embeddings).all()


def test_a_folder_whose_files_are_not_noted_or_damaged_serves_no_other(
    workshop: Any, growing: GrowingSet, snapshots: SnapshotStore
) -> None:
    growing.write("a", 20, 1)
    store = growing.ingested()
    embed(workshop, store, snapshots, chunk_rows=16)
    (noted,) = snapshots.root.glob("*/FILES.json")
    for content in (b"", b"{", json.dumps([{"num_rows": 3}]).encode()):
        noted.write_bytes(content)
        key = ChunkEmbedder(store, workshop.encoder, snapshots).key(workshop.weights(1)[1], 7)
        assert snapshots.known_rows(key, files_of(store)) == []


@settings(max_examples=60, deadline=None)
@given(
    old=st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True),
    new=st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True),
    old_chunk_rows=st.integers(1, 20),
)
def test_known_rows_are_those_of_equal_files_wherever_they_lie(
    tmp_path_factory: pytest.TempPathFactory, old: list[int], new: list[int], old_chunk_rows: int
) -> None:
    """File ``n`` has n + 1 rows; its row i has the embedding (n, i, 1)."""
    snapshots = SnapshotStore(tmp_path_factory.mktemp("known"))

    def rows_of(files: list[int]) -> npt.NDArray[np.float32]:
        return np.array([(n, i, 1) for n in files for i in range(n + 1)], np.float32)

    def described(files: list[int]) -> list[DataFile]:
        return [DataFile(n + 1, f"{n:064x}") for n in files]

    def key_of(files: list[int], name: str, chunk_rows: int) -> SnapshotKey:
        return SnapshotKey("w", "p", name, len(rows_of(files)), chunk_rows)

    donor = key_of(old, "old", old_chunk_rows)
    snapshots.known_rows(donor, described(old))
    for chunk in range(donor.num_chunks):
        begin, end = donor.rows_of(chunk)
        snapshots.write_chunk(donor, chunk, rows_of(old)[begin:end])
    known = snapshots.known_rows(key_of(new, "new", 4), described(new))
    wanted, is_known = rows_of(new), np.zeros(len(rows_of(new)), bool)
    for rows in known:
        assert not is_known[rows.begin : rows.end].any()
        is_known[rows.begin : rows.end] = True
        found = snapshots.read_rows(rows.key, rows.first, rows.first + rows.end - rows.begin)
        assert np.array_equal(found, wanted[rows.begin : rows.end])
    assert is_known.tolist() == [n in old for n in new for _ in range(n + 1)]


@pytest.mark.usefixtures("ray_local")
def test_workers_on_ray_embed_only_what_is_new(
    workshop: Any, growing: GrowingSet, snapshots: SnapshotStore
) -> None:
    uri, sha256 = workshop.weights(1)
    reports = []
    growing.write("b", 40, 1)
    for name in ("c", "a", None):
        pool = EmbedPool(workshop.workers, workshop.encoder, growing.ingested(), snapshots)
        reports.append(pool.embed(pool.key(sha256), uri).num_rows_embedded)
        pool.shutdown()
        if name is not None:
            growing.write(name, 24, ord(name))
    assert reports == [40, 24, 24]
