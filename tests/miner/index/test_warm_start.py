"""What one search leaves to the next: cheaper at the same recall, and never a reason to fail."""

import logging

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from miner.errors import SearchError
from miner.index import list_search
from miner.index.candidate_search import CandidateSearch
from miner.index.config import IndexConfig
from miner.index.inverted_lists import Centroids
from miner.index.projection import Projection
from miner.index.rescoring import NONE
from miner.index.warm_start import WarmFile, WarmStart
from miner.types import IdentityTable
from tests.bench.vectors import clustered, moved
from tests.miner.index.neighbour_oracle import unit_rows

CONFIG = IndexConfig(kind="ivf")


@pytest.fixture(scope="module")
def made():
    return clustered(8000, 400, 24, 0.7, 0, decay=0.5)


def searched(embeddings, identity_ids, before=None, config=CONFIG, anchors=None):
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    search = CandidateSearch(embeddings, identities, config, num_threads=2, before=before)
    anchors = np.arange(len(embeddings)) if anchors is None else anchors
    return search, search(anchors, 20)


def test_after_a_slight_move_fewer_probes_reach_the_same_recall(made):
    first, _ = searched(made.embeddings_ND, made.identity_ids_N)
    rows = moved(made.embeddings_ND, 0.1, 0)
    cold, _ = searched(rows, made.identity_ids_N)
    warm, found = searched(rows, made.identity_ids_N, first.warm_start)
    assert warm.recall.value >= 0.93
    assert warm.description["num_probes"] < cold.description["num_probes"] / 2
    assert (cold.description["start"], warm.description["start"]) == ("cold", "warm")
    assert not (made.identity_ids_N[found.row_ids_AK] == made.identity_ids_N[:, None]).any()
    assert (np.diff(np.sort(found.row_ids_AK, axis=1), axis=1) > 0).all(), "no row twice"


def test_similarities_are_those_of_the_new_embeddings(made):
    first, _ = searched(made.embeddings_ND, made.identity_ids_N)
    rows = moved(made.embeddings_ND, 0.3, 0)
    _, found = searched(rows, made.identity_ids_N, first.warm_start)
    products = np.einsum("akd,ad->ak", rows[found.row_ids_AK], rows)
    np.testing.assert_allclose(found.similarities_AK, products, atol=1e-5)
    assert (np.diff(found.similarities_AK, axis=1) <= 0).all()


def test_lists_that_no_longer_fit_are_trained_anew(made, monkeypatch):
    first, _ = searched(made.embeddings_ND, made.identity_ids_N)
    again, _ = searched(made.embeddings_ND, made.identity_ids_N, first.warm_start)
    assert again.warm_start.centroids is first.warm_start.centroids
    rows = unit_rows(np.random.default_rng(0), 8000, 24)
    rows *= np.arange(1, 25, dtype=np.float32)[::-1] ** -0.9  # other leading axes
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    other, _ = searched(rows, made.identity_ids_N, first.warm_start)
    assert other.warm_start.centroids is not first.warm_start.centroids
    monkeypatch.setattr(list_search, "STALE", 0.01)
    other, _ = searched(made.embeddings_ND, made.identity_ids_N, first.warm_start)
    assert other.warm_start.centroids is not first.warm_start.centroids


def test_rows_that_were_no_anchors_keep_what_was_known():
    before = np.array([[1, 2], [0, 2], [0, 1]], np.uint32)
    projection = Projection.whole(2)
    centroids = Centroids(projection, np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    warm = WarmStart(centroids, 3, before)
    after = WarmStart.after(warm, centroids, 3, np.array([1]), np.array([[2, -1, -1]]), 3)
    assert after.neighbours_NW.tolist() == [[1, 2, NONE], [2, NONE, NONE], [0, 1, NONE]]


def test_a_neighbour_of_the_anchors_own_identity_is_never_taken_over(made):
    first, _ = searched(made.embeddings_ND, made.identity_ids_N)
    own = np.random.default_rng(0).integers(8000, size=(8000, 20)).astype(np.uint32)
    own[:, :10] = np.argsort(made.identity_ids_N, kind="stable")[
        np.searchsorted(np.sort(made.identity_ids_N), made.identity_ids_N)
    ][:, None]
    wrong = WarmStart(first.warm_start.centroids, first.warm_start.num_probes, own)
    _, found = searched(made.embeddings_ND, made.identity_ids_N, wrong)
    assert not (made.identity_ids_N[found.row_ids_AK] == made.identity_ids_N[:, None]).any()


class TestFile:
    """Kept on disk between searches."""

    @pytest.fixture
    def warm(self):
        projection = Projection(np.eye(8, 4, dtype=np.float32), 8)
        rows = unit_rows(np.random.default_rng(0), 12, 4)
        neighbours = np.arange(300, dtype=np.uint32).reshape(100, 3) % 100
        neighbours[3, 1] = NONE
        return WarmStart(Centroids(projection, rows[:2], rows), 5, neighbours)

    def test_it_comes_back_as_it_was(self, warm, tmp_path):
        file = WarmFile(tmp_path / "new" / "search.safetensors", "abc")
        assert file.load(100, 8) is None
        file.save(warm)
        back = file.load(100, 8)
        assert back.num_probes == 5
        for mine, its in (
            (warm.neighbours_NW, back.neighbours_NW),
            (warm.centroids.fine_LP, back.centroids.fine_LP),
            (warm.centroids.coarse_CP, back.centroids.coarse_CP),
            (warm.centroids.projection.axes_DP, back.centroids.projection.axes_DP),
        ):
            np.testing.assert_array_equal(mine, its)
        assert [path.name for path in file.path.parent.iterdir()] == ["search.safetensors"]

    def test_of_other_rows_nothing_is_taken(self, warm, tmp_path):
        WarmFile(tmp_path / "warm", "abc").save(warm)
        assert WarmFile(tmp_path / "warm", "other").load(100, 8) is None

    @pytest.mark.parametrize(("rows", "dim"), [(101, 8), (100, 9)])
    def test_of_another_shape_nothing_is_taken(self, warm, tmp_path, caplog, rows, dim):
        file = WarmFile(tmp_path / "warm", "abc")
        file.save(warm)
        with caplog.at_level(logging.WARNING):
            assert file.load(rows, dim) is None
        assert "starts cold" in caplog.text

    @pytest.mark.parametrize("damage", ["truncated", "garbage", "row out of range"])
    def test_a_damaged_file_costs_time_not_a_round(self, warm, tmp_path, caplog, damage):
        file = WarmFile(tmp_path / "warm", "abc")
        warm.neighbours_NW[0, 0] = 100 if damage == "row out of range" else 7
        file.save(warm)
        if damage == "truncated":
            file.path.write_bytes(file.path.read_bytes()[:-50])
        if damage == "garbage":
            file.path.write_bytes(b"\xff" * 1000)
        with caplog.at_level(logging.WARNING):
            assert file.load(100, 8) is None
        assert str(file.path) in caplog.text

    def test_a_disk_that_refuses_is_logged(self, warm, tmp_path, caplog):
        (tmp_path / "file").write_text("in the way")
        with caplog.at_level(logging.WARNING):
            WarmFile(tmp_path / "file" / "warm", "abc").save(warm)
        assert "cannot be written" in caplog.text


@pytest.mark.parametrize("changed", ["fewer rows", "other dimensions", "rows that are not there"])
def test_what_a_search_over_other_rows_has_left_is_refused(made, changed):
    rows, identity_ids = made.embeddings_ND, made.identity_ids_N
    before = searched(rows, identity_ids)[0].warm_start
    match changed:
        case "fewer rows":
            rows, identity_ids = rows[:-9], np.unique(identity_ids[:-9], return_inverse=True)[1]
        case "other dimensions":
            rows = unit_rows(np.random.default_rng(0), len(rows), 9)
        case _:
            before.neighbours_NW[7, 0] = len(rows)
    with pytest.raises(SearchError, match="what an earlier search has left"):
        searched(rows, identity_ids, before)


def test_a_configured_number_of_lists_holds_for_a_warm_search_too(made):
    first, _ = searched(made.embeddings_ND, made.identity_ids_N)
    config = CONFIG.model_copy(update={"num_lists": 16})
    warm, _ = searched(made.embeddings_ND, made.identity_ids_N, first.warm_start, config)
    assert first.description["num_lists"] > 30
    assert warm.description["num_lists"] < 20


@pytest.mark.parametrize("name", ["axes", "coarse", "fine", "neighbours"])
@pytest.mark.parametrize("shape", [(), (0, 12), (3,)])
def test_tensors_of_a_shape_that_cannot_be_start_cold(made, tmp_path, name, shape):
    search, _ = searched(made.embeddings_ND, made.identity_ids_N)
    file = WarmFile(tmp_path / "search.safetensors", "rows")
    file.save(search.warm_start)
    with safe_open(file.path, "numpy") as kept:
        tensors = {one: kept.get_tensor(one) for one in kept.keys()}  # noqa: SIM118
        metadata = kept.metadata()
    kind = np.uint32 if name == "neighbours" else np.float32
    tensors[name] = np.zeros(shape, kind)
    save_file(tensors, file.path, metadata)
    assert file.load(*made.embeddings_ND.shape) is None


def test_a_result_that_was_changed_is_no_warm_start(made):
    search, found = searched(made.embeddings_ND, made.identity_ids_N)
    found.row_ids_AK[:] += 10**9
    with pytest.raises(SearchError, match="rows beyond the 8000"):
        search(np.arange(8000), 20)
