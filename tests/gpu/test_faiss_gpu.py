"""FAISS on a GPU; needs FAISS built for it, and no torch but for the cross-check."""

import numpy as np
import pytest

from tests.gpu.masked_search import CASES, Case, assert_nearest

faiss = pytest.importorskip("faiss")
pytest.importorskip("pydantic", reason="miner.index reads its settings with it")
pytest.importorskip("threadpoolctl", reason="the exact search on the CPU takes it")

from miner.errors import SearchError  # noqa: E402
from miner.index.gpu import GpuSettings  # noqa: E402
from miner.index.gpu_candidates import gpu_candidates  # noqa: E402
from miner.index.gpu_index import GpuIndex  # noqa: E402
from miner.index.sweep import sweep  # noqa: E402
from miner.index.threads import workers  # noqa: E402
from miner.types import Candidates  # noqa: E402

pytestmark = pytest.mark.gpu

INEXACT = {
    "ivf": {"kind": "ivf", "num_probes": 8},
    "ivfpq": {"kind": "ivfpq", "num_probes": 8},
    "ivfpq-64": {"kind": "ivfpq", "num_probes": 8, "code_bytes": 64},
}


def searched(case: Case, **how) -> tuple[Candidates, list[int]]:
    """Candidates, and the anchors that were finished on the CPU."""
    index = GpuIndex(GpuSettings(temp_memory_mb=256, **how))
    index.build(case.rows_ND)
    finished: list[int] = []

    def exact(anchor_ids_A, num_candidates):
        finished.extend(anchor_ids_A.tolist())
        with workers(4) as each:
            return sweep(case.rows_ND, case.identities, anchor_ids_A, num_candidates, each)

    return gpu_candidates(index, case.identities, case.anchors_A, case.k, exact), finished


@pytest.mark.parametrize("is_float16", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_flat_candidates_are_the_nearest_of_other_identities(faiss_gpu, name, is_float16):
    found, finished = searched(CASES[name], devices=(faiss_gpu,), is_float16=is_float16)
    assert_nearest(found, CASES[name])
    if name == "plain":
        assert not finished


@pytest.mark.parametrize("is_float16", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_shards_are_merged_exactly(faiss_gpu, name, is_float16):
    others = tuple(range(1, faiss.get_num_gpus())) or (faiss_gpu, faiss_gpu)
    found, _ = searched(CASES[name], devices=(faiss_gpu, *others), is_float16=is_float16)
    assert_nearest(found, CASES[name])


@pytest.mark.parametrize("devices", [(0,), (0, 0)])
def test_all_lists_probed_are_exact(faiss_gpu, devices):
    case = CASES["plain"]
    found, _ = searched(case, kind="ivf", num_lists=50, num_probes=50, devices=devices)
    assert_nearest(found, case)


@pytest.mark.parametrize("how", INEXACT.values(), ids=INEXACT)
@pytest.mark.parametrize("name", ["plain", "one-identity-with-nearly-all", "duplicates"])
def test_no_row_of_the_same_identity_and_no_anchor_short(faiss_gpu, name, how):
    case = CASES[name]
    if case.rows_ND.shape[1] % how.get("code_bytes", 1):
        pytest.skip("codes do not fit these dimensions")
    found, _ = searched(case, devices=(faiss_gpu,), **how)
    sizes_I = case.identities.sizes_I
    own_A = case.ids_N[case.anchors_A]
    there_A = np.minimum(len(case.ids_N) - sizes_I[own_A], case.k)
    assert ((found.row_ids_AK >= 0).sum(axis=1) == there_A).all()
    is_row_AK = found.row_ids_AK >= 0
    assert (case.ids_N[found.row_ids_AK] != own_A[:, None])[is_row_AK].all()
    rows_AKD = case.rows_ND[found.row_ids_AK]
    expected = np.einsum("ad,akd->ak", case.rows_ND[case.anchors_A], rows_AKD)
    np.testing.assert_allclose(
        found.similarities_AK[is_row_AK], expected[is_row_AK], rtol=0, atol=2e-6
    )


def test_the_limit_of_the_gpu_is_the_one_we_know(faiss_gpu):
    rows = CASES["deep"].rows_ND
    index = GpuIndex(GpuSettings(devices=(faiss_gpu,), temp_memory_mb=64))
    index.build(rows)
    assert index.search(rows[:5], 2048)[1].min() >= 0
    with pytest.raises(SearchError, match="at most 2048"):
        index.search(rows[:5], 2049)
    with pytest.raises(RuntimeError, match="2048"):
        index._shards[0].index.search(rows[:5], 2049)


@pytest.mark.parametrize("name", CASES)
def test_faiss_and_torch_tiles_give_the_same(faiss_gpu, torch_gpu, name):
    from miner.workers.torch_sweep import torch_sweep

    case = CASES[name]
    by_faiss, _ = searched(case, devices=(faiss_gpu,), is_float16=True)
    by_torch = torch_sweep(
        case.rows_ND, case.identities, case.anchors_A, case.k, [torch_gpu], precision="float16"
    )
    np.testing.assert_allclose(
        by_faiss.similarities_AK, by_torch.similarities_AK, rtol=0, atol=2e-6
    )
