"""The tree of settings behind one ``serve``; every part's model lives beside its part."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from miner.core.config import SelectionConfig
from miner.data.config import DatasetConfig
from miner.embedding.config import EncoderConfig
from miner.index.config import IndexConfig
from miner.rounds.config import RoundsConfig
from miner.serving.config import ServingConfig
from miner.serving.metrics.config import MetricsConfig
from miner.workers.config import WorkersConfig

__all__ = ["MinerConfig", "RefreshConfig"]


class RefreshConfig(BaseModel):
    """When a new round is mined. Triggers add up; one refresh runs at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_new_weights: bool = Field(
        default=True,
        description="Mine as soon as newer weights are accepted. On: an announcement is the "
        "moment at which negatives get stale.",
    )
    every_s: float | None = Field(
        default=None,
        gt=0,
        description="Also mine every so many seconds from the newest weights. Off: the same "
        "weights give the same candidates, only the draws differ.",
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        description="Also mine whenever a run's plan has advanced by so many steps since the last "
        "refresh. Off: announcements already follow the trainer's steps.",
    )
    warmup_steps: int = Field(
        default=100,
        ge=0,
        description="Weights of earlier steps are accepted but not mined: rounds stay random. "
        "An untrained encoder's neighbours are noise, and hard negatives from the first step on "
        "collapse the space.",
    )


class MinerConfig(BaseModel):
    """Everything that ``coalface-miner serve`` needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Field(
        description="Folder of the round log, the run plans and the snapshots. Kept over restarts."
    )
    store_dir: Path | None = Field(
        default=None,
        description="Folder of the row store. None: `store` in state_dir; name it to share one "
        "store between services on the same dataset.",
    )
    snapshots_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the snapshots, or a URI such as s3://bucket/folder, and then nobody "
        "needs a disk that others see for them. None: `snapshots` in state_dir; name it so that a "
        "service on a dataset that has grown finds the embeddings of the files that it had. "
        "Services that share it keep `workers.keep_snapshots` together.",
    )
    snapshots_cache_dir: Path | None = Field(
        default=None,
        description="Where each machine keeps what it reads of the snapshots, if snapshots_dir is "
        "a URI: a folder with room for `workers.keep_snapshots` of them. None: `snapshots-cache` "
        "in state_dir; name a disk of the machine where state_dir is a shared one.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Keys every draw of the miner. 0: any will do."
    )
    ray_address: str = Field(
        default="auto",
        description="`auto`: the cluster in RAY_ADDRESS (set by `ray job submit`), else a local "
        "one; `local`: always a local one; otherwise a cluster's address.",
    )
    dataset: DatasetConfig
    encoder: EncoderConfig = EncoderConfig()
    workers: WorkersConfig = WorkersConfig()
    index: IndexConfig = IndexConfig()
    selection: SelectionConfig = SelectionConfig()
    rounds: RoundsConfig = RoundsConfig()
    serving: ServingConfig = ServingConfig()
    metrics: MetricsConfig = MetricsConfig()
    refresh: RefreshConfig = RefreshConfig()

    @model_validator(mode="after")
    def _shards_that_can_search(self) -> Self:
        if self.workers.search_shards > 1 and self.index.gpu.engine == "faiss":
            raise ValueError(
                f"workers.search_shards={self.workers.search_shards} and index.gpu.engine=faiss "
                "exclude each other: FAISS spreads rows over the GPUs of one machine; take the "
                "engine torch, or one shard"
            )
        return self

    @property
    def store_path(self) -> Path:
        """Where the row store lies."""
        return self.store_dir or self.state_dir / "store"

    @property
    def snapshots_place(self) -> str:
        """Path or URI of the snapshots."""
        return self.snapshots_dir or str(self.state_dir / "snapshots")

    @property
    def cache_path(self) -> Path:
        """Where snapshots of an object store are kept on each machine."""
        return self.snapshots_cache_dir or self.state_dir / "snapshots-cache"
