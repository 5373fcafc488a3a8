"""A small convolutional encoder of 32 x 32 grey images, and how a record batch becomes its input.

The default entry points ``trainer.encoder:build`` and ``trainer.encoder:preprocess``: miner and
trainer load them by name and both must see the same text, so this module imports nothing of this
project. It knows neither losses, nor weights files, nor the feed.

Shape legend: B = rows of the batch, D = dimensions of the embedding.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

__all__ = ["IMAGE_COLUMN", "IMAGE_SIZE", "build", "preprocess"]

IMAGE_COLUMN = "image"
"""The payload column that holds one encoded image per row."""

IMAGE_SIZE = 32
"""Pixels on each side; images of another size are refused rather than scaled."""

# Pillow raises all of these for damaged bytes, depending on where the damage lies.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, struct.error, zlib.error)


def build(dim: int = 128, width: int = 16) -> nn.Module:
    """Six 3 x 3 convolutions (batch norm, ReLU) of growing width, and one linear layer.

    Maps float32 [B, 1, 32, 32] to [B, ``dim``]. The output is not normalised: whoever compares
    embeddings normalises them. Weights are drawn from torch's global generator, so seed it first.

    Raises:
        ValueError: If ``dim`` or ``width`` is below 1.

    Cost: 0.41 M parameters at the defaults; about 0.5 ms an image forward on one CPU core.
    """
    if dim < 1 or width < 1:
        raise ValueError(f"the encoder needs dim >= 1 and width >= 1, got {dim=}, {width=}")
    last_side = IMAGE_SIZE // 8
    layers = nn.Sequential(
        _block(1, width, stride=1),
        _block(width, 2 * width, stride=2),
        _block(2 * width, 2 * width, stride=1),
        _block(2 * width, 4 * width, stride=2),
        _block(4 * width, 4 * width, stride=1),
        _block(4 * width, 8 * width, stride=2),
        nn.Flatten(),
        nn.Linear(8 * width * last_side * last_side, dim),
    )
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def preprocess(batch: pa.RecordBatch) -> torch.Tensor:
    """Decode the column ``image`` to grey values between 0 and 1.

    Args:
        batch: Any columns; ``image`` must be binary (PNG or what else Pillow reads; colours are
            turned to grey). A column ``row_id`` is only used to name a row in an error.

    Returns:
        [B, 1, 32, 32] float32 on the CPU, in the order of the rows.

    Raises:
        ValueError: If there is no such column, or a row is null, does not decode or is not
            32 x 32 pixels; the text names the row id.

    Cost: about 35 us an image, nearly all of it in Pillow's decoder.
    """
    if IMAGE_COLUMN not in batch.schema.names:
        raise ValueError(f"the batch has no column {IMAGE_COLUMN!r}, only {batch.schema.names}")
    pixels = np.empty((batch.num_rows, 1, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for position, encoded in enumerate(batch.column(IMAGE_COLUMN).to_pylist()):
        try:
            pixels[position, 0] = _decode(encoded)
        except (*_DECODING_ERRORS, Image.DecompressionBombError) as exc:
            raise ValueError(f"{_name_of(batch, position)}: {exc}") from exc
    return torch.from_numpy(pixels).float().div_(255)


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _decode(encoded: object) -> Image.Image:
    if not isinstance(encoded, bytes):
        kind = "null" if encoded is None else type(encoded).__name__
        raise ValueError(f"the image is {kind}, encoded bytes are needed")
    try:
        image = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise ValueError(f"{len(encoded)} bytes that are no image of a known format") from None
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        width, height = image.size
        raise ValueError(f"the image is {width} x {height} pixels, not {IMAGE_SIZE} x {IMAGE_SIZE}")
    # Loaded here, so that a damaged image is refused inside the caller's try.
    image.load()
    return image if image.mode == "L" else image.convert("L")


def _name_of(batch: pa.RecordBatch, position: int) -> str:
    if "row_id" in batch.schema.names:
        return f"row_id {batch.column('row_id')[position].as_py()}"
    return f"row {position} of the batch"
