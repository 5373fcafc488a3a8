"""Settings of the encoder, of its weights and of what weights must pass."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["EncoderConfig"]


class EncoderConfig(BaseModel):
    """Which encoder embeds the dataset, and which weights it accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(
        default="trainer.encoder:build",
        description="`package.module:callable` that returns an nn.Module mapping the preprocessed "
        "batch to [rows, dimensions]. The reference trainer's, so that the demo needs no code.",
    )
    preprocess: str = Field(
        default="trainer.encoder:preprocess",
        description="`package.module:callable` that maps a pyarrow.RecordBatch (row_id and the "
        "payload columns) to a tensor [rows, ...]: a new one in every call, also in calls from "
        "several threads at once where `workers.decode_threads` says so.",
    )
    encoder_args: dict[str, int | float | str | bool] = Field(
        default={},
        description="Keyword arguments of the encoder's callable. Empty: its own defaults.",
    )
    batch_rows: int = Field(
        default=256,
        ge=1,
        description="Rows per forward pass. 256 small images are a few MB; lower it where the "
        "device runs out of memory.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="`auto` takes the GPU that the worker was lent, else the CPU.",
    )
    max_canary_similarity: float = Field(
        default=0.95,
        gt=-1,
        le=1,
        description="Weights are refused if random pairs of different identities are on average "
        "more similar than this: the space has collapsed and its neighbours mean nothing.",
    )
    canary_rows: int = Field(
        default=256,
        ge=2,
        description="Rows embedded to judge announced weights, one per identity. 256 give 32,640 "
        "pairs and cost one forward pass.",
    )
    weights_prefixes: tuple[str, ...] = Field(
        default=(),
        description="Folders and URI prefixes (s3://bucket/folder) from which weights are "
        "accepted. Empty: none, because an announcer must not choose what the miner reads.",
    )
    max_weights_bytes: int = Field(
        default=2**32,
        ge=1,
        description="Largest file of weights that is read; what serving.max_upload_bytes allows is "
        "read in any case. 4 GiB: a billion parameters.",
    )
