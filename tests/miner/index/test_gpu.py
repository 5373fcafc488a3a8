"""FAISS on GPUs with CPU indexes in their place, which know the same limits."""

from contextlib import contextmanager
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import SearchError
from miner.index import gpu, gpu_candidates, gpu_index
from miner.index.gpu import GpuSettings, GpuSupport, available, new_gpu_index
from miner.index.gpu_candidates import gpu_candidates as search_candidates
from miner.index.gpu_index import GpuIndex
from miner.index.gpu_lists import GpuLists
from miner.index.recall import measure_recall
from miner.index.sweep import sweep
from miner.index.threads import workers
from miner.types import Candidates, IdentityTable
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows

METRIC = faiss.METRIC_INNER_PRODUCT


class StandIn:
    """A CPU index that selects no more rows and probes than a GPU does."""

    def __init__(self, index) -> None:
        self._index = index
        self.depths: list[int] = []

    def search(self, queries, k):
        self.depths.append(k)
        if k > gpu_index.MAX_DEPTH or getattr(self._index, "nprobe", 1) > gpu.MAX_DEPTH:
            raise RuntimeError(f"GPU index only supports k and probes up to {gpu.MAX_DEPTH}")
        return self._index.search(queries, k)

    def __getattr__(self, name):
        return getattr(self._index, name)

    def __setattr__(self, name, value):
        if name == "nprobe":
            self._index.nprobe = value
        else:
            super().__setattr__(name, value)


def stand_in(how: GpuSettings, dim: int, num_lists: int, device: int) -> StandIn:
    if how.kind == "flat" and how.is_float16:
        kind = faiss.ScalarQuantizer.QT_fp16
        return StandIn(faiss.IndexScalarQuantizer(dim, kind, METRIC))
    if how.kind == "flat":
        return StandIn(faiss.IndexFlatIP(dim))
    if how.kind == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, METRIC)
    else:
        size = how.code_bytes_of(dim)
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, num_lists, size, 8, METRIC)
    index.cp.min_points_per_centroid = 1
    return StandIn(index)


def built(embeddings, **how) -> GpuIndex:
    index = GpuIndex(GpuSettings(**how), stand_in)
    index.build(embeddings)
    return index


def exactly(embeddings, identities, asked: list):
    def exact(anchor_ids_A, num_candidates) -> Candidates:
        asked.extend(anchor_ids_A.tolist())
        with workers(1) as each:
            return sweep(embeddings, identities, anchor_ids_A, num_candidates, each)

    return exact


def found_by(index, identity_ids, anchors, k, asked=None, **how) -> Candidates:
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    exact = exactly(index.embeddings_ND, identities, [] if asked is None else asked)
    return search_candidates(index, identities, np.asarray(anchors, np.int64), k, exact, **how)


@contextmanager
def limit(depth: int):
    with pytest.MonkeyPatch.context() as patch:
        for module in (gpu_index, gpu_candidates):
            patch.setattr(module, "MAX_DEPTH", depth)
        yield


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 90),
    st.integers(1, 13),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 60),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_flat_candidates_equal_those_of_nested_loops_whatever_the_depth_of_the_gpu(
    seed, rows, dim, identities, k, beyond, devices, is_float16, duplicates
):
    rng = np.random.default_rng(seed)
    embeddings = unit_rows(rng, rows, dim)
    if duplicates:
        embeddings = embeddings[rng.integers(max(1, rows // 4), size=rows)]
    identity_ids = np.unique(rng.integers(identities, size=rows), return_inverse=True)[1]
    anchors = rng.integers(rows, size=min(rows, 20))
    index = built(embeddings, is_float16=is_float16, devices=tuple(range(devices)))
    with limit(k + beyond):
        assert_exact(found_by(index, identity_ids, anchors, k), embeddings, identity_ids, k)


def test_anchors_whose_identity_fills_the_depth_are_finished_exactly():
    rng = np.random.default_rng(1)
    embeddings, identity_ids = unit_rows(rng, 3000, 16), np.zeros(3000, np.int32)
    embeddings[:2500] = embeddings[0] + 0.01 * rng.normal(size=(2500, 16))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    identity_ids[2500:] = 1 + np.arange(500) // 2
    index, asked, seen = built(embeddings), [], []
    anchors = np.array([0, 7, 2499, 2500, 2999])
    found = found_by(
        index, identity_ids, anchors, 30, asked, on_progress=lambda *now: seen.append(now)
    )
    assert asked == [0, 7, 2499], "2048 nearest rows are all their own"
    assert index._shards[0].index.depths == [60, 240, 960, 2048]
    assert seen == [(2, 5), (2, 5), (2, 5), (2, 5), (5, 5)]
    assert_exact(found, embeddings, identity_ids, 30)


def test_a_large_identity_that_is_spread_needs_no_other_search():
    rng = np.random.default_rng(1)
    embeddings, identity_ids = unit_rows(rng, 6000, 16), np.zeros(6000, np.int32)
    identity_ids[rng.permutation(6000)[:2500]] = 1 + np.arange(2500) // 2
    asked: list[int] = []
    found = found_by(built(embeddings), identity_ids, np.arange(0, 6000, 600), 20, asked)
    assert asked == []
    assert_exact(found, embeddings, identity_ids, 20)


def test_rows_in_float16_that_it_cannot_tell_apart_are_searched_deeper():
    rng = np.random.default_rng(5)
    near = unit_rows(rng, 1, 24) + 2e-3 * rng.normal(size=(3000, 24))
    embeddings = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    identity_ids, anchors, asked = np.arange(3000), np.arange(0, 3000, 300), []
    found = found_by(built(embeddings, is_float16=True), identity_ids, anchors, 7, asked)
    assert len(asked) == 10, "2048 rows do not prove that none is nearer"
    assert_exact(found, embeddings, identity_ids, 7)


@pytest.mark.parametrize("how", [{"is_float16": True}, {"kind": "ivfpq", "num_probes": 99}])
def test_similarities_are_products_in_float32(how):
    embeddings = unit_rows(np.random.default_rng(2), 700, 12)
    index = built(embeddings, devices=(0, 1), **how)
    similarities, rows = index.search(embeddings[:50], 20)
    expected = np.einsum("qd,qkd->qk", embeddings[:50], embeddings[rows])
    np.testing.assert_allclose(similarities, expected, atol=2e-7)
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_all_lists_probed_are_exact_over_shards():
    rng = np.random.default_rng(3)
    embeddings, identity_ids = unit_rows(rng, 400, 8), np.arange(400) // 4
    index = built(embeddings, kind="ivf", num_lists=5, num_probes=5, devices=(0, 1, 2))
    assert_exact(found_by(index, identity_ids, range(50), 12), embeddings, identity_ids, 12)
    assert index.describe() == {
        "kind": "ivf",
        "num_rows": 400,
        "dim": 8,
        "num_gpus": 3,
        "num_lists": 5,
        "num_probes": 5,
    }


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_few_probes_give_rows_of_other_identities_and_no_anchor_gets_too_few(kind):
    rng = np.random.default_rng(4)
    embeddings, identity_ids = unit_rows(rng, 600, 8), np.arange(600) // 3
    index = built(embeddings, kind=kind, num_lists=40, num_probes=1)
    found = found_by(index, identity_ids, np.arange(600), 40)
    assert (found.row_ids_AK >= 0).all()
    assert (identity_ids[found.row_ids_AK] != identity_ids[:, None]).all()
    expected = np.einsum("ad,akd->ak", embeddings, embeddings[found.row_ids_AK])
    np.testing.assert_allclose(found.similarities_AK, expected, atol=1e-6)


def test_more_probes_find_more():
    embeddings = unit_rows(np.random.default_rng(4), 900, 8)
    index = built(embeddings, kind="ivf", num_lists=30, num_probes=1, devices=(0, 1))
    nearest = index.search(embeddings, 10)[0].sum()
    index.set_num_probes(10**6)
    assert index.num_probes == 30
    assert index.search(embeddings, 10)[0].sum() > nearest
    assert all(shard.index.nprobe == 30 for shard in index._shards)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_lists_are_probed_until_a_sample_finds_enough_and_deeper_if_asked(kind):
    embeddings = unit_rows(np.random.default_rng(7), 1500, 8)
    identities = IdentityTable.from_ids(np.arange(1500, dtype=np.int32) // 3)
    exact = exactly(embeddings, identities, [])
    index = GpuIndex(GpuSettings(kind=kind, num_lists=50), stand_in)
    lists = GpuLists(embeddings, identities, index, exact=exact, num_probes=None, target_recall=0.9)
    assert not lists.is_prepared
    with workers(1) as each:
        lists.prepare(exact(np.arange(0, 1500, 15), 10), 30, each)
        found = lists.search(np.arange(1500), 30, each)
        assert measure_recall(found, exact(np.arange(1500), 10), 10).value > 0.85
        assert 1 < lists.describe()["num_probes"] < 50
        for _ in range(6):
            lists.deepen(found, each)
    assert lists.describe()["num_probes"] == 50
    assert lists.is_prepared


def test_lists_are_probed_as_asked():
    embeddings = unit_rows(np.random.default_rng(7), 300, 8)
    identities = IdentityTable.from_ids(np.arange(300, dtype=np.int32) // 3)
    exact = exactly(embeddings, identities, [])
    index = GpuIndex(GpuSettings(kind="ivf", num_lists=20), stand_in)
    lists = GpuLists(embeddings, identities, index, exact=exact, num_probes=3, target_recall=1.0)
    with workers(1) as each:
        lists.prepare(exact(np.arange(9), 10), 30, each)
    assert lists.describe()["num_probes"] == 3


def test_shards_find_each_row_and_then_what_a_sweep_finds():
    embeddings, rows = unit_rows(np.random.default_rng(6), 80, 5), np.arange(80)
    similarities, row_ids = built(embeddings, devices=(0, 1)).search(embeddings, 90)
    with workers(1) as each:
        others = sweep(embeddings, IdentityTable.from_ids(rows.astype(np.int32)), rows, 89, each)
    assert (row_ids[:, 0] == rows).all()
    assert (row_ids[:, 1:] == others.row_ids_AK).all()
    np.testing.assert_allclose(similarities[:, 1:], others.similarities_AK, atol=1e-6)


def test_a_search_deeper_than_the_gallery_is_padded():
    similarities, rows = built(unit_rows(np.random.default_rng(0), 3, 2)).search(
        np.array([[1, 0]], np.float32), 5
    )
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 1, 2]
    assert similarities[0, 3:].tolist() == [-np.inf, -np.inf]


def test_depth_has_a_limit_that_is_told():
    embeddings = unit_rows(np.random.default_rng(0), 2100, 2)
    index = built(embeddings)
    assert index.search(embeddings[:1], 2048)[1].min() >= 0
    with pytest.raises(SearchError, match="at most 2048 neighbours of a query, asked for 2049"):
        index.search(embeddings[:1], 2049)
    with pytest.raises(SearchError, match="1 to 2048 candidates of an anchor, asked for 2049"):
        found_by(index, np.arange(2100), [0], 2049)
    found = found_by(index, np.arange(2100), [0], 2048)
    assert_exact(found, embeddings, np.arange(2100), 2048)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"kind": "ivf", "is_float16": True}, "float16 are of kind flat"),
        ({"kind": "ivf", "num_probes": 2049}, "1 to 2048 probes"),
        ({"kind": "ivf", "temp_memory_mb": -1}, "0 MB or more"),
        ({"kind": "ivfpq", "code_bytes": 5}, r"code_bytes=5 does not fit 12 .*\[1, 2, 3, 4, 12\]"),
        ({"kind": "ivfpq"}, "takes 256 rows to learn from, got 200"),
    ],
)
def test_settings_that_no_gpu_takes_are_refused(how, text):
    with pytest.raises(SearchError, match=text):
        built(unit_rows(np.random.default_rng(0), 200, 12), **how)


@pytest.mark.parametrize(
    ("how", "needed_mb"),
    [
        ({}, 10),
        ({"is_float16": True}, 5),
        ({"devices": (0, 1)}, 5),
        ({"kind": "ivf"}, 15),
        ({"kind": "ivfpq", "temp_memory_mb": 1}, 2),
    ],
)
def test_rows_take_no_more_memory_than_they_may(how, needed_mb):
    embeddings = unit_rows(np.random.default_rng(0), 20_000, 128)
    with pytest.raises(SearchError, match=f"about {needed_mb} MB of a GPU, memory_mb is 1"):
        built(embeddings, **{"temp_memory_mb": 0, "memory_mb": 1} | how)
    settings = GpuSettings(**{"temp_memory_mb": 0, "memory_mb": needed_mb + 1} | how)
    settings.check_memory(20_000 // len(how.get("devices", (0,))), 128, 500)


def test_queries_and_rows_that_do_not_fit_are_refused():
    index = GpuIndex(GpuSettings(), stand_in)
    with pytest.raises(SearchError, match="gallery of 0 rows"):
        index.search(np.zeros((1, 2), np.float32), 1)
    with pytest.raises(SearchError, match="not of length 1"):
        index.build(np.full((3, 2), np.nan, np.float32))
    index.build(unit_rows(np.random.default_rng(0), 3, 2))
    with pytest.raises(SearchError, match="k=0"):
        index.search(np.zeros((1, 2), np.float32), 0)
    with pytest.raises(SearchError, match=r"queries \[1, 3\]"):
        index.search(np.zeros((1, 3), np.float32), 1)


@pytest.mark.parametrize(("dim", "size"), [(128, 32), (7, 1), (9, 1), (96, 24), (512, 64), (6, 1)])
def test_codes_are_of_a_size_that_kernels_know(dim, size):
    assert GpuSettings(kind="ivfpq").code_bytes_of(dim) == size


def test_a_faiss_without_gpus_names_what_to_install():
    with pytest.raises(SearchError, match="extra `gpu` in place of `cpu`"):
        GpuSupport(is_built=False, num_gpus=0).devices()
    with pytest.raises(SearchError, match="sees no GPU"):
        GpuSupport(is_built=True, num_gpus=0).devices()
    assert GpuSupport(is_built=True, num_gpus=2).devices() == (0, 1)
    if not available().num_gpus:
        with pytest.raises(SearchError, match="faiss"):
            GpuIndex(GpuSettings())


def test_gpus_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(gpu_index, "available", lambda: GpuSupport(is_built=True, num_gpus=2))
    assert GpuIndex(GpuSettings())._devices == (0, 1)
    with pytest.raises(SearchError, match=r"no GPUs \[5\]: faiss sees \[0, 1\]"):
        GpuIndex(GpuSettings(devices=(1, 5)))


@pytest.mark.parametrize(
    ("how", "made", "config"),
    [
        ({"is_float16": True}, ("GpuIndexFlatIP", 64), {"useFloat16": True}),
        ({"kind": "ivf"}, ("GpuIndexIVFFlat", 64, 10, METRIC), {}),
        (
            {"kind": "ivfpq", "code_bytes": 32},
            ("GpuIndexIVFPQ", 64, 10, 32, 8, METRIC),
            {"useFloat16LookupTables": False},
        ),
        (
            {"kind": "ivfpq", "code_bytes": 64},
            ("GpuIndexIVFPQ", 64, 10, 64, 8, METRIC),
            {"useFloat16LookupTables": True},
        ),
    ],
)
def test_an_index_is_made_on_its_device_with_bounded_scratch(monkeypatch, how, made, config):
    taken: list[int] = []

    def new(name):
        return lambda resources, *args: (name, *args[:-1], vars(args[-1]))

    names = ("GpuIndexFlatIP", "GpuIndexIVFFlat", "GpuIndexIVFPQ")
    fake = SimpleNamespace(**{name: new(name) for name in names})
    for name in ("Flat", "IVFFlat", "IVFPQ"):
        setattr(fake, f"GpuIndex{name}Config", SimpleNamespace)
    fake.StandardGpuResources = lambda: SimpleNamespace(setTempMemory=taken.append)
    fake.METRIC_INNER_PRODUCT = METRIC
    monkeypatch.setattr(gpu, "GPU", fake)
    index = new_gpu_index(GpuSettings(**how, temp_memory_mb=7), 64, 10, 3)
    assert index == (*made, {"device": 3, "use_cuvs": False} | config)
    assert taken == [7 * 2**20]
