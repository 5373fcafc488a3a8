"""Kind flat against nested loops. Similarities within 1e-5 of each other count as ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from miner.errors import SearchError
from miner.index import candidate_search
from miner.index.candidate_search import CandidateSearch
from miner.index.config import IndexConfig
from miner.types import Candidates, IdentityTable
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows


def flat(embeddings, identity_ids) -> CandidateSearch:
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    return CandidateSearch(embeddings, identities, IndexConfig(kind="flat"), num_threads=1)


def mine(embeddings, identity_ids, anchors, k, **options) -> Candidates:
    return flat(embeddings, identity_ids)(np.asarray(anchors, np.int64), k, **options)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(2, 60),
    num_identities=st.integers(2, 12),
    dim=st.sampled_from([1, 2, 3, 7, 16, 33]),
    k=st.integers(1, 80),
    distinct=st.integers(1, 60),
)
def test_candidates_equal_nested_loops(*, seed, num_rows, num_identities, dim, k, distinct):
    rng = np.random.default_rng(seed)
    # `distinct` below `num_rows` makes duplicates, within identities and across them.
    pool = unit_rows(rng, distinct, dim)
    embeddings = pool[rng.integers(0, distinct, num_rows)]
    identity_ids = rng.integers(0, num_identities, num_rows)
    _, identity_ids = np.unique(identity_ids, return_inverse=True)
    anchors = rng.integers(0, num_rows, 10)
    candidates = mine(embeddings, identity_ids, anchors, k)
    assert_exact(candidates, embeddings, identity_ids, k)


def test_one_identity_holding_almost_all_rows_hides_no_neighbour():
    rng = np.random.default_rng(0)
    embeddings = unit_rows(rng, 400, 6)
    # The big identity is a tight cluster, so its anchors' nearest rows are all their own.
    embeddings[:390] = embeddings[0] + 0.01 * embeddings[:390]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    identity_ids = np.array([0] * 390 + [1] * 9 + [2])
    rows = rng.permutation(400)
    embeddings, identity_ids = embeddings[rows], identity_ids[rows]
    done = []
    candidates = mine(
        embeddings,
        identity_ids,
        np.arange(0, 400, 7),
        4,
        on_progress=lambda *counts: done.append(counts),
    )
    assert_exact(candidates, embeddings, identity_ids, 4)
    assert done[-1] == (58, 58)


def test_the_candidate_ids_are_row_ids_of_the_whole_gallery():
    # A search over the rows that are left after filtering, read as row numbers, would give 0.
    embeddings = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6], [0, 1]], np.float32)
    candidates = mine(embeddings, [0, 0, 1, 1], [0], 2)
    assert candidates.row_ids_AK.tolist() == [[2, 3]]
    np.testing.assert_allclose(candidates.similarities_AK, [[0.8, 0]], atol=1e-7)


def test_equal_similarities_stand_by_row_id():
    embeddings = np.tile(np.array([[1, 0]], np.float32), (9, 1))
    candidates = mine(embeddings, [1, 0, 0, 1, 0, 2, 0, 0, 0], [5, 0, 5], 8)
    assert candidates.row_ids_AK[0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert candidates.row_ids_AK[1].tolist() == [1, 2, 4, 5, 6, 7, 8, -1]
    assert candidates.row_ids_AK[2].tolist() == candidates.row_ids_AK[0].tolist()


def test_no_anchors_give_no_candidates():
    candidates = mine(unit_rows(np.random.default_rng(0), 5, 3), [0, 0, 1, 1, 2], [], 4)
    assert candidates.row_ids_AK.shape == candidates.similarities_AK.shape == (0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_rows_not_of_length_one_are_refused_and_named(value):
    embeddings = unit_rows(np.random.default_rng(0), 70_000, 4)
    embeddings[[3, 69_000]] = value
    message = r"2 of 70000 embeddings .* rows \[3, 69000\]"
    with np.errstate(invalid="ignore"), pytest.raises(SearchError, match=message):
        mine(embeddings, np.arange(70_000), [0], 2)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_a_gallery_of_a_wrong_form_is_refused(shape):
    with pytest.raises(SearchError, match="non-empty float32"):
        mine(np.zeros(shape, np.float32), [0], [0], 2)
    with pytest.raises(SearchError, match="float64"):
        mine(np.ones((3, 1)), [0, 1, 2], [0], 2)


def test_what_does_not_belong_together_is_refused():
    embeddings, identity_ids = unit_rows(np.random.default_rng(0), 6, 3), [0, 0, 1, 1, 2, 2]
    with pytest.raises(SearchError, match="the embeddings hold 5 rows, the catalog 6"):
        mine(embeddings[:5], identity_ids, [0], 2)
    with pytest.raises(SearchError, match=r"2 anchors are no rows .* \[6, -1\].* 0 to 5"):
        mine(embeddings, identity_ids, [0, 6, -1], 2)
    with pytest.raises(SearchError, match="num_candidates=0 of at least 1"):
        mine(embeddings, identity_ids, [0], 0)


def test_rows_are_checked_by_the_first_search_only_and_described(monkeypatch):
    embeddings = unit_rows(np.random.default_rng(0), 3, 5)
    checked = []
    monkeypatch.setattr(candidate_search, "check_embeddings", checked.append)
    search = flat(embeddings, [0, 1, 1])
    assert search.description == {}
    for _ in range(2):
        search(np.array([0]), 5)
    assert len(checked) == 1
    assert search.description == {"kind": "flat", "num_rows": 3, "dim": 5}


def test_impossible_settings_are_refused():
    for wrong in ({"kind": "magic"}, {"num_lists": 0}, {"nprobe": 3}):
        with pytest.raises(ValidationError):
            IndexConfig(**wrong)
