"""What the embedding workers and the search ask of the cluster."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["WorkersConfig"]


class WorkersConfig(BaseModel):
    """Sizes of the work and the resources that Ray lends to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_embed_workers: int | None = Field(
        default=1,
        ge=1,
        description="Embedding workers. One: a laptop's share. None: as many as the cluster has "
        "GPUs for at the start, at least one.",
    )
    cpus_per_worker: float = Field(
        default=1.0,
        gt=0,
        description="CPUs that Ray reserves per worker, and the threads torch may use. One leaves "
        "the other cores to the trainer.",
    )
    gpus_per_worker: float = Field(
        default=0.0, ge=0, description="GPUs per worker; fractions share one. None: runs anywhere."
    )
    decode_threads: int | None = Field(
        default=None,
        ge=0,
        description="Threads of a worker that call `encoder.preprocess` ahead of the module; it "
        "must be safe to call from several. None: as many as `cpus_per_worker` where the worker "
        "has a GPU, which then never waits; 0 where both need the same cores.",
    )
    chunk_rows: int = Field(
        default=4096,
        ge=1,
        description="Rows that are embedded, written and lost together. 4096 take seconds, so "
        "little is lost with a worker; part of the snapshot's key, so a change embeds anew.",
    )
    max_chunk_attempts: int = Field(
        default=3,
        ge=1,
        description="How often a chunk may take its worker down before the snapshot fails. Three: "
        "a preempted machine and a bad moment are forgiven, a sample that crashes is not.",
    )
    late_factor: float | None = Field(
        default=5.0,
        gt=1.0,
        description="A chunk that takes so many times the median, and a minute if no other worker "
        "is free, is taken from its worker, which is replaced: once a chunk. None: never.",
    )
    chunk_timeout_s: float | None = Field(
        default=1800.0,
        gt=0,
        description="After so long a chunk counts as lost with its worker, the first one too, of "
        "which nobody knows how long it takes; so a sample that hangs ends in an error. Half an "
        "hour is long for 4096 rows. None: never.",
    )
    search_cpus: float = Field(
        default=1.0, gt=0, description="CPUs of the search, and the threads it may use."
    )
    search_gpus: float = Field(default=0.0, ge=0, description="GPUs of the search.")
    search_shards: int = Field(
        default=1,
        ge=1,
        description="Processes that share the rows of the search, each with `search_cpus` and "
        "`search_gpus` of its own and memory for its rows; all must have room at once. The "
        "candidates of `flat` are the same, to the bit on one kind of processor. With more than "
        "one, lists are made anew in every round. One: the rows of most sets fit one machine.",
    )
    keep_snapshots: int = Field(
        default=2,
        ge=1,
        description="Newest snapshots kept on disk. Two: the one in use and the one being made.",
    )
    placement_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="How long to wait for the cluster to start the workers; importing torch on a "
        "busy machine takes up to a minute of it.",
    )
    request_early: bool = Field(
        default=True,
        description="Ask an autoscaling cluster at the start for the workers and the search "
        "together, until the service ends: machines take minutes to come. A cluster keeps one such "
        "request: switch it off where another job makes its own, or where machines for the search "
        "shall go between rounds.",
    )
    nice: int = Field(
        default=5,
        ge=0,
        le=19,
        description="Lowest niceness of the workers, so that a trainer on the same machine goes "
        "first. Ray's own default for its workers is 15 (RAY_worker_niceness).",
    )

    @property
    def decode_ahead(self) -> int:
        """`decode_threads`, decided."""
        if self.decode_threads is not None:
            return self.decode_threads
        return max(1, int(self.cpus_per_worker)) if self.gpus_per_worker else 0
