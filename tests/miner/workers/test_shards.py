"""A search over several processes on a real Ray: what it gives, what is lost with a process."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from miner.core import SelectionConfig, mine_round
from miner.errors import SearchError, SnapshotError
from miner.index.config import IndexConfig
from miner.types import Candidates, IdentityTable
from miner.workers import shards as shards_module
from miner.workers.config import WorkersConfig
from miner.workers.remote import Watch
from miner.workers.search import SearchOutcome, SearchRequest, search, search_snapshot
from miner.workers.shards import Shard
from miner.workers.snapshot import SnapshotKey, SnapshotStore
from tests.bench.vectors import clustered

pytestmark = pytest.mark.usefixtures("ray_local")

ROWS, DIM, K = 3000, 16, 20
LISTS = IndexConfig(kind="ivf", num_lists=20)


@pytest.fixture(scope="module")
def request_of_all(tmp_path_factory: pytest.TempPathFactory) -> SearchRequest:
    """Every row of a snapshot in which each vector occurs some five times is an anchor."""
    made = clustered(ROWS, 150, DIM, 0.7, 0)
    rows = made.embeddings_ND[np.random.default_rng(0).integers(600, size=ROWS)]
    store = SnapshotStore(tmp_path_factory.mktemp("snapshots"))
    key = SnapshotKey("w", "p", "d", num_rows=ROWS, chunk_rows=700)
    for chunk in range(key.num_chunks):
        store.write_chunk(key, chunk, rows[slice(*key.rows_of(chunk))])
    identities = IdentityTable.from_ids(made.identity_ids_N)
    return SearchRequest(store, key, identities, np.arange(ROWS), K)


@pytest.fixture
def blocks(monkeypatch) -> int:
    """Messages of 500 anchors: six blocks."""
    monkeypatch.setattr(shards_module, "MESSAGE_BYTES", 500 * (4 * DIM + 12 * K))
    return 6


def on_shards(request, num_shards, config=None, **workers) -> SearchOutcome:
    settings = WorkersConfig(search_shards=num_shards, search_cpus=0.5, **workers)
    return search_snapshot(request, config or IndexConfig(), settings)


def assert_same(one: Candidates, other: Candidates) -> None:
    assert np.array_equal(one.row_ids_AK, other.row_ids_AK)
    assert one.similarities_AK.tobytes() == other.similarities_AK.tobytes(), "to the bit"


def asked_of(monkeypatch, kill=lambda shard, method, begin: False) -> Counter:
    """Counts what each shard was asked, by (shard, method, first anchor); may kill it just then."""
    asked, submit = Counter(), Shard._submit

    def spy(shard: Shard, method, args):
        if method == "ask" and args[0] in ("exact", "search"):
            begin = int(args[1].row_ids_Q[0])
            asked[shard.name, args[0], begin] += 1
            if kill(shard, args[0], begin):
                os.kill(shard.pid, signal.SIGSTOP)  # so that it cannot be faster
                remote = getattr(shard._actor, method).remote(*args)
                os.kill(shard.pid, signal.SIGKILL)
                return shards_module.result_of(remote)
        return submit(shard, method, args)

    monkeypatch.setattr(Shard, "_submit", spy)
    return asked


def living() -> list[psutil.Process]:
    found = [p for p in psutil.Process().children(recursive=True) if "ShardActor" in p.name()]
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


def test_any_number_of_shards_gives_the_same_groups(request_of_all, blocks):
    request = request_of_all
    config = SelectionConfig(groups_per_round=100, num_candidates=K)
    embeddings = request.snapshots.open(request.key)

    def groups(found: Candidates):
        def find(anchors, k):
            return Candidates(anchors, found.row_ids_AK[anchors], found.similarities_AK[anchors])

        mined = mine_round(find, embeddings, request.identities, config, seed=0, round_id=1)
        return mined.groups

    one = on_shards(request, 1)
    assert one.index == {"kind": "flat", "num_rows": ROWS, "dim": DIM}
    first = groups(one.candidates)
    assert first.num_groups == 100
    for num_shards in (2, 4):
        found = on_shards(request, num_shards)
        assert (found.recall, found.index) == (None, {**one.index, "num_shards": num_shards})
        assert_same(found.candidates, one.candidates)
        other = groups(found.candidates)
        for name in first.__slots__:
            assert getattr(other, name).tobytes() == getattr(first, name).tobytes(), name
    own = request.identities.identity_ids_N
    anchors, _, negatives = first.triplet_rows()
    assert (own[anchors] != own[negatives]).all()


def test_a_shard_killed_mid_search_costs_only_its_block(request_of_all, blocks, monkeypatch):
    undisturbed = on_shards(request_of_all, 2)
    killed = []

    def kill(shard: Shard, method: str, begin: int) -> bool:
        if begin == 1500 and "shard 1" in shard.name and not killed:
            killed.append(shard.name)
            return True
        return False

    asked = asked_of(monkeypatch, kill)
    found = on_shards(request_of_all, 2)
    assert_same(found.candidates, undisturbed.candidates)
    assert found.index == undisturbed.index
    assert len(asked) == 2 * blocks
    again = {what for what, count in asked.items() if count > 1}
    assert again == {(killed[0], "exact", 1500)}
    assert sum(asked.values()) == 2 * blocks + 1


@pytest.mark.long
def test_the_successor_of_a_shard_makes_its_lists_again(request_of_all, blocks, monkeypatch):
    undisturbed = on_shards(request_of_all, 2, LISTS)
    killed = []

    def kill(shard: Shard, method: str, begin: int) -> bool:
        if method == "search" and begin == 1000 and "shard 0" in shard.name and not killed:
            killed.append(shard.name)
            return True
        return False

    asked = asked_of(monkeypatch, kill)
    found = on_shards(request_of_all, 2, LISTS)
    assert found.recall == undisturbed.recall
    assert_same(found.candidates, undisturbed.candidates)
    searched = {what: count for what, count in asked.items() if what[1] == "search"}
    assert len(searched) == 2 * blocks
    assert [what for what, count in searched.items() if count > 1] == [(killed[0], "search", 1000)]


@pytest.mark.long
def test_lists_of_shards_keep_what_is_promised(request_of_all, tmp_path):
    request = replace(request_of_all, warm_path=tmp_path / "search.safetensors")
    exact = on_shards(request, 1).candidates
    own = request.identities.identity_ids_N
    found = on_shards(request, 3, LISTS)
    assert found.index["num_shards"] == 3
    assert found.recall >= LISTS.min_recall
    best = exact.similarities_AK[:, 9:10] - 1e-6
    true = (found.candidates.similarities_AK[:, :10] >= best).mean()
    assert found.index["recall_low"] <= true <= found.index["recall_high"]
    assert (own[found.candidates.row_ids_AK] != own[:, None]).all()
    assert not request.warm_path.exists(), "several shards leave nothing to the next search"


@pytest.mark.long
def test_a_block_that_kills_every_shard_is_given_up(request_of_all, blocks, monkeypatch):
    monkeypatch.setattr(shards_module, "MAX_ATTEMPTS", 2)
    asked = asked_of(monkeypatch, lambda shard, method, begin: begin == 500)
    with pytest.raises(SearchError, match=r"search shard \d \(rows .*lost 2 times"):
        on_shards(request_of_all, 2)
    assert max(asked.values()) == 2
    psutil.wait_procs(living(), timeout=10)
    assert not living(), "none is left behind"


def test_a_search_over_shards_tells_its_progress_and_ends_while_one_hangs(
    request_of_all, blocks, monkeypatch
):
    told, submit, hanging = [], Shard._submit, threading.Event()

    def spy(shard: Shard, method, args):
        if "shard 1" in shard.name and method == "ask" and int(args[1].row_ids_Q[0]) == 1000:
            os.kill(shard.pid, signal.SIGSTOP)
            hanging.set()
        return submit(shard, method, args)

    def go_on() -> None:
        if hanging.is_set() and len(told) >= blocks + 2:
            raise InterruptedError

    monkeypatch.setattr(Shard, "_submit", spy)
    watch = Watch(on_progress=lambda done, total: told.append((done, total)), go_on=go_on)
    settings = WorkersConfig(search_shards=2, search_cpus=0.5)
    with pytest.raises(InterruptedError):
        search_snapshot(request_of_all, IndexConfig(), settings, watch)
    assert told == [(ROWS * n // (2 * blocks), ROWS) for n in range(1, blocks + 3)]
    psutil.wait_procs(living(), timeout=10)
    assert not living(), "none is left behind"


def test_a_shard_maps_only_its_rows_and_finds_damage_there(request_of_all, tmp_path):
    store = request_of_all.snapshots
    whole = store.open(request_of_all.key)
    part = store.open(request_of_all.key, range(750, 1500))
    assert part.nbytes == 750 * DIM * 4
    assert np.array_equal(part, whole[750:1500])
    copy, key = SnapshotStore(tmp_path), request_of_all.key
    for chunk in range(key.num_chunks):
        copy.write_chunk(key, chunk, np.asarray(whole[slice(*key.rows_of(chunk))]))
    (path,) = Path(tmp_path / key.digest).glob("rows-*")
    content = bytearray(path.read_bytes())
    content[2200 * DIM * 4] ^= 1
    path.write_bytes(content)
    assert np.array_equal(copy.open(key, range(2100)), whole[:2100]), "no row of chunk 3"
    with pytest.raises(SnapshotError, match=r"chunk 3 of 5 .* does not match"):
        copy.open(key, range(2000, 2101))


def test_what_a_shard_raises_keeps_its_class(request_of_all, monkeypatch):
    def damaged(store, key, rows=None):
        return np.zeros((ROWS, DIM), np.float32)

    monkeypatch.setattr(SnapshotStore, "open", damaged)  # of this process
    gone = replace(request_of_all, snapshots=SnapshotStore(request_of_all.snapshots.root / "gone"))
    monkeypatch.setattr("miner.index.candidate_search.check_embeddings", lambda rows: None)
    with pytest.raises(SnapshotError, match=r"chunk [02] of 5 .* is missing"):
        on_shards(gone, 2)


def test_a_cluster_too_small_for_all_shards_says_so_in_time(request_of_all):
    asked_for = r"\d of 3 search shards did not start within 5 s: each asks for 1 CPUs and 0 GPUs, "
    there_is = r"with 0\.0 GB of memory, on one machine, the cluster has 0 of 2 CPUs free"
    with pytest.raises(SearchError, match=asked_for + there_is):
        search_snapshot(
            request_of_all, IndexConfig(), WorkersConfig(search_shards=3, placement_timeout_s=5)
        )
    assert on_shards(request_of_all, 2).index["num_shards"] == 2, "there is room again"


def test_more_shards_than_rows_are_as_many_as_rows(tmp_path):
    store, key = SnapshotStore(tmp_path), SnapshotKey("w", "p", "d", 3, 2)
    rows = np.eye(3, dtype=np.float32)
    for chunk in (0, 1):
        store.write_chunk(key, chunk, rows[slice(*key.rows_of(chunk))])
    identities = IdentityTable.from_ids(np.array([0, 0, 1], np.int32))
    request = SearchRequest(store, key, identities, np.arange(3), 5)
    found = on_shards(request, 4)
    assert found.index["num_shards"] == 3
    assert_same(found.candidates, search(request, IndexConfig(), 1).candidates)
    assert found.candidates.row_ids_AK[:, :3].tolist() == [[2, -1, -1], [2, -1, -1], [0, 1, -1]]
