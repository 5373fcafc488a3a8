"""Where the service listens, and how it plans and streams."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from miner.serving.certificates import TlsConfig

__all__ = ["ServingConfig"]


class ServingConfig(BaseModel):
    """Settings of the gRPC service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. This machine only: nothing is open to a network unless "
        "asked for.",
    )
    allow_insecure_bind: bool = Field(
        default=False,
        description="Listen although TLS or credentials are missing, on an address that other "
        "machines reach; also for metrics, which have neither. Off: whoever reaches the port can "
        "read samples and announce weights, and whoever listens on the way can copy tokens.",
    )
    tls: TlsConfig | None = Field(
        default=None,
        description="Certificate of the service, and CA of its clients. None: unencrypted, which "
        "is for this machine alone.",
    )
    tokens_file: Path | None = Field(
        default=None,
        description="YAML file of clients, their roles and the digests of their tokens; "
        "`coalface-miner token` adds to it. None: no token is asked for; with tls.client_ca_file "
        "every certificate of that CA may then do everything.",
    )
    reflection: bool = Field(
        default=False,
        description="Tell admins which rpcs there are, for tools such as grpcurl. Off: they can be "
        "given the .proto file.",
    )
    channelz: bool = Field(
        default=False,
        description="Tell admins the state of every connection (gRPC channelz). Off: it lists the "
        "addresses of all clients.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port to listen on. 0: any free one, which is logged and published; two "
        "services on one machine then never collide.",
    )
    stride_steps: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Steps planned at once. 32: one durable write for 32 steps, and a new round "
        "reaches the trainer at most 32 steps late.",
    )
    heartbeat_s: float = Field(
        default=2.0,
        gt=0,
        description="Seconds between heartbeats on a stream that waits. 2: a client can tell a "
        "waiting service from a dead one within seconds.",
    )
    max_message_bytes: int = Field(
        default=1_048_576,
        ge=65_536,
        le=4_128_768,
        description="Largest message of a stream: ready steps share one up to this size, a larger "
        "batch goes in parts. 1 MiB: throughput peaks there; clients that set no limit take 4 MiB.",
    )
    max_request_bytes: int = Field(
        default=4_194_304,
        ge=65_536,
        description="Largest request; uploads come in parts of less. 4 MiB: gRPC's own limit.",
    )
    max_upload_bytes: int = Field(
        default=2**32,
        ge=1,
        description="Largest file of weights that may be uploaded. 4 GiB: a billion parameters.",
    )
    max_batch_rows: int = Field(
        default=1_000_000,
        ge=3,
        description="Most rows of a run's global batch. A million: more than trainers ask for; a "
        "batch is made in memory, with its samples where they are asked for.",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="Megabytes (10**6 bytes) that Ray sets aside for the serving actor, on the "
        "driver's machine, where its clients look for it. Ray counts them and enforces nothing. "
        "None: none are; the operating system's cache of the row store is not counted either.",
    )
    max_runs: int = Field(
        default=10_000,
        ge=1,
        description="Runs that are kept; a new one above that is refused. 10,000: years of "
        "trainings; each takes a folder and some memory.",
    )
    max_streams_per_client: int = Field(
        default=256,
        ge=1,
        description="Streams of each rpc that one client may have open (of uploads one): one "
        "token, or one address where there are none. 256: the ranks of 32 machines behind one "
        "address.",
    )
    max_concurrent_rpcs: int = Field(
        default=4096,
        ge=1,
        description="Rpcs under way at once, of all clients and health checks together; more are "
        "refused. 4096: a stream each for more ranks than one miner feeds.",
    )
    max_waiting_queries: int = Field(
        default=8,
        ge=1,
        description="QueryNegatives that may wait while one is searched; more are refused. 8: a "
        "client learns within seconds that the miner cannot keep up.",
    )
    drain_grace_s: float = Field(
        default=2.0,
        ge=0,
        description="Seconds that open streams get to finish when the service stops. 2: `ray job "
        "stop` kills after 3.",
    )
    idle_run_s: float = Field(
        default=7 * 86400.0,
        gt=0,
        description="A run that has neither planned nor committed for so long no longer holds "
        "rounds back from removal. A week: a trainer that stands still over the holidays resumes.",
    )

    def with_absolute_paths(self) -> ServingConfig:
        """The same files by names that mean the same in another working directory."""
        tls, tokens_file = self.tls, self.tokens_file
        if tls is not None:
            files = {key: path.absolute() for key, path in tls if path is not None}
            tls = tls.model_copy(update=files)
        if tokens_file is not None:
            tokens_file = tokens_file.absolute()
        return self.model_copy(update={"tls": tls, "tokens_file": tokens_file})
