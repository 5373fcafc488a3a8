"""Nodes, drivers and whole clusters are killed: rounds are sealed, nothing is embedded twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miner.app.demo.processes import ProcessTree
from miner.workers import search, shards
from miner.workers.remote import result_of
from tests.integration.loop import is_gone, wait_until
from tests.integration.mining import BATCHES, Mining
from tests.integration.ray_nodes import RayNodes
from tests.trainer.feed.served_miner import free_port
from trainer.feed import TripletFeed

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

HELD = {32: 37, 48: 55}  # a batch of chunk 2 and one of chunk 3, each with a row in it


@pytest.mark.parametrize("lose", [RayNodes.kill, RayNodes.freeze], ids=["killed", "frozen"])
def test_a_node_lost_while_embedding_costs_its_chunks_and_the_round_is_sealed(
    tmp_path: Path, lose: Callable[[RayNodes, ProcessTree], None]
) -> None:
    """What is left has no room for two embedding workers and a search; the round needs one."""
    workers = {"num_embed_workers": 2, "late_factor": None, "placement_timeout_s": 30}
    mining = Mining(tmp_path / "m", workers)
    with mining.nodes(2, 2) as cluster, mining.driver(cluster):
        for row in HELD.values():
            mining.shop.trigger(row, "hold")
        sha256 = mining.announce(1)
        pids = {batch: mining.holder(batch) for batch in HELD}
        missing = mining.snapshots.missing_chunks(mining.key(sha256))
        assert missing == [2, 3, 4, 5, 6]
        assert set(mining.begun()) == {0, 8, 16, 24, *HELD}, "one chunk a worker is under way"
        node = cluster.node_of(pids[32])
        lost = [batch for batch, pid in pids.items() if pid in node.members()]
        lose(cluster, node)
        for row in HELD.values():
            mining.shop.release(row)
        mining.wait_for_round(2)
        assert mining.begun() == Counter(BATCHES) + Counter(lost)
        mining.assert_as_undisturbed(2, cluster)


def test_a_driver_killed_while_embedding_and_while_searching_is_resumed(tmp_path: Path) -> None:
    mining = Mining(tmp_path / "m", {"num_embed_workers": 2, "late_factor": None}, port=free_port())
    with mining.nodes(2, 2) as cluster:
        with mining.driver(cluster, "first") as driver:
            mining.shop.trigger(HELD[32], "hold")
            sha256 = mining.announce(1)
            pid = mining.holder(32)
            wait_until(
                lambda: mining.snapshots.missing_chunks(mining.key(sha256)) == [2], "other chunks"
            )
            driver.kill_all()
        assert not is_gone(cluster.head.pid), "the cluster goes on"
        wait_until(lambda: is_gone(pid), "end of the dead driver's worker")
        mining.shop.release(HELD[32])
        with mining.driver(cluster, "second") as driver:
            mining.wait_for_round(2)
            assert mining.begun() == Counter(BATCHES) + Counter([32])
            mining.assert_as_undisturbed(2, cluster)
            mining.shop.calm()

            mining.announce(2)
            wait_until(lambda: bool(cluster.workers("_SearchActor")), "search")
            for process in cluster.workers("_SearchActor"):
                process.suspend()
            assert mining.phase() == "searching"
            driver.kill_all()
        assert mining.log.newest() == 2
        assert mining.begun() == Counter(BATCHES)
        with mining.driver(cluster, "third"):
            mining.wait_for_round(3)
            assert mining.begun() == Counter(BATCHES), "no chunk is embedded again"
            mining.assert_as_undisturbed(3, cluster)


def test_a_lost_head_loses_no_sealed_round_and_a_new_cluster_goes_on(tmp_path: Path) -> None:
    mining = Mining(tmp_path / "m", port=free_port())

    def steps(first: int, stop: int) -> list[str]:
        with TripletFeed(
            mining.address, run_id="run", batch_rows=64, first_step=first, patience_s=60
        ) as feed:
            return [next(feed).digest() for _ in range(first, stop)]

    with mining.nodes(2) as cluster, mining.driver(cluster, "first") as driver:
        mining.announce(1)
        mining.wait_for_round(2)
        before = steps(0, 40)
        for tree in (cluster.head, *cluster.nodes, driver):
            tree.kill_all()
    mining.shop.calm()
    with mining.nodes(2) as cluster, mining.driver(cluster, "second"):
        assert steps(0, 40) == before, "the same bytes"
        assert len(steps(40, 60)) == 20, "and those that come next"
        assert not mining.begun()
        mining.assert_as_undisturbed(2, cluster)
        mining.announce(2)
        mining.wait_for_round(3)
        mining.assert_as_undisturbed(3, cluster)
        assert mining.begun() == Counter(BATCHES)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_node_lost_while_searching_costs_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int
) -> None:
    """The driver is this process, so that the node is lost at a certain moment of the search."""
    workers = {"search_shards": num_shards, "placement_timeout_s": 45}
    mining = Mining(tmp_path / "m", workers)
    # Blocks of ten anchors: six for each shard.
    monkeypatch.setattr(shards, "MESSAGE_BYTES", 10 * (4 * 5 + 12 * 20))
    asked: Counter[str] = Counter()
    with mining.nodes(2, 2, 1) as cluster, mining.service(cluster):
        submit, watched = shards.Shard._submit, search._watched
        lost: list[int] = []

        def submit_spy(shard: Any, method: str, args: Any) -> Any:
            if method != "ask":
                return submit(shard, method, args)
            asked[shard.name] += 1
            if lost or "shard 1" not in shard.name or asked[shard.name] != 3:
                return submit(shard, method, args)
            lost.append(shard.pid)
            os.kill(shard.pid, signal.SIGSTOP)  # so that it cannot be faster
            ref = shard._actor.ask.remote(*args)
            cluster.kill(cluster.node_of(shard.pid))
            return result_of(ref)

        def watched_spy(actor: Any, found: Any, watch: Any) -> Any:
            (process,) = cluster.workers("_SearchActor")
            asked["search"] += 1
            if not lost:
                lost.append(process.pid)
                cluster.kill(cluster.node_of(process.pid))
            return watched(actor, found, watch)

        def started_spy(ref: Any) -> Any:
            answer = result_of(ref)
            if not lost:
                for process in cluster.workers("_SearchActor"):
                    process.suspend()
            return answer

        monkeypatch.setattr(shards.Shard, "_submit", submit_spy)
        monkeypatch.setattr(search, "_watched", watched_spy)
        monkeypatch.setattr(search, "result_of", started_spy)
        mining.announce(1)
        mining.wait_for_round(2)
        assert len(lost) == 1
        assert mining.begun() == Counter(BATCHES), "no chunk is embedded again"
        mining.assert_as_undisturbed(2, cluster)
    if num_shards == 1:
        assert asked == {"search": 2}
    else:
        assert sorted(asked.values()) == [6, 7], "one block is asked for again"
