"""Torch tiles on a GPU: neither Ray nor FAISS is needed."""

import numpy as np
import pytest

from tests.gpu.masked_search import CASES, Case, assert_nearest

torch = pytest.importorskip("torch")
pytest.importorskip("pydantic", reason="miner.workers reads its settings with it")

from miner.workers.torch_sweep import torch_sweep  # noqa: E402

pytestmark = pytest.mark.gpu

PRECISIONS = ("float32", "float16", "bfloat16")


def swept(case: Case, devices, embeddings=None, **how):
    given = case.rows_ND if embeddings is None else embeddings
    return torch_sweep(given, case.identities, case.anchors_A, case.k, devices, **how)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_candidates_are_the_nearest_of_other_identities(torch_gpu, name, precision):
    assert_nearest(swept(CASES[name], [torch_gpu], precision=precision), CASES[name])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_shards_are_merged_exactly(torch_gpu, name, precision):
    others = [f"cuda:{number}" for number in range(1, torch.cuda.device_count())]
    devices = [torch_gpu, *(others or [torch_gpu, torch_gpu])]
    assert_nearest(swept(CASES[name], devices, precision=precision), CASES[name])


def test_k_is_not_bounded_by_2048(torch_gpu):
    case = CASES["deep"]
    case = Case(case.rows_ND, case.ids_N, case.anchors_A, 5000)
    for precision in PRECISIONS:
        assert_nearest(swept(case, [torch_gpu], precision=precision), case)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_rescored_candidates_equal_those_of_float32(torch_gpu, name, precision):
    exact = swept(CASES[name], [torch_gpu])
    found = swept(CASES[name], [torch_gpu], precision=precision)
    np.testing.assert_allclose(found.similarities_AK, exact.similarities_AK, rtol=0, atol=2e-6)


def test_tf32_is_off_whatever_is_set(torch_gpu):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = swept(CASES["plain"], [torch_gpu])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert_nearest(found, CASES["plain"])


def rows_on(device: str, num_rows: int, dim: int = 128):
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn((num_rows, dim), device=device, generator=generator)
    return torch.nn.functional.normalize(rows)


def peak_mb(work) -> float:
    """Device memory that ``work`` takes beside what was taken."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("memory_mb", "what"), [(250, "sent"), (1500, "held"), (250, "lent")])
def test_memory_is_bounded_with_a_gallery_sent_held_or_lent(torch_gpu, memory_mb, what, precision):
    rows = rows_on(torch_gpu, 600_000)  # 293 MB
    ids_N = (np.arange(600_000) // 7).astype(np.int64)
    anchors = np.random.default_rng(0).permutation(600_000)[:3000]
    host = Case(rows.cpu().numpy(), ids_N, anchors, 50)
    lent = rows if what == "lent" else None
    if lent is None:
        del rows
    found = []
    used_mb = peak_mb(
        lambda: found.append(
            swept(host, [torch_gpu], lent, precision=precision, memory_mb=memory_mb)
        )
    )
    assert used_mb <= memory_mb
    some = np.random.default_rng(1).permutation(3000)[:100]
    picked = type(found[0])(*(getattr(found[0], name)[some] for name in found[0].__slots__))
    assert_nearest(picked, Case(host.rows_ND, ids_N, anchors[some], 50))


def test_large_identities_and_many_blocks(torch_gpu):
    rows = rows_on(torch_gpu, 200_000, 64)
    ids_N = np.where(np.arange(200_000) < 100_000, 0, np.arange(200_000) // 40)
    ids_N = np.unique(ids_N, return_inverse=True)[1]
    anchors = np.random.default_rng(0).permutation(200_000)[:40_000]
    case = Case(rows.cpu().numpy(), ids_N, anchors, 50)
    found = swept(case, [torch_gpu], rows)
    assert (ids_N[found.row_ids_AK] != ids_N[anchors][:, None]).all()
    some = np.random.default_rng(1).permutation(len(anchors))[:200]
    picked = type(found)(*(getattr(found, name)[some] for name in found.__slots__))
    assert_nearest(picked, Case(case.rows_ND, ids_N, anchors[some], 50))
