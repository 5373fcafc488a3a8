"""What each test here needs, and why it is skipped without it.

Needs neither Ray nor, for the torch tiles, FAISS. Where pytest has none of the plugins that
``pyproject.toml`` names: ``PYTHONPATH=. pytest -c /dev/null --rootdir=. --import-mode=importlib
tests/gpu``.
"""

import importlib
import importlib.util

import pytest


def why_no_torch_gpu() -> str | None:
    for name in ("torch", "pydantic"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return None


def why_no_faiss_gpu() -> str | None:
    for name in ("faiss", "pydantic", "threadpoolctl"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    faiss = importlib.import_module("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        return f"faiss {faiss.__version__} was built without GPUs"
    return None if faiss.get_num_gpus() else f"faiss {faiss.__version__} sees no GPU"


@pytest.fixture(scope="session")
def torch_gpu() -> str:
    """Name of the first GPU that torch sees."""
    reason = why_no_torch_gpu()
    if reason:
        pytest.skip(reason)
    return "cuda:0"


@pytest.fixture(scope="session")
def faiss_gpu() -> int:
    """Number of the first GPU that FAISS sees."""
    reason = why_no_faiss_gpu()
    if reason:
        pytest.skip(reason)
    return 0
