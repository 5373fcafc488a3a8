from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from miner.data import DatasetConfig, ingest
from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from miner.workers.config import WorkersConfig

ENTRY_POINTS = Path(__file__).parents[1] / "embedding" / "entry_points"
NUM_ROWS = 100


class Workshop:
    """A row store of 100 rows (10 identities; row 7 is sample s007), and the tiny encoder.

    Chunks have 16 rows and batches 8. A file in `triggers` makes the row of its name misbehave.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.triggers = root / "triggers"
        self.triggers.mkdir()
        (root / "weights").mkdir()
        self.encoder = EncoderConfig(
            encoder="tiny_encoder:build",
            preprocess="tiny_encoder:preprocess",
            batch_rows=8,
            device="cpu",
            weights_prefixes=(str(root / "weights"),),
        )
        self.workers = WorkersConfig(chunk_rows=16, max_chunk_attempts=2)
        vectors = np.random.default_rng(3).normal(size=(NUM_ROWS, 7)).astype(np.float32)
        table = pa.table(
            {
                "sample_id": [f"s{row:03d}" for row in range(NUM_ROWS)],
                "identity": [row % 10 for row in range(NUM_ROWS)],
                "vector": [vector.tobytes() for vector in vectors],
            }
        )
        pq.write_table(table, root / "data.parquet")
        dataset = DatasetConfig(uri=str(root / "data.parquet"), payload_columns=("vector",))
        ingest(dataset, self.store)

    def weights(self, seed: int) -> tuple[str, str]:
        """Path and sha256 of fresh weights; another seed gives another snapshot."""
        path = self.root / "weights" / f"{seed}.safetensors"
        return str(path), initial_weights(self.encoder, path, seed)

    def trigger(self, row_id: int, action: str) -> None:
        (self.triggers / str(row_id)).write_text(action)

    def calm(self) -> None:
        for path in self.triggers.iterdir():
            path.unlink()

    def release(self, row_id: int) -> None:
        (self.triggers / str(row_id)).unlink()

    def batches_begun(self) -> list[int]:
        """First row id of every batch that any process began to preprocess, ascending."""
        calls = self.triggers / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return sorted(int(line.split()[0]) for line in lines)


@pytest.fixture(scope="module")
def module_workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ENTRY_POINTS)
        workshop = Workshop(tmp_path_factory.mktemp("workshop"))
        patch.setenv("TINY_TRIGGERS", str(workshop.triggers))
        yield workshop


@pytest.fixture
def workshop(module_workshop: Workshop) -> Iterator[Workshop]:
    yield module_workshop
    module_workshop.calm()


@pytest.fixture(scope="module")
def ray_local(module_workshop: Workshop) -> Iterator[None]:
    """A real Ray on this machine whose workers can import the tiny encoder."""
    variables = {"PYTHONPATH": str(ENTRY_POINTS), "TINY_TRIGGERS": str(module_workshop.triggers)}
    with pytest.MonkeyPatch.context() as patch:
        # Ray's own default of 15 would hide the niceness that the workers set.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 * 2**20,
            runtime_env={"env_vars": variables},
        )
    yield
    ray.shutdown()
