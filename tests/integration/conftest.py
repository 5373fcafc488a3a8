"""A small dataset of real images, and a loop on a port of its own."""

import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.integration.loop import Loop
from tests.miner.rounds.s3_fixtures import folder, one_s3, s3

__all__ = ["folder", "one_s3", "s3"]

NUM_IDENTITIES, SAMPLES = 48, 6


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities are coarse random patterns, samples are noisy copies; a quarter is for testing."""
    rng = np.random.default_rng(7)
    columns: dict[str, list[Any]] = {"sample_id": [], "identity": [], "image": [], "split": []}
    for identity in range(NUM_IDENTITIES):
        pattern = rng.integers(0, 200, (8, 8)).repeat(4, 0).repeat(4, 1)
        for sample in range(SAMPLES):
            noisy = np.clip(pattern + rng.normal(0, 25, pattern.shape), 0, 255).astype(np.uint8)
            columns["sample_id"].append(f"{identity:02d}/{sample}")
            columns["identity"].append(f"pattern-{identity:02d}")
            columns["image"].append(_png(noisy))
            columns["split"].append("test" if identity % 4 == 0 else "train")
    path = tmp_path_factory.mktemp("dataset") / "patterns.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def loop(tmp_path: Path, dataset: Path) -> Loop:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Loop(tmp_path, dataset, port)
