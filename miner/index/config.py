"""Settings of the index and of the search in it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["GpuConfig", "IndexConfig"]


class GpuConfig(BaseModel):
    """What the search does on GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["off", "torch", "faiss"] = Field(
        default="off",
        description="`torch`: exact searches run by tiles on all GPUs that torch sees; lists stay "
        "on the CPU. `faiss`: everything runs in FAISS's GPU indexes, which takes the extra `gpu`. "
        "Both are exact where the CPU is. `off`: a GPU is for the trainer.",
    )
    precision: Literal["float32", "float16"] = Field(
        default="float16",
        description="Of rows and products of exact searches. `float16`: half the memory and "
        "several times the speed; what comes out is compared again in float32, and searched again "
        "where rounding leaves a doubt, so it is as exact as `float32`.",
    )
    memory_mb: int = Field(
        default=4096,
        ge=1,
        description="Most memory of each GPU. What does not fit is streamed (`torch`) or refused "
        "(`faiss`).",
    )
    scratch_mb: int = Field(
        default=1024,
        ge=0,
        description="Of this, what FAISS takes for its own use from the start. FAISS's default.",
    )


class IndexConfig(BaseModel):
    """Which index answers the search for negatives, and how much of it must be found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["flat", "ivf", "ivfpq", "auto"] = Field(
        default="flat",
        description="`flat` compares every anchor with every row: exact. `ivf` compares it with "
        "the rows of near lists, and measures what that misses. `ivfpq` does the same with lists "
        "of codes, a fraction of the memory. `auto` takes `flat` where that takes seconds, else "
        "`ivf`, or `ivfpq` where lists of vectors would not fit into `memory_mb`.",
    )
    num_lists: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Lists of `ivf` and `ivfpq`. None: grows with the number of rows to the power "
        "of 0.7, 4,000 of a million, so that choosing lists costs little beside searching them.",
    )
    num_probes: int | None = Field(
        default=None,
        ge=1,
        description="Lists compared with an anchor. None: as many as `target_recall` "
        "takes, measured on a sample of the anchors.",
    )
    gpu: GpuConfig = GpuConfig()
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="What `auto` may take for lists of vectors, beside embeddings and candidates. "
        "None: half of what is free.",
    )
    target_recall: float = Field(
        default=0.95,
        gt=0.0,
        le=1.0,
        description="Recall at which `num_probes` is aimed. 0.95: the last few percent cost as "
        "much as all before them.",
    )
    min_recall: float = Field(
        default=0.9,
        ge=0.0,
        le=1.0,
        description="A search that finds less is repeated with twice the probes, and in the end "
        "refused: no round is made of it.",
    )
    recall_at: int = Field(
        default=10,
        ge=1,
        le=1024,
        description="Recall is the share of an anchor's so many nearest rows of other identities "
        "that are found. 10: strategies draw from the front of the list.",
    )
    recall_sample: int = Field(
        default=1000,
        ge=10,
        description="Anchors on which recall is measured each time, by a flat search. 1000: its "
        "95 % interval is about 0.03 wide at 0.95.",
    )

    @model_validator(mode="after")
    def _aim_above_the_floor(self) -> Self:
        if self.num_probes is None and self.target_recall < self.min_recall:
            raise ValueError(
                f"target_recall={self.target_recall} is below min_recall={self.min_recall}: every "
                "search would be repeated; raise the one or lower the other"
            )
        return self
