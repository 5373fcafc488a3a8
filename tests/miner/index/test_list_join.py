"""The join of anchors and lists: exact when every list is probed, sound when few are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.index import join_batch, list_join
from miner.index.gallery import CodedGallery
from miner.index.inverted_lists import Centroids, default_num_lists
from miner.index.list_join import ListJoin
from miner.index.projection import Projection
from miner.index.threads import workers
from miner.types import Candidates, IdentityTable
from tests.bench.vectors import clustered
from tests.miner.index.neighbour_oracle import assert_exact, brute_force, unit_rows


def join(
    embeddings, identity_ids, anchors, k, *, lists, probes, threads=2, axes=None, coded=False
) -> Candidates:
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    with workers(threads) as each:
        projection = Projection.whole(embeddings.shape[1]) if axes is None else axes
        centroids = Centroids.train(embeddings, projection, lists, 0)
        built = ListJoin.build(embeddings, identities, centroids, each, is_coded=coded)
        return built.search(np.asarray(anchors, np.int64), k, probes, each)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 80),
    st.integers(1, 13),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 100),
    st.booleans(),
)
def test_probing_every_list_is_exact(seed, rows, dim, lists, identities, k, duplicates):
    rng = np.random.default_rng(seed)
    embeddings = unit_rows(rng, rows, dim)
    if duplicates:
        embeddings = embeddings[rng.integers(max(1, rows // 4), size=rows)]
    identity_ids = np.unique(rng.integers(identities, size=rows), return_inverse=True)[1]
    found = join(
        embeddings, identity_ids, np.arange(rows), k, lists=min(lists, rows), probes=10_000
    )
    assert_exact(found, embeddings, identity_ids, k)


@pytest.mark.parametrize("small", ["MAX_JOINED", "MAX_HELD", "MAX_PRODUCT"])
def test_the_size_of_blocks_has_no_effect(monkeypatch, small):
    rng = np.random.default_rng(1)
    embeddings, identity_ids = unit_rows(rng, 400, 12), rng.integers(30, size=400)
    anchors = rng.integers(400, size=150)  # some rows more than once
    whole = join(embeddings, identity_ids, anchors, 7, lists=20, probes=4)
    monkeypatch.setattr(join_batch if small == "MAX_PRODUCT" else list_join, small, 7)
    parts = join(embeddings, identity_ids, anchors, 7, lists=20, probes=4, threads=1)
    assert (whole.row_ids_AK == parts.row_ids_AK).mean() > 0.999, "but for ties in float32"
    np.testing.assert_allclose(whole.similarities_AK, parts.similarities_AK, atol=1e-6)


def test_few_probes_give_true_similarities_and_never_the_anchors_identity():
    rng = np.random.default_rng(2)
    embeddings, identity_ids = unit_rows(rng, 500, 24), rng.integers(40, size=500)
    found = join(embeddings, identity_ids, np.arange(500), 20, lists=25, probes=1)
    for anchor in range(0, 500, 7):
        others = brute_force(embeddings, identity_ids, anchor)
        rows = found.row_ids_AK[anchor][found.row_ids_AK[anchor] >= 0].tolist()
        assert len(set(rows)) == len(rows)
        assert [others[row] for row in rows] == pytest.approx(
            found.similarities_AK[anchor][: len(rows)].tolist(), abs=1e-5
        )


def test_more_probes_find_no_less():
    rng = np.random.default_rng(3)
    embeddings, identity_ids = unit_rows(rng, 2000, 16), rng.integers(200, size=2000)
    found = [
        join(embeddings, identity_ids, np.arange(2000), 10, lists=60, probes=probes)
        for probes in (1, 6, 30)
    ]
    for fewer, more in itertools.pairwise(found):
        assert (more.similarities_AK >= fewer.similarities_AK - 1e-6).all()


def test_rows_are_listed_with_their_nearest_centroid_but_for_a_few():
    embeddings = unit_rows(np.random.default_rng(4), 30_000, 10)
    with workers(2) as each:
        centroids = Centroids.train(embeddings, Projection.whole(10), 1500, 0)
        list_ids = centroids.assign(embeddings, each)
    similarities = embeddings @ centroids.fine_LP.T
    chosen = similarities[np.arange(30_000), list_ids]
    assert (chosen >= similarities.max(axis=1) - 1e-6).mean() > 0.99
    assert abs(centroids.num_lists - 1500) <= 60, "about as many lists as asked for"


def test_lists_in_leading_axes_keep_nearly_all_and_give_true_similarities():
    made = clustered(4000, 200, 48, 0.7, 0, decay=0.8)
    embeddings, identity_ids = made.embeddings_ND, made.identity_ids_N
    axes = Projection.fit(embeddings, 0.95, 0)
    assert axes.num_axes < 48
    every = {"lists": 50, "probes": 50}
    whole = join(embeddings, identity_ids, np.arange(4000), 20, **every)
    found = join(embeddings, identity_ids, np.arange(4000), 20, **every, axes=axes)
    assert (found.similarities_AK[:, 9] >= whole.similarities_AK[:, 9] - 1e-5).mean() > 0.95
    products = np.einsum(
        "akd,ad->ak", embeddings[found.row_ids_AK].astype(np.float64), embeddings.astype(np.float64)
    )
    np.testing.assert_allclose(found.similarities_AK, products, atol=1e-6)


def test_lists_of_codes_keep_nearly_all_and_give_true_similarities():
    made = clustered(4000, 200, 32, 0.7, 0, decay=0.5)
    embeddings, identity_ids = made.embeddings_ND, made.identity_ids_N
    every = {"lists": 50, "probes": 50}
    whole = join(embeddings, identity_ids, np.arange(4000), 20, **every)
    found = join(embeddings, identity_ids, np.arange(4000), 20, **every, coded=True)
    assert not (identity_ids[found.row_ids_AK] == identity_ids[:, None]).any()
    reached = found.similarities_AK[:, :10] >= whole.similarities_AK[:, 9:10] - 1e-5
    assert 0.97 < reached.mean() < 1.0
    products = np.einsum("akd,ad->ak", embeddings[found.row_ids_AK], embeddings)
    np.testing.assert_allclose(found.similarities_AK, products, atol=1e-5)


def test_codes_take_an_eighth_of_the_vectors():
    embeddings = unit_rows(np.random.default_rng(6), 3000, 32)
    projection = Projection.whole(32)
    with workers(2) as each:
        centroids = Centroids.train(embeddings, projection, 20, 0)
        rows, listed = np.arange(3000), centroids.assign(embeddings, each)
        coded = CodedGallery.build(embeddings, rows, listed, centroids, each, seed=0)
    assert coded.codes_NM.nbytes * 8 == embeddings.nbytes
    errors = np.linalg.norm(coded[:] - embeddings, axis=1)
    lengths = np.linalg.norm(centroids.fine_LP[listed] - embeddings, axis=1)
    assert errors.mean() < 0.4 * lengths.mean()
    np.testing.assert_array_equal(coded[np.array([5, 7])], coded[5:8:2])


@pytest.mark.parametrize("dim", [1, 3, 13, 40])
def test_codes_of_any_number_of_dimensions(dim):
    embeddings = unit_rows(np.random.default_rng(7), 90, dim)
    found = join(embeddings, np.arange(90) % 9, np.arange(90), 5, lists=4, probes=4, coded=True)
    assert (found.row_ids_AK >= 0).all()


def test_rows_that_are_all_the_same_can_be_listed():
    embeddings = np.tile(unit_rows(np.random.default_rng(5), 1, 8), (300, 1))
    found = join(embeddings, np.arange(300) % 3, np.arange(300), 5, lists=12, probes=12)
    assert_exact(found, embeddings, np.arange(300) % 3, 5)


@pytest.mark.parametrize(("rows", "lists"), [(1, 1), (100, 6), (10_000, 210), (1_000_000, 5282)])
def test_the_default_number_of_lists_grows_slower_than_the_rows(rows, lists):
    assert default_num_lists(rows) == lists
