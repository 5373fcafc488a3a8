"""Evaluates an encoder on identities it has not been trained on, and writes the figures as JSON.

Shape legend: N = rows of the split, D = dimensions of the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import EncoderConfig
from trainer.errors import EvaluationError
from trainer.files import write_atomically
from trainer.metrics import measure
from trainer.model import build_module, embed, load_preprocess, load_weights
from trainer.samples import SampleSet

__all__ = ["EvaluationJob", "embed_samples", "evaluate"]

BATCH_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationJob:
    """What to evaluate on what.

    Attributes:
        samples: The labelled samples.
        encoder: Entry points of network and preprocessing.
        weights: A safetensors file; None for the untrained network that ``seed`` gives.
        seed: Of the untrained weights and of the confidence intervals.
        far: The false-accept rate at which the true-accept rate is taken.
    """

    samples: SampleSet
    encoder: EncoderConfig
    weights: Path | None = None
    seed: int = 0
    far: float = 1e-3


def evaluate(
    job: EvaluationJob,
    *,
    out: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Embed the samples and measure them (:func:`trainer.metrics.measure`).

    Args:
        job: What to do.
        out: A JSON file for the figures, written atomically; None for none.
        on_progress: Called with (rows done, rows in all) while embedding.

    Returns:
        The figures, and what they were measured on; what is written to ``out``.

    Raises:
        TrainerError: The dataset, the weights or the entry points do not fit; names the culprit.
    """
    module = build_module(job.encoder, seed=job.seed)
    if job.weights is not None:
        load_weights(module, job.weights)
    identities_N = job.samples.identities()
    embeddings_ND = embed_samples(job, module, len(identities_N), on_progress)
    metrics = measure(embeddings_ND, identities_N, far=job.far, seed=job.seed)
    result = {
        "dataset": str(job.samples.path),
        "split": job.samples.split if job.samples.split_column else None,
        "weights": str(job.weights) if job.weights else None,
        "seed": job.seed,
        **asdict(metrics),
    }
    if out is not None:
        text = json.dumps(result, indent=2) + "\n"
        write_atomically(out, lambda file: file.write(text.encode()))
    return result


def embed_samples(
    job: EvaluationJob,
    module: torch.nn.Module,
    num_rows: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """[N, D] float32, L2-normalised, in the order of the samples; on a GPU where there is one.

    Raises:
        EvaluationError: A sample cannot be preprocessed; names it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preprocess = load_preprocess(job.encoder)
    module = module.to(device).eval()
    parts: list[npt.NDArray[np.float32]] = []
    done = 0
    for batch in job.samples.batches(BATCH_ROWS):
        try:
            inputs = preprocess(batch).to(device)
        except ValueError as exc:
            first_id = batch.column(job.samples.id_column)[0].as_py()
            raise EvaluationError(
                f"{job.samples.path}, in the {batch.num_rows} rows from {first_id!r} on: {exc}"
            ) from exc
        with torch.inference_mode():
            parts.append(embed(module, inputs, "fp32").cpu().numpy())
        done += batch.num_rows
        if on_progress is not None:
            on_progress(done, num_rows)
    return np.concatenate(parts)
