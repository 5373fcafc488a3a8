"""Weights as safetensors: written for a first round, checked name by name before they are loaded.

It knows neither places nor digests (`miner.embedding.fetch`), nor what good weights are
(`miner.embedding.canary`). Pickle is never read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from miner.embedding.config import EncoderConfig
from miner.embedding.encoder import build_module
from miner.embedding.fetch import fetch_weights
from miner.errors import WeightsRefusedError

__all__ = ["fetch_weights", "initial_weights", "load_weights"]

PICKLE_STARTS = (b"\x80", b"PK\x03\x04")
WRAPPERS = ("module.", "_orig_mod.")


def load_weights(module: nn.Module, blob: bytes) -> None:
    """Load safetensors into ``module``; nothing is changed unless every tensor fits.

    Raises:
        WeightsRefusedError: ``blob`` is no safetensors file, or names, shapes or types differ
            from the module's; the text names the first few.
    """
    tensors = _parse(blob)
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        raise WeightsRefusedError(
            f"the weights do not fit the encoder: {len(missing)} tensors are missing"
            f"{_first(missing)}, {len(unexpected)} are not known{_first(unexpected)}; "
            + _advise(unexpected),
            kind="names",
        )
    misfits = [
        f"{name} is {_form(tensors[name])} and should be {_form(tensor)}"
        for name, tensor in expected.items()
        if _form(tensors[name]) != _form(tensor)
    ]
    if misfits:
        raise WeightsRefusedError(
            f"{len(misfits)} tensors do not fit the encoder: {'; '.join(misfits[:3])}; "
            "trainer and miner need the same encoder_args, and weights in the encoder's own type",
            kind="shapes",
        )
    module.load_state_dict(tensors)


def initial_weights(config: EncoderConfig, path: Path, seed: int) -> str:
    """Write the weights of a freshly built encoder to ``path``, whole or not at all.

    Returns:
        The file's sha256, hex; the same for the same seed, encoder and version of torch.

    Raises:
        EncoderError: The encoder cannot be built.
    """
    module = build_module(config, seed)
    tensors = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
    blob = safetensors.torch.save(tensors)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_bytes(blob)
    partial.replace(path)
    return hashlib.sha256(blob).hexdigest()


def _parse(blob: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(blob)
    except safetensors.SafetensorError as exc:
        if blob.startswith(PICKLE_STARTS):
            raise WeightsRefusedError(
                "the weights are a pickle (torch.save), which may run code when it is read; save "
                "them with safetensors.torch.save_file(model.state_dict(), path)",
                kind="format",
            ) from exc
        raise WeightsRefusedError(
            f"the weights ({len(blob)} bytes) are not a safetensors file: {exc}",
            kind="format",
        ) from exc


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _first(names: list[str]) -> str:
    return f" (first: {', '.join(names[:3])})" if names else ""


def _advise(unexpected: Iterable[str]) -> str:
    for wrapper in WRAPPERS:
        if any(name.startswith(wrapper) for name in unexpected):
            return f"save the state of the wrapped module, without {wrapper!r} before the names"
    return "trainer and miner need the same encoder and encoder_args"
