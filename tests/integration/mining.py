"""A miner over the tiny encoder's 100 rows, on nodes of its own: what is embedded is counted."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml

from miner.app import serve
from miner.app.cluster import joined_ray
from miner.app.demo.processes import ProcessTree, running_service
from miner.config import MinerConfig
from miner.core import mine_round
from miner.data import RowStore, ingest
from miner.index.config import IndexConfig
from miner.rounds import RoundLog
from miner.serving.status_client import StatusClient
from miner.types import Groups
from miner.workers.search import SearchRequest, search
from miner.workers.snapshot import SnapshotKey, SnapshotStore
from tests.integration.loop import wait_until
from tests.integration.ray_nodes import Autoscaling, RayNodes, ray_nodes
from tests.miner.workers.conftest import ENTRY_POINTS, Workshop
from trainer.feed import MinerClient

__all__ = ["Mining"]

BATCHES = range(0, 100, 8)
"""First rows of all batches that embed the dataset once."""


@dataclass
class Mining:
    """A folder with dataset, weights and state."""

    folder: Path
    workers: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    address: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shop = Workshop(self.folder)
        self.log = RoundLog(self.state_dir)
        self.snapshots = SnapshotStore(self.state_dir / "snapshots")

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @contextmanager
    def nodes(
        self, *num_cpus: int, autoscaling: Autoscaling | None = None, **variables: str
    ) -> Iterator[RayNodes]:
        """As `ray_nodes`; the workers know the encoder, and find their triggers."""
        variables |= {"PYTHONPATH": str(ENTRY_POINTS), "TINY_TRIGGERS": str(self.shop.triggers)}
        logs = self.folder / "logs"
        with (
            pytest.MonkeyPatch.context() as patch,
            ray_nodes(logs, *num_cpus, autoscaling=autoscaling, **variables) as cluster,
        ):
            patch.syspath_prepend(ENTRY_POINTS)
            yield cluster

    @contextmanager
    def driver(self, cluster: RayNodes, name: str = "driver") -> Iterator[ProcessTree]:
        """``coalface-miner serve`` on the cluster; ended by SIGTERM at the end of the block."""
        path = self.folder / "miner.yaml"
        path.write_text(yaml.safe_dump(self.config(cluster)))
        log = self.folder / "logs" / f"{name}.log"
        with (
            mock.patch.dict(os.environ, cluster.environment, clear=True),
            running_service(path, self.state_dir, log) as (process, self.address),
        ):
            yield process

    @contextmanager
    def service(self, cluster: RayNodes) -> Iterator[None]:
        """The same, with the driver in this process."""
        config = MinerConfig.model_validate(self.config(cluster))
        self.state_dir.mkdir(exist_ok=True)
        ingest(config.dataset, config.store_path)
        catalog, stop = RowStore.open(config.store_path).catalog, threading.Event()
        with joined_ray(config), ThreadPoolExecutor(1) as pool:
            ended = pool.submit(serve._Service(config, catalog, stop).run)
            endpoint = self.state_dir / "endpoint.json"
            wait_until(lambda: endpoint.exists() or ended.done(), "service")
            try:
                self.address = json.loads(endpoint.read_text())["address"]
                yield
            finally:
                stop.set()
                ended.result(60)

    def config(self, cluster: RayNodes) -> dict[str, Any]:
        workers = {"chunk_rows": 16, "search_cpus": 1, "placement_timeout_s": 60}
        return {
            "state_dir": str(self.state_dir),
            "ray_address": cluster.address,
            "dataset": {"uri": str(self.folder / "data.parquet"), "payload_columns": ["vector"]},
            "encoder": self.shop.encoder.model_dump(mode="json"),
            "workers": workers | self.workers,
            "selection": {"groups_per_round": 60, "num_candidates": 20, "window_stop": 5},
            "refresh": {"warmup_steps": 0},
            "serving": {"port": self.port},
        }

    def announce(self, seed: int) -> str:
        """Have fresh weights mined; returns their digest once they are accepted."""
        uri, sha256 = self.shop.weights(seed)
        with MinerClient(self.address, patience_s=60) as client:
            client.announce(step=seed, uri=uri, sha256=sha256)
        return sha256

    def wait_for_round(self, round_id: int) -> None:
        wait_until(lambda: self.log.newest() == round_id, f"round {round_id}", 180)

    def phase(self) -> str:
        """What the miner is doing."""
        with StatusClient(self.address) as client:
            return client.status().refresh.phase

    def key(self, sha256: str) -> SnapshotKey:
        """Of the snapshot that these weights make."""
        fingerprint = RowStore.open(self.state_dir / "store").fingerprint
        key = self.snapshots.find(sha256, fingerprint)
        assert key is not None
        return key

    def holder(self, first_row: int) -> int:
        """The process that preprocesses the batch with this first row, once one does."""
        wait_until(lambda: first_row in self.begun(), f"batch {first_row}")
        lines = (self.shop.triggers / "calls").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith(f"{first_row} "))

    def begun(self) -> Counter[int]:
        """How often each batch was begun to be embedded; ten rows that judged weights left out."""
        path = self.shop.triggers / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        begun = Counter(tuple(map(int, line.split()[:2])) for line in lines)
        begun[0, 7] -= begun.pop((8, 9), 0)
        return Counter({first: count for (first, _), count in begun.items() if count})

    def undisturbed(self, round_id: int, cluster: RayNodes) -> Groups:
        """The groups of a round that nothing has gone wrong with, mined in this process."""
        manifest = self.log.manifest(round_id)
        key = self.key(manifest.weights_sha256)
        identities = RowStore.open(self.state_dir / "store").catalog.identities
        config = MinerConfig.model_validate(self.config(cluster))

        def find(anchor_ids: np.ndarray, num_candidates: int) -> Any:
            request = SearchRequest(self.snapshots, key, identities, anchor_ids, num_candidates)
            return search(request, IndexConfig(), 1).candidates

        rows = self.snapshots.open(key)
        mined = mine_round(
            find, rows, identities, config.selection, seed=config.seed, round_id=round_id
        )
        return mined.groups

    def assert_as_undisturbed(self, round_id: int, cluster: RayNodes) -> None:
        sealed, expected = self.log.read(round_id), self.undisturbed(round_id, cluster)
        assert sealed.num_groups == expected.num_groups > 0
        for name in expected.__slots__:
            assert getattr(sealed, name).tobytes() == getattr(expected, name).tobytes(), name
        assert self.log.verify() == []
