from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from miner.embedding.config import EncoderConfig


@pytest.fixture
def tiny_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EncoderConfig:
    """The tiny encoder, importable, accepting weights from `tmp_path/weights`."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "entry_points")
    monkeypatch.delenv("TINY_TRIGGERS", raising=False)
    (tmp_path / "weights").mkdir()
    return EncoderConfig(
        encoder="tiny_encoder:build",
        preprocess="tiny_encoder:preprocess",
        batch_rows=8,
        device="cpu",
        canary_rows=20,
        weights_prefixes=(str(tmp_path / "weights"),),
    )


@pytest.fixture
def tiny_batch() -> pa.RecordBatch:
    """Thirty rows of noise; their row ids begin at 100."""
    vectors = np.random.default_rng(3).normal(size=(30, 7)).astype(np.float32)
    return pa.record_batch(
        {"row_id": np.arange(100, 130), "vector": [row.tobytes() for row in vectors]}
    )
