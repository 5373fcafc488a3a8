"""The configured search: kinds, depth, the gate on recall, identities of very unequal size."""

import numpy as np
import pytest
from pydantic import ValidationError

from miner.errors import SearchError
from miner.index import candidate_search, gpu_index
from miner.index.candidate_search import CandidateSearch
from miner.index.config import GpuConfig, IndexConfig
from miner.index.gpu import GpuSupport
from miner.index.list_join import ListJoin
from miner.types import IdentityTable
from tests.bench.vectors import clustered
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows
from tests.miner.index.test_gpu import stand_in


def searched(embeddings, identity_ids, config: IndexConfig, k=10, anchors=None):
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    search = CandidateSearch(embeddings, identities, config, num_threads=2)
    anchors = np.arange(len(embeddings)) if anchors is None else anchors
    return search, search(anchors, k)


@pytest.fixture(scope="module")
def made():
    return clustered(6000, 300, 16, 0.7, 0)


def test_flat_is_exact_and_measures_no_recall(made):
    anchors = np.arange(0, 6000, 400)
    search, found = searched(
        made.embeddings_ND, made.identity_ids_N, IndexConfig(), anchors=anchors
    )
    assert search.recall is None
    assert search.description["kind"] == "flat"
    assert_exact(found, made.embeddings_ND, made.identity_ids_N, 10)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_lists_reach_the_target_and_say_with_how_many_probes(made, kind):
    config = IndexConfig(kind=kind, target_recall=0.95)
    search, found = searched(made.embeddings_ND, made.identity_ids_N, config)
    _, exact = searched(made.embeddings_ND, made.identity_ids_N, IndexConfig())
    true = (found.similarities_AK >= exact.similarities_AK[:, -1:] - 1e-5).mean()
    assert search.recall.low <= true <= search.recall.high
    assert true > 0.93
    assert 1 <= search.description["num_probes"] < search.description["num_lists"]
    assert (search.recall.at, search.recall.num_anchors) == (10, 1000)
    own = made.identity_ids_N[found.row_ids_AK] == made.identity_ids_N[:, None]
    assert not own.any()


def test_a_search_below_the_floor_is_deepened(made):
    config = IndexConfig(kind="ivf", num_probes=1, num_lists=200, min_recall=0.9)
    shallow = config.model_copy(update={"min_recall": 0.0})
    search, _ = searched(made.embeddings_ND, made.identity_ids_N, shallow)
    assert search.recall.value < 0.9
    search, _ = searched(made.embeddings_ND, made.identity_ids_N, config)
    assert search.recall.value >= 0.9
    assert search.description["num_probes"] > 1


def test_a_search_that_stays_below_the_floor_is_refused_with_its_figures(made, monkeypatch):
    monkeypatch.setattr(candidate_search, "MAX_DEEPENINGS", 1)
    config = IndexConfig(kind="ivf", num_probes=1, num_lists=300, min_recall=0.999)
    figures = r"min_recall=0\.999: 1 probes: recall@10 0\..* probes: recall@10 0\.9"
    with pytest.raises(SearchError, match=figures):
        searched(made.embeddings_ND, made.identity_ids_N, config)


def test_once_all_lists_are_searched_there_is_nothing_deeper_to_try(made, monkeypatch):
    searches, search = [], ListJoin.search
    monkeypatch.setattr(
        ListJoin, "search", lambda *given, **named: searches.append(1) or search(*given, **named)
    )
    config = IndexConfig(kind="ivfpq", num_lists=1, min_recall=0.999, target_recall=0.999)
    with pytest.raises(SearchError, match=r"1 probes: [^;]*; all were searched: take kind flat"):
        searched(made.embeddings_ND, made.identity_ids_N, config, k=1)
    of_the_sample = 3  # one for each share of energy
    assert len(searches) <= of_the_sample + 1


def test_lists_that_hold_nothing_but_an_anchors_own_identity_are_deepened():
    rng = np.random.default_rng(0)
    identity_ids = np.arange(4000) % 200
    rows = unit_rows(rng, 200, 32)[identity_ids] + 0.02 * rng.standard_normal((4000, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    config = IndexConfig(kind="ivf", num_lists=200, num_probes=1)
    search, _ = searched(rows, identity_ids, config)
    assert search.recall.value >= config.min_recall
    assert search.description["num_probes"] > 1


@pytest.mark.parametrize("k", [1, 5])
def test_codes_are_made_up_for_by_comparing_more_rows_than_are_wanted(made, k):
    config = IndexConfig(kind="ivfpq", num_lists=1, min_recall=0.0)
    search, _ = searched(made.embeddings_ND, made.identity_ids_N, config, k=k)
    assert search.recall.value > 0.85


def test_auto_is_exact_for_few_anchors_and_says_why(made, monkeypatch):
    config = IndexConfig(kind="auto")
    search, _ = searched(made.embeddings_ND, made.identity_ids_N, config)
    assert search.description["kind"] == "flat"
    assert "6000 anchors times 6000 rows" in search.description["reason"]
    monkeypatch.setattr(candidate_search, "FLAT_PRODUCTS", 10**6)
    search, _ = searched(made.embeddings_ND, made.identity_ids_N, config)
    assert search.description["kind"] == "ivf"
    small = config.model_copy(update={"memory_mb": 0.1})
    search, _ = searched(made.embeddings_ND, made.identity_ids_N, small)
    assert search.description["kind"] == "ivfpq"
    assert "take up to 0 MB of 0" in search.description["reason"]


@pytest.mark.parametrize("share", [0.5, 0.98])
def test_an_identity_that_holds_most_rows_is_neither_missed_nor_left_short(share):
    rng = np.random.default_rng(0)
    num = 4000
    large = np.arange(num) < share * num
    centre = unit_rows(rng, 1, 12)
    embeddings = np.where(large[:, None], centre + 0.3 * unit_rows(rng, num, 12), 0)
    embeddings = np.where(large[:, None], embeddings, unit_rows(rng, num, 12))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings.astype(np.float32)
    identity_ids = np.where(large, 0, 1 + np.arange(num) % 40)
    config = IndexConfig(kind="ivf")
    search, found = searched(embeddings, identity_ids, config, k=20)
    others = found.row_ids_AK
    assert (others >= 0).all(), "every anchor has 20 rows of other identities"
    assert not (identity_ids[others] == identity_ids[:, None]).any()
    assert search.recall.value >= 0.9


def test_anchors_short_of_candidates_get_all_there_are(made):
    sparse = np.where(np.arange(6000) < 5990, 0, 1 + np.arange(6000) % 5)
    _, found = searched(made.embeddings_ND, sparse, IndexConfig(kind="ivf"), k=10)
    large = found.row_ids_AK[:5990]
    assert (np.sort(large, axis=1) == np.arange(5990, 6000)).all()


def test_a_memory_map_gives_the_same_as_memory(made, tmp_path):
    np.save(tmp_path / "rows.npy", made.embeddings_ND)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    config = IndexConfig(kind="ivf", num_probes=5)
    _, from_memory = searched(made.embeddings_ND, made.identity_ids_N, config)
    _, from_map = searched(mapped, made.identity_ids_N, config)
    assert (from_memory.row_ids_AK == from_map.row_ids_AK).mean() > 0.999


def test_a_target_below_the_floor_is_refused():
    with pytest.raises(ValidationError, match=r"target_recall=0\.8 is below min_recall=0\.9"):
        IndexConfig(kind="ivf", target_recall=0.8)


class TestGpu:
    """What is searched on a GPU, with CPU indexes in its place."""

    @pytest.fixture
    def gpus(self, monkeypatch):
        monkeypatch.setattr(gpu_index, "available", lambda: GpuSupport(True, 2))
        monkeypatch.setattr(gpu_index, "new_gpu_index", stand_in)

    def test_flat_is_exact(self, made, gpus):
        config = IndexConfig(gpu=GpuConfig(engine="faiss"))
        anchors = np.arange(0, 6000, 400)
        search, found = searched(made.embeddings_ND, made.identity_ids_N, config, anchors=anchors)
        assert_exact(found, made.embeddings_ND, made.identity_ids_N, 10)
        assert search.recall is None

    @pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
    def test_lists_are_judged_like_those_of_the_cpu(self, made, gpus, kind):
        config = IndexConfig(kind=kind, gpu=GpuConfig(engine="faiss"))
        search, found = searched(made.embeddings_ND, made.identity_ids_N, config)
        assert search.recall.value >= 0.9
        assert search.description["num_gpus"] == 2
        assert search.warm_start is None
        assert not (made.identity_ids_N[found.row_ids_AK] == made.identity_ids_N[:, None]).any()

    def test_without_a_gpu_it_is_said_what_is_missing(self, made):
        config = IndexConfig(gpu=GpuConfig(engine="faiss"))
        with pytest.raises(SearchError, match=r"extra `gpu`|sees no GPU"):
            searched(made.embeddings_ND, made.identity_ids_N, config)

    def test_an_exact_search_that_is_given_judges_recall(self, made):
        asked = []

        def exact(anchor_ids_A, num_candidates, on_progress):
            asked.append(len(anchor_ids_A))
            return searched(
                made.embeddings_ND,
                made.identity_ids_N,
                IndexConfig(),
                num_candidates,
                anchor_ids_A,
            )[1]

        identities = IdentityTable.from_ids(np.asarray(made.identity_ids_N, np.int32))
        config = IndexConfig(kind="ivf")
        search = CandidateSearch(made.embeddings_ND, identities, config, exact=exact)
        search(np.arange(6000), 10)
        assert asked == [1000, 1000]
        assert search.recall.value >= 0.9


def test_in_a_collapsed_space_recall_is_not_overstated():
    rng = np.random.default_rng(0)
    rows = np.zeros((6000, 64), np.float32)
    rows[:, 0] = 1
    rows += (0.001 * rng.normal(size=rows.shape)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    identities = IdentityTable.from_ids(np.arange(6000, dtype=np.int32) // 4)
    anchors = np.arange(0, 6000, 3)
    config = IndexConfig(kind="ivf", min_recall=0.0)
    search = CandidateSearch(rows, identities, config)
    found = search(anchors, 10).row_ids_AK
    exact = CandidateSearch(rows, identities, IndexConfig())(anchors, 10).row_ids_AK
    common = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert search.recall is not None
    assert search.recall.value <= common + 0.1


@pytest.mark.parametrize("anchors", [np.zeros((2, 2), int), np.array([0.5]), np.array([True])])
def test_anchors_that_are_no_row_ids_are_refused(anchors):
    rows = np.eye(4, dtype=np.float32)
    identities = IdentityTable.from_ids(np.array([0, 0, 1, 1], np.int32))
    with pytest.raises(SearchError, match="anchors must be row ids"):
        CandidateSearch(rows, identities, IndexConfig())(anchors, 1)
