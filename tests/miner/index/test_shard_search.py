"""Parts of the rows searched apart and merged, against one search of all of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import SelectionConfig, mine_round
from miner.index import sweep as sweep_module
from miner.index.candidate_search import CandidateSearch
from miner.index.config import IndexConfig
from miner.index.merge import merge_into
from miner.index.queries import Queries
from miner.index.shard_search import ShardSearch
from miner.index.sweep import sweep
from miner.index.threads import workers
from miner.types import Candidates, IdentityTable
from tests.bench.vectors import clustered
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows

K = 12


def parts_of(embeddings, identity_ids, num_shards, config=None) -> list[ShardSearch]:
    ids = np.asarray(identity_ids, np.int32)
    cuts = np.linspace(0, len(ids), num_shards + 1).astype(int)
    return [
        ShardSearch(
            embeddings[begin:end],
            IdentityTable.from_ids(ids[begin:end], int(ids.max()) + 1),
            int(begin),
            config or IndexConfig(),
            seed=0,
            num_threads=2,
        )
        for begin, end in pairwise(cuts)
    ]


def queries_of(embeddings, identity_ids, anchors) -> Queries:
    anchors = np.asarray(anchors, np.int64)
    owners = np.asarray(identity_ids, np.int32)[anchors]
    return Queries(anchors, embeddings[anchors], owners)


def merged(answers: list[Candidates], k: int) -> Candidates:
    anchors = answers[0].anchor_ids_A
    shape = len(anchors), k
    found = Candidates(anchors, np.full(shape, -1), np.full(shape, -np.inf, np.float32))
    for part in answers:
        merge_into(found.similarities_AK, found.row_ids_AK, part.similarities_AK, part.row_ids_AK)
    return found


def assert_same(one: Candidates, other: Candidates) -> None:
    assert np.array_equal(one.row_ids_AK, other.row_ids_AK)
    assert one.similarities_AK.tobytes() == other.similarities_AK.tobytes(), "to the bit"


def swept(embeddings, identity_ids, anchors, k) -> Candidates:
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    with workers(2) as each:
        return sweep(embeddings, identities, np.asarray(anchors), k, each)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 90),
    st.integers(1, 13),
    st.integers(1, 12),
    st.integers(1, 120),
    st.integers(1, 6),
    st.booleans(),
)
def test_any_number_of_parts_gives_the_same_to_the_bit(
    seed, rows, dim, identities, k, num_shards, duplicates
):
    rng = np.random.default_rng(seed)
    embeddings = unit_rows(rng, rows, dim)
    if duplicates:
        embeddings = embeddings[rng.integers(max(1, rows // 4), size=rows)]
    # In order, an identity may fill a whole part.
    ids = np.unique(np.sort(rng.integers(identities, size=rows)), return_inverse=True)[1]
    anchors = rng.integers(rows, size=rows)
    queries = queries_of(embeddings, ids, anchors)
    parts = parts_of(embeddings, ids, min(num_shards, rows))
    found = merged([part.exact(queries, k) for part in parts], k)
    assert_same(found, swept(embeddings, ids, anchors, k))
    assert_exact(found, embeddings, ids, k)


@pytest.mark.parametrize("decay", [1, 0.6], ids=["products", "bounds"])
def test_ties_at_the_cut_are_the_first_rows_whatever_the_tiles(monkeypatch, decay):
    for name, value in {"TILE": 32, "BLOCK": 24, "FIRST": 70, "MIN_PRODUCTS": 0}.items():
        monkeypatch.setattr(sweep_module, name, value)
    rng = np.random.default_rng(3)
    embeddings = unit_rows(rng, 30, 48) * decay ** np.arange(48, dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    kind_of_row = rng.integers(30, size=900)
    embeddings = embeddings[kind_of_row]
    ids, anchors = np.arange(900) // 3, np.arange(0, 900, 7)
    whole = swept(embeddings, ids, anchors, K)
    queries = queries_of(embeddings, ids, anchors)
    for num_shards in (2, 4):
        parts = parts_of(embeddings, ids, num_shards)
        assert_same(merged([part.exact(queries, K) for part in parts], K), whole)
    for place, anchor in enumerate(anchors):  # its copies come first, those of the least ids
        copies = np.flatnonzero((kind_of_row == kind_of_row[anchor]) & (ids != ids[anchor]))
        assert whole.row_ids_AK[place].tolist()[: len(copies)] == copies[:K].tolist()


class Shards:
    """What the workers do with processes, here."""

    def __init__(self, embeddings, ids, num_shards, config):
        self.embeddings, self.ids = embeddings, ids
        self.parts, self.is_prepared = parts_of(embeddings, ids, num_shards, config), False

    def exact(self, anchors, k, on_progress=None):
        queries = queries_of(self.embeddings, self.ids, anchors)
        return merged([part.exact(queries, k) for part in self.parts], k)

    def lists(self, kind):
        self.kind = kind
        return self

    def prepare(self, exact, k, each):
        sample = queries_of(self.embeddings, self.ids, exact.anchor_ids_A)
        for part in self.parts:
            part.prepare(self.kind, sample, exact.row_ids_AK.shape[1], k)
        self.is_prepared = True

    def search(self, anchors, k, each, on_progress=None):
        queries = queries_of(self.embeddings, self.ids, anchors)
        return merged([part.search(queries, k) for part in self.parts], k)

    def deepen(self, exact, each):
        sample = queries_of(self.embeddings, self.ids, exact.anchor_ids_A)
        deeper = [part.deepen(sample, exact.row_ids_AK.shape[1]) for part in self.parts]
        return any(deeper)

    def describe(self):
        probes = sum(part.describe()["num_probes"] for part in self.parts)
        return {"num_lists": 0, "num_probes": probes}

    def remember(self, found):
        pass

    def warm_start(self):
        return None


@pytest.fixture(scope="module")
def made():
    return clustered(6000, 300, 16, 0.7, 0)


def search_of(made, config, num_shards):
    identities = IdentityTable.from_ids(made.identity_ids_N)
    shards = Shards(made.embeddings_ND, made.identity_ids_N, num_shards, config)
    return shards, CandidateSearch(
        made.embeddings_ND, identities, config, exact=shards.exact, new_lists=shards.lists
    )


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
@pytest.mark.parametrize("num_shards", [2, 4])
def test_lists_of_parts_reach_the_target_over_all_rows(made, kind, num_shards):
    _, search = search_of(made, IndexConfig(kind=kind), num_shards)
    found = search(np.arange(6000), 50)
    exact = swept(made.embeddings_ND, made.identity_ids_N, np.arange(6000), 10)
    true = (found.similarities_AK[:, :10] >= exact.similarities_AK[:, -1:] - 1e-6).mean()
    assert search.recall.low <= true <= search.recall.high
    assert true > 0.93
    own = made.identity_ids_N[found.row_ids_AK] == made.identity_ids_N[:, None]
    assert not own.any()


def test_parts_below_the_floor_are_deepened(made):
    config = IndexConfig(kind="ivf", num_probes=1, num_lists=100, min_recall=0.9)
    _, shallow = search_of(made, config.model_copy(update={"min_recall": 0.0}), 3)
    shallow(np.arange(6000), 10)
    assert shallow.recall.value < 0.9
    _, search = search_of(made, config, 3)
    search(np.arange(6000), 10)
    assert search.recall.value >= 0.9
    assert search.description["num_probes"] > shallow.description["num_probes"]


def test_a_sample_is_compared_with_all_rows_only_once(made, monkeypatch):
    shards, search = search_of(made, IndexConfig(kind="ivf"), 2)
    asked, exact = [], ShardSearch._exact
    monkeypatch.setattr(
        ShardSearch, "_exact", lambda self, *given: asked.append(1) or exact(self, *given)
    )
    search(np.arange(6000), 10)
    assert len(asked) == 2 * len(shards.parts), "those that choose the depth, those that judge it"


def test_groups_are_the_same_for_any_number_of_parts():
    """With many copies among the rows, so that ties decide which candidates there are."""
    made = clustered(3000, 150, 16, 0.7, 1)
    rows = made.embeddings_ND[np.random.default_rng(0).integers(600, size=3000)]
    made = replace(made, embeddings_ND=rows)
    identities = IdentityTable.from_ids(made.identity_ids_N)
    config = SelectionConfig(groups_per_round=200, num_candidates=40)
    mined = [
        mine_round(
            search_of(made, IndexConfig(), num_shards)[1],
            rows,
            identities,
            config,
            seed=0,
            round_id=1,
        ).groups
        for num_shards in (1, 2, 4)
    ]
    whole = CandidateSearch(rows, identities, IndexConfig())
    mined.append(mine_round(whole, rows, identities, config, seed=0, round_id=1).groups)
    first = mined[0]
    assert first.num_groups == 200
    for groups in mined[1:]:
        for name in first.__slots__:
            assert getattr(groups, name).tobytes() == getattr(first, name).tobytes(), name
    anchors, _, negatives = first.triplet_rows()
    assert (identities.identity_ids_N[anchors] != identities.identity_ids_N[negatives]).all()
