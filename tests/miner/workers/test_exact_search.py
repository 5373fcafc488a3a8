"""The exact search on torch's GPUs as it is configured; what it finds is tested with the tiles."""

import numpy as np
import pytest

from miner.errors import SearchError
from miner.index import GpuConfig
from miner.index.config import IndexConfig
from miner.index.queries import Queries
from miner.index.shard_search import ShardSearch
from miner.types import IdentityTable
from miner.workers import torch_sweep
from miner.workers.exact_search import torch_queries, torch_search
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows

IDS = np.arange(60, dtype=np.int32) // 6


@pytest.mark.parametrize("engine", ["off", "faiss"])
def test_it_is_there_only_if_configured(engine):
    rows = unit_rows(np.random.default_rng(0), 60, 8)
    config = GpuConfig(engine=engine)
    assert torch_search(config, rows, IdentityTable.from_ids(IDS)) is None


def test_it_searches_these_rows_on_the_devices_there_are(monkeypatch):
    monkeypatch.setattr(torch_sweep, "cuda_devices", lambda: ["cpu", "cpu"])
    rows = unit_rows(np.random.default_rng(0), 60, 8)
    search = torch_search(GpuConfig(engine="torch"), rows, IdentityTable.from_ids(IDS))
    assert_exact(search(np.arange(60), 7, None), rows, IDS, 7)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_part_of_the_rows_answers_for_anchors_of_others(monkeypatch, precision):
    monkeypatch.setattr(torch_sweep, "cuda_devices", lambda: ["cpu", "cpu"])
    rows, config = unit_rows(np.random.default_rng(0), 60, 8), GpuConfig(engine="torch")
    config = config.model_copy(update={"precision": precision})
    anchors = np.array([59, 3, 31, 3])
    queries = Queries(anchors, rows[anchors], IDS[anchors])
    for begin, end in ((0, 30), (30, 60)):
        part, identities = rows[begin:end], IdentityTable.from_ids(IDS[begin:end], 10)
        exact = torch_queries(config, part, identities)
        settings = part, identities, begin, IndexConfig(), 0, 1
        there = ShardSearch(*settings, exact).exact(queries, 40)
        here = ShardSearch(*settings).exact(queries, 40)
        assert np.array_equal(there.row_ids_AK, here.row_ids_AK)
        np.testing.assert_allclose(there.similarities_AK, here.similarities_AK, atol=1e-6)
    assert torch_queries(GpuConfig(), rows, IdentityTable.from_ids(IDS)) is None


def test_without_a_gpu_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(torch_sweep, "cuda_devices", list)
    rows = unit_rows(np.random.default_rng(0), 60, 8)
    with pytest.raises(SearchError, match=r"torch sees no GPU: .*workers\.search_gpus"):
        torch_search(GpuConfig(engine="torch"), rows, IdentityTable.from_ids(IDS))
