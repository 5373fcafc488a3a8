"""The exact search against nested loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.index import sweep as sweep_module
from miner.index.sweep import sweep
from miner.index.threads import workers
from miner.types import Candidates, IdentityTable
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows


def swept(embeddings, identity_ids, anchors, k, threads=2) -> Candidates:
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    with workers(threads) as each:
        return sweep(embeddings, identities, np.asarray(anchors, np.int64), k, each)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 90),
    st.integers(1, 13),
    st.integers(1, 12),
    st.integers(1, 120),
    st.booleans(),
)
def test_candidates_equal_those_of_nested_loops(seed, rows, dim, identities, k, duplicates):
    rng = np.random.default_rng(seed)
    embeddings = unit_rows(rng, rows, dim)
    if duplicates:
        embeddings = embeddings[rng.integers(max(1, rows // 4), size=rows)]
    identity_ids = np.unique(rng.integers(identities, size=rows), return_inverse=True)[1]
    anchors = rng.integers(rows, size=rows)
    assert_exact(swept(embeddings, identity_ids, anchors, k), embeddings, identity_ids, k)


@pytest.mark.parametrize("spoilt", [0, 1])
@pytest.mark.parametrize("decay", [1, 0.6], ids=["products", "bounds"])
@pytest.mark.parametrize("large", [0, 390])
def test_many_tiles_and_blocks_are_exact_with_identities_of_any_size(
    monkeypatch, spoilt, decay, large
):
    small = {"TILE": 32, "BLOCK": 24, "FIRST": 70, "MIN_PRODUCTS": 0, "SPOILT": spoilt}
    for name, value in small.items():
        monkeypatch.setattr(sweep_module, name, value)
    rng = np.random.default_rng(3)
    embeddings = unit_rows(rng, 400, 20) * decay ** np.arange(20, dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    identity_ids = rng.integers(1, 40, size=400)
    identity_ids[:large] = 0
    identity_ids = np.unique(identity_ids, return_inverse=True)[1]
    anchors = np.arange(0, 400, 3)
    found = swept(embeddings, identity_ids, anchors, 15)
    assert_exact(found, embeddings, identity_ids, 15)


def test_progress_ends_with_all_anchors():
    rng = np.random.default_rng(4)
    seen: list[tuple[int, int]] = []
    identities = IdentityTable.from_ids(rng.integers(9, size=1300).astype(np.int32))
    with workers(1) as each:
        sweep(
            unit_rows(rng, 1300, 4),
            identities,
            np.arange(1300),
            3,
            each,
            on_progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == [(512, 1300), (1024, 1300), (1300, 1300)]
