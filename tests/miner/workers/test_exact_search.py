"""The exact search on torch's GPUs as it is configured; what it finds is tested with the tiles."""

import numpy as np
import pytest

from miner.errors import SearchError
from miner.index import GpuConfig
from miner.types import IdentityTable
from miner.workers import torch_sweep
from miner.workers.exact_search import torch_search
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


def test_without_a_gpu_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(torch_sweep, "cuda_devices", list)
    rows = unit_rows(np.random.default_rng(0), 60, 8)
    with pytest.raises(SearchError, match=r"torch sees no GPU: .*workers\.search_gpus"):
        torch_search(GpuConfig(engine="torch"), rows, IdentityTable.from_ids(IDS))
