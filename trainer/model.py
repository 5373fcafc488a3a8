"""The network under training: loaded by entry point, seeded, embedding, and its weights files.

Weights travel as safetensors only. It knows neither the optimizer nor the miner.

Shape legend: B = rows of a batch, D = dimensions of the embedding.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from trainer.config import EncoderConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.files import write_atomically

__all__ = [
    "Preprocess",
    "WeightsFile",
    "build_module",
    "embed",
    "load_preprocess",
    "load_weights",
    "save_weights",
    "weights_of",
]

Preprocess = Callable[[pa.RecordBatch], torch.Tensor]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file that is complete on disk."""

    path: Path
    sha256: str


def build_module(config: EncoderConfig, *, seed: int) -> nn.Module:
    """The encoder with weights drawn from ``seed``: the same on every rank and at every start.

    Raises:
        ConfigError: The entry point does not load, refuses its arguments or gives no nn.Module.
    """
    build = _load_entry_point(config.build, "encoder.build")
    torch.manual_seed(seed)
    try:
        module = build(**config.args)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"encoder.build {config.build} refuses {config.args}: {exc}") from exc
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ConfigError(f"encoder.build {config.build} must return an nn.Module, not {kind}")
    return module


def load_preprocess(config: EncoderConfig) -> Preprocess:
    """The function that turns payload columns into the module's input.

    Raises:
        ConfigError: The entry point does not load.
    """
    return _load_entry_point(config.preprocess, "encoder.preprocess")


def embed(module: nn.Module, inputs: torch.Tensor, precision: str) -> torch.Tensor:
    """L2-normalised float32 [B, D]; ``precision`` (fp32 or bf16) is that of the forward pass."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = module(inputs)
    return functional.normalize(outputs.float())


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights in CPU memory, which later steps do not change."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> WeightsFile:
    """Write ``weights`` as safetensors, atomically; the same weights give the same bytes."""
    blob = safetensors.torch.save(weights)
    write_atomically(path, lambda file: file.write(blob))
    return WeightsFile(path, hashlib.sha256(blob).hexdigest())


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a safetensors file into ``module``.

    Raises:
        CheckpointError: The file does not read, or names or shapes differ from the module's.
    """
    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as exc:
        raise CheckpointError(f"cannot read the weights {path}: {exc}") from exc
    expected = module.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is unknown" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, the encoder {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        raise CheckpointError(
            f"{path} does not fit the encoder ({len(problems)} problems): {shown}; "
            "was it trained with other encoder.build or encoder.args?"
        )
    module.load_state_dict(weights)


def _load_entry_point(text: str, key: str) -> Callable[..., Any]:
    module_name, separator, name = text.partition(":")
    if not separator:
        raise ConfigError(f"{key} {text!r} is not of the form package.module:function")
    try:
        entry = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"{key} {text!r} does not load: {exc}") from exc
    if not callable(entry):
        raise ConfigError(f"{key} {text!r} is a {type(entry).__name__}, not a function")
    found: Callable[..., Any] = entry
    return found
