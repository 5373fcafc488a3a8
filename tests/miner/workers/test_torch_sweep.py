"""The search by torch tiles, on the CPU as torch's device, against nested loops."""

import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import SearchError
from miner.types import Candidates, IdentityTable
from miner.workers import torch_shard
from miner.workers.torch_memory import Plan, Shape, group_size
from miner.workers.torch_shard import Shard, best_of_tile, largest_error
from miner.workers.torch_sweep import torch_sweep
from tests.miner.index.neighbour_oracle import assert_exact, unit_rows

PRECISIONS = ("float32", "float16", "bfloat16")


def swept(embeddings, identity_ids, anchors, k, num_devices=1, **how) -> Candidates:
    identities = IdentityTable.from_ids(np.asarray(identity_ids, np.int32))
    anchors = np.asarray(anchors, np.int64)
    return torch_sweep(embeddings, identities, anchors, k, ["cpu"] * num_devices, **how)


@contextmanager
def plans(plan: Plan):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "of", classmethod(lambda cls, shape, memory_bytes: plan))
        yield


@st.composite
def small_sets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(2, 90))
    embeddings = unit_rows(rng, rows, draw(st.integers(1, 13)))
    if draw(st.booleans()):
        embeddings = embeddings[rng.integers(max(1, rows // 4), size=rows)]
    identity_ids = np.unique(rng.integers(draw(st.integers(1, 12)), size=rows), return_inverse=True)
    return embeddings, identity_ids[1], rng.integers(rows, size=min(rows, 20))


small_plans = st.builds(Plan, st.booleans(), st.sampled_from((4, 16, 200)), st.integers(1, 40))


@settings(deadline=None)
@given(
    small_sets(),
    small_plans,
    st.integers(1, 120),
    st.integers(1, 3),
    st.sampled_from(PRECISIONS),
    st.booleans(),
)
def test_candidates_equal_those_of_nested_loops(made, plan, k, devices, precision, as_tensor):
    embeddings, identity_ids, anchors = made
    given = torch.from_numpy(embeddings) if as_tensor else embeddings
    with plans(plan):
        found = swept(given, identity_ids, anchors, k, devices, precision=precision)
    assert_exact(found, embeddings, identity_ids, k)


@pytest.mark.parametrize("pair_bytes", [1, 10**9], ids=["listed", "compared"])
@pytest.mark.parametrize("large", [0, 390])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_identities_of_any_size_are_masked(monkeypatch, pair_bytes, large, precision):
    monkeypatch.setattr(torch_shard, "PAIR_BYTES", pair_bytes)
    rng = np.random.default_rng(3)
    embeddings, identity_ids = unit_rows(rng, 400, 9), rng.integers(1, 40, size=400)
    identity_ids[:large] = 0
    identity_ids = np.unique(identity_ids, return_inverse=True)[1]
    anchors = np.arange(0, 400, 3)
    with plans(Plan(False, 256, 50)):
        found = swept(embeddings, identity_ids, anchors, 15, 2, precision=precision)
    assert_exact(found, embeddings, identity_ids, 15)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_rows_that_low_precision_cannot_tell_apart_are_searched_again(precision, caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(5)
    near = unit_rows(rng, 1, 24) + 2e-3 * rng.normal(size=(3000, 24))
    embeddings = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    anchors = np.arange(0, 3000, 300)
    found = swept(embeddings, np.arange(3000), anchors, 7, precision=precision)
    exact = swept(embeddings, np.arange(3000), anchors, 7)
    assert f"10 of 10 anchors: {precision} leaves a doubt" in caplog.text
    np.testing.assert_allclose(found.similarities_AK, exact.similarities_AK, atol=1e-6)
    low = torch.from_numpy(embeddings).to(torch_shard.DTYPES[precision])
    collected = (low[anchors] @ low.T).float().topk(8).indices[:, 1:].numpy()
    nearest = np.einsum("ad,akd->ak", embeddings[anchors], embeddings[collected])
    assert nearest.min(axis=1).mean() < exact.similarities_AK[:, -1].mean() - 1e-6, "no easy case"


def test_low_precision_is_enough_where_rows_differ(caplog):
    caplog.set_level("INFO")
    embeddings = unit_rows(np.random.default_rng(6), 2000, 32)
    seen: list[tuple[int, int]] = []
    identities = IdentityTable.from_ids(np.arange(2000, dtype=np.int32) // 5)
    torch_sweep(
        embeddings,
        identities,
        np.arange(100),
        9,
        ["cpu"],
        precision="float16",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert "0 of 100 anchors: float16 leaves a doubt" in caplog.text
    assert seen == [(100, 100)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from(["float16", "bfloat16"]))
def test_low_products_stay_within_the_error_that_is_allowed(seed, dim, precision):
    rows = torch.from_numpy(unit_rows(np.random.default_rng(seed), 40, dim))
    low = rows.to(torch_shard.DTYPES[precision])
    difference = (low @ low.T).double() - rows.double() @ rows.double().T
    assert difference.abs().max() < largest_error(dim, precision)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 24), st.booleans())
def test_the_best_of_a_tile_lie_in_its_best_groups(seed, columns, wanted, few_values):
    rng = np.random.default_rng(seed)
    scores = rng.integers(6, size=(5, columns)) if few_values else rng.normal(size=(5, columns))
    scores = torch.from_numpy(scores.astype(np.float32))
    scores[rng.random((5, columns)) < 0.3] = -torch.inf
    values, at = best_of_tile(scores, wanted)
    assert torch.equal(
        values.sort(descending=True).values, scores.topk(min(wanted, columns)).values
    )
    is_there = values > -torch.inf
    assert torch.equal(scores.gather(1, at)[is_there], values[is_there])
    assert all(len(set(row.tolist())) == len(row) for row in at)


def test_groups_were_used_in_these_tests():
    assert group_size(400, 24) >= 4
    assert group_size(200, 7) >= 4


@given(
    st.integers(1, 10**8),
    st.integers(1, 2048),
    st.integers(1, 5000),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.integers(1, 80_000),
)
def test_a_plan_stays_within_the_memory_or_says_what_it_takes(
    rows, dim, collected, score_bytes, is_lent, memory_mb
):
    shape = Shape(rows, dim, min(rows, collected), score_bytes, 12 * rows, is_lent)
    try:
        plan = Plan.of(shape, memory_mb * 2**20)
    except SearchError as exc:
        enough_mb = int(str(exc).rsplit(" ", 1)[1])
        assert enough_mb > memory_mb
        plan, memory_mb = Plan.of(shape, enough_mb * 2**20), enough_mb
    used = shape.fixed_bytes(plan.tile, plan.is_held)
    used += plan.block * shape.bytes_per_anchor(plan.tile)
    assert used <= memory_mb * 2**20
    assert plan.block >= 1
    assert plan.block * plan.tile <= 2**30


def test_a_tensor_on_the_device_is_searched_where_it_lies():
    rows = torch.from_numpy(unit_rows(np.random.default_rng(1), 50, 4))
    identities = IdentityTable.from_ids(np.arange(50, dtype=np.int32))
    shard = Shard.of(rows[10:30], 10, identities, torch.device("cpu"), 3, "float16", 2**20)
    assert shard.held_RD is not None
    assert shard.held_RD.data_ptr() == rows[10:].data_ptr()


def test_a_memory_map_is_searched(tmp_path):
    embeddings = unit_rows(np.random.default_rng(2), 300, 8)
    embeddings.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(300, 8))
    with plans(Plan(False, 64, 100)):
        found = swept(mapped, np.arange(300) // 3, np.arange(300), 5)
    assert_exact(found, embeddings, np.arange(300) // 3, 5)


def test_no_anchors_give_no_candidates():
    found = swept(unit_rows(np.random.default_rng(0), 9, 3), np.arange(9), [], 4)
    assert found.row_ids_AK.shape == (0, 4)


@pytest.mark.parametrize("how", ["older", "newer", "untouched"])
def test_products_are_of_full_precision_and_settings_are_restored(how):
    matmul = torch.backends.cuda.matmul
    of_cpu = torch.backends.mkldnn.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")

    def state():
        return matmul.fp32_precision, of_cpu.fp32_precision, [getattr(matmul, x) for x in names]

    untouched, seen = state(), []
    try:
        if how == "older":
            torch.set_float32_matmul_precision("medium")
        if how == "newer":
            matmul.fp32_precision = "tf32"
            of_cpu.fp32_precision = "bf16"
        before = state()
        identities = IdentityTable.from_ids(np.arange(9, dtype=np.int32))
        torch_sweep(
            unit_rows(np.random.default_rng(0), 9, 3),
            identities,
            np.arange(9),
            2,
            ["cpu"],
            on_progress=lambda *_: seen.append(state()),
        )
        assert state() == before
        assert not {"tf32", "bf16"} & set(seen[0][:2])
        assert seen[0][2] == [False, False]
    finally:
        if how != "untouched":
            torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision, of_cpu.fp32_precision = untouched[:2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"embeddings": np.zeros((9, 3))}, "float32 array .* got float64"),
        ({"embeddings": torch.zeros((9, 3), dtype=torch.float16)}, "got float16"),
        ({"embeddings": np.zeros((8, 3), np.float32)}, "8 embeddings with a catalog of 9 rows"),
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"anchor_ids_A": np.array([0, 9, -1])}, r"2 anchors are no rows.*\[9, -1\]"),
        ({"devices": ["cuda:7"]}, "cannot search on .*cuda:7.*sees cpu"),
        ({"devices": []}, "no device"),
        ({"memory_mb": 0}, "set memory_mb to 1"),
    ],
)
def test_what_cannot_be_searched_is_named(change, text):
    call = {
        "embeddings": unit_rows(np.random.default_rng(0), 9, 3),
        "identities": IdentityTable.from_ids(np.arange(9, dtype=np.int32)),
        "anchor_ids_A": np.arange(9),
        "num_candidates": 2,
        "devices": ["cpu"],
    } | change
    with pytest.raises(SearchError, match=text):
        torch_sweep(**call)


def test_it_loads_neither_ray_nor_faiss():
    code = "import sys, miner.workers.torch_sweep; print({'ray', 'faiss', 'grpc'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
