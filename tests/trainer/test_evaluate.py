import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

from tests.trainer.fake_run import image_of
from trainer.config import EncoderConfig
from trainer.errors import CheckpointError, EvaluationError
from trainer.evaluate import EvaluationJob, embed_samples, evaluate
from trainer.metrics import measure
from trainer.model import build_module, save_weights, weights_of
from trainer.samples import SampleSet

ENCODER = EncoderConfig(args={"dim": 8, "width": 2})


def table(rows: range) -> pa.Table:
    return pa.table(
        {
            "sample_id": [f"s{row}" for row in rows],
            "identity": [f"i{row // 4}" for row in rows],
            "image": pa.array([image_of(row) for row in rows], pa.binary()),
            "split": ["test" if row % 3 else "train" for row in rows],
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, whose order is that of their names."""
    pq.write_table(table(range(20, 48)), tmp_path / "b.parquet", row_group_size=5)
    pq.write_table(table(range(20)), tmp_path / "a.parquet")
    return tmp_path


def job_of(path: Path, **changes: object) -> EvaluationJob:
    samples = SampleSet(path=path, split_column="split", split="test")
    return EvaluationJob(**({"samples": samples, "encoder": ENCODER} | changes))


def test_the_chosen_rows_come_in_order_with_their_identities(folder: Path) -> None:
    samples = SampleSet(path=folder, split_column="split", split="test")
    batches = list(samples.batches(7))
    chosen = [row for row in range(48) if row % 3]
    ids = [name for batch in batches for name in batch.column("sample_id").to_pylist()]
    assert ids == [f"s{row}" for row in chosen]
    row_ids = np.concatenate([batch.column("row_id").to_numpy() for batch in batches])
    assert row_ids.tolist() == list(range(len(chosen)))
    assert max(batch.num_rows for batch in batches) <= 7
    identities = samples.identities()
    for a, b in np.ndindex(len(chosen), len(chosen)):
        assert (identities[a] == identities[b]) == (chosen[a] // 4 == chosen[b] // 4)


def test_arrow_files_and_single_files_read_the_same(tmp_path: Path, folder: Path) -> None:
    feather.write_feather(table(range(20)), tmp_path / "one.arrow")
    first = SampleSet(path=tmp_path / "one.arrow").batches(100)
    second = SampleSet(path=folder / "a.parquet").batches(100)
    assert [b.to_pydict() for b in first] == [b.to_pydict() for b in second]


def test_the_figures_are_those_of_the_embeddings_and_are_written_down(folder: Path) -> None:
    module = build_module(ENCODER, seed=5)
    weights = save_weights(folder / "w.safetensors", weights_of(module)).path
    out = folder / "new" / "figures.json"
    progress: list[tuple[int, int]] = []
    result = evaluate(
        job_of(folder, weights=weights), out=out, on_progress=lambda *x: progress.append(x)
    )
    assert json.loads(out.read_text()) == result
    assert progress[-1] == (32, 32)
    job = job_of(folder)
    embeddings = embed_samples(job, module, 32)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert result["roc_auc"] == measure(embeddings, job.samples.identities()).roc_auc
    assert (result["num_rows"], result["split"], result["weights"]) == (32, "test", str(weights))


def test_untrained_weights_are_those_of_the_seed(folder: Path) -> None:
    first, again, other = (evaluate(job_of(folder, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["roc_auc"] != other["roc_auc"]


def test_weights_of_another_encoder_are_refused_with_names_and_shapes(folder: Path) -> None:
    wide = build_module(EncoderConfig(args={"dim": 8, "width": 3}), seed=0)
    path = save_weights(folder / "wide.safetensors", weights_of(wide)).path
    with pytest.raises(CheckpointError, match=r"0\.0\.weight has shape \(3, 1, 3, 3\)"):
        evaluate(job_of(folder, weights=path))
    save_weights(path, {"7.weight": torch.zeros(8, 256), "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"0\.0\.weight is missing"):
        evaluate(job_of(folder, weights=path))
    path.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        evaluate(job_of(folder, weights=path))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"split_column": "part", "split": "x"}, "no column 'part'"),
        ({"identity_column": "person"}, "no column 'person'"),
        ({"payload_columns": ("pixels",)}, "no column 'pixels'"),
        ({"split_column": "split", "split": "val"}, "no rows with split == 'val'"),
        ({"path": Path("nowhere")}, "no such dataset"),
    ],
)
def test_a_wrong_dataset_is_named(folder: Path, changes: dict[str, object], text: str) -> None:
    samples = SampleSet(**({"path": folder} | changes))
    with pytest.raises(EvaluationError, match=text):
        evaluate(job_of(folder, samples=samples))


def test_broken_files_and_broken_samples_are_named(tmp_path: Path) -> None:
    samples = SampleSet(path=tmp_path)
    with pytest.raises(EvaluationError, match="holds no"):
        samples.identities()
    whole = table(range(8))
    images = [
        *whole.column("image").to_pylist()[:5],
        b"junk",
        *whole.column("image").to_pylist()[6:],
    ]
    broken = whole.set_column(2, "image", pa.array(images, pa.binary()))
    pq.write_table(broken, tmp_path / "x.parquet")
    with pytest.raises(EvaluationError, match=r"from 's0' on: row_id 5: 4 bytes"):
        evaluate(job_of(tmp_path, samples=samples))
    no_identity = whole.set_column(1, "identity", pa.array(["a", None] * 4))
    pq.write_table(no_identity, tmp_path / "x.parquet")
    with pytest.raises(EvaluationError, match="4 rows have no identity"):
        samples.identities()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(EvaluationError, match="cannot read"):
        samples.identities()
