"""The configuration of the reference trainer: a section per concern, a reason per default.

It does not read files or command lines: see :mod:`trainer.config_file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "AnnounceConfig",
    "CheckpointConfig",
    "EncoderConfig",
    "LossConfig",
    "LossMode",
    "MetricsConfig",
    "MinerConfig",
    "OptimizerConfig",
    "TlsConfig",
    "TrainerConfig",
]

LossMode = Literal[
    "mined",
    "in_batch_hard",
    "in_batch_semi_hard",
    "mined+in_batch_hard",
    "mined+in_batch_semi_hard",
    "in_batch_hard+in_batch_semi_hard",
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsConfig(_Section):
    """Certificates between trainer and miner; :class:`trainer.feed.TlsFiles` in a file."""

    ca_file: Path = Field(description="PEM file of the CA that the miner's certificate is from")
    certificate_file: Path | None = Field(
        default=None, description="PEM file of this trainer's certificate, if the miner wants one"
    )
    """A token is enough for most miners."""
    key_file: Path | None = Field(default=None, description="PEM file of its private key")
    """Goes with the certificate."""
    server_name: str = Field(
        default="", description="name to look for in the miner's certificate; empty: the host's"
    )
    """The host in the address, as everywhere."""


class MinerConfig(_Section):
    """Where the batches come from, and how patient the trainer is with it."""

    address: str = Field(description="host:port of the miner's gRPC service")
    prefetch_steps: int = Field(default=4, ge=1, description="steps buffered ahead of training")
    """Enough to hide a round trip; memory and planned-ahead steps stay small."""
    patience_s: float = Field(default=300.0, gt=0, description="how long the miner may be away")
    """A restarted miner is back in seconds, a rescheduled one in minutes."""
    exhausted: Literal["repeat", "wait"] = Field(
        default="repeat", description="at the end of a round: the round again, or wait for the next"
    )
    """Training never stands still for mining."""
    stale: Literal["serve", "wait"] = Field(
        default="serve", description="past max_staleness_steps: serve anyway (marked), or wait"
    )
    """As for ``exhausted``."""
    max_staleness_steps: int = Field(default=0, ge=0, description="optimizer steps; 0: no bound")
    """No bound: staleness is in the journal, and small differences in it hardly matter."""
    upload_weights: bool = Field(
        default=False, description="send new weights to the miner, rather than where they lie"
    )
    """A path costs nothing; uploading is for miners that share no storage with the trainer."""
    tls: TlsConfig | None = Field(default=None, description="certificates; null: unencrypted")
    """A miner on the same machine needs none."""
    token_file: Path | None = Field(
        default=None, description="file of the token; null: COALFACE_TOKEN of the environment"
    )
    """In a file the token is renewed while the run goes on. The announcer needs the role write."""


class EncoderConfig(_Section):
    """What is trained. Must equal what the miner is configured with."""

    build: str = Field(
        default="trainer.encoder:build", description="entry point that returns an nn.Module"
    )
    """The encoder of the glyphs demo."""
    preprocess: str = Field(
        default="trainer.encoder:preprocess",
        description="entry point from a pyarrow.RecordBatch of payload columns to the input",
    )
    """Its preprocessing."""
    args: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="keyword arguments of `build`"
    )
    """None: the entry point's own defaults."""


class LossConfig(_Section):
    """Which triplets of a batch make the loss."""

    mode: LossMode = Field(
        default="in_batch_hard+in_batch_semi_hard",
        description="the miner's own triplets, triplets found among the batch's rows, or the sum",
    )
    """Measured on glyphs, Han characters and spoken words: over mined groups the sum leads both
    in-batch baselines on all three (tests/bench/results/composition.md); hard alone collapses."""
    margin: float = Field(
        default=0.2, gt=0, lt=2, description="in Euclidean distance of normalised embeddings"
    )
    """The usual value of the triplet loss on the unit sphere (FaceNet)."""
    crowding_limit: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="in the sum of both in-batch parts the hard one fades from this crowding "
        "(squared length of the mean embedding) to 1, a collapsed space; 1: never",
    )
    """Measured on spoken words with 40 % wrong labels: MAP@R 59, against 13 (collapsed) without it;
    with 20 % level, with none it does not act. From 0.9 on it costs 1.5 points at 20 %."""
    gather: bool = Field(
        default=True, description="take the loss over the rows of all ranks, with gradient"
    )
    """So that learning does not depend on how many ranks share a batch."""


class OptimizerConfig(_Section):
    """AdamW and its learning rate."""

    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    """Measured on glyphs: better than 1e-3 for mined and for random batches."""
    weight_decay: float = Field(default=1e-2, ge=0, description="decoupled weight decay")
    """AdamW's own default."""
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="after the ramp: down to final_fraction, or constant"
    )
    """Short runs end noticeably better when the rate falls."""
    ramp_steps: int = Field(default=20, ge=0, description="steps of linear rise to the peak")
    """Adam's second moments need a few steps to settle."""
    final_fraction: float = Field(
        default=0.02, ge=0, le=1, description="the cosine ends at this share of the peak rate"
    )
    """Above zero, so that the last steps still teach."""


class CheckpointConfig(_Section):
    """How much work a crash may cost."""

    every_steps: int = Field(default=100, ge=1, description="steps between checkpoints")
    """Seconds to minutes of work at risk."""
    keep: int = Field(default=2, ge=1, description="newest checkpoints that stay")
    """One more than needed, should somebody copy one at the wrong moment."""
    folder: Path | None = Field(default=None, description="default: <out>/checkpoints")
    """With everything else of the run."""


class AnnounceConfig(_Section):
    """When the miner gets new weights."""

    every_steps: int = Field(default=100, ge=0, description="steps between announcements; 0: never")
    """Each starts a refresh, whose cost is embedding the whole dataset."""
    after_step: int = Field(default=100, ge=0, description="first announcement, after this step")
    """A warm-up: neighbours under untrained weights are no better than chance."""
    folder: Path | None = Field(
        default=None, description="where weights are written, as the miner sees it; <out>/weights"
    )
    """With everything else of the run; the miner must allow this folder as a prefix."""
    keep: int = Field(default=4, ge=1, description="newest weights files that stay")
    """The miner reads a file for as long as a refresh lasts."""


class MetricsConfig(_Section):
    """Where figures for Prometheus are served."""

    port: int | None = Field(
        default=None, ge=0, le=65535, description="rank r listens on port + r; 0: any free one"
    )
    """None: no endpoint, nothing is opened that nobody asked for."""
    host: str = Field(default="127.0.0.1", description="address to listen on")
    """This machine only: whoever reaches the port reads the figures, without credentials."""


class TrainerConfig(_Section):
    """One training run."""

    run_id: str = Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$",
        description="names the run at the miner; resuming needs the same one",
    )
    out: Path = Field(description="folder of journal, summary, checkpoints and weights")
    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    batch_rows: int = Field(default=192, ge=3, description="rows of a global batch, at most")
    """Twelve groups of four identities with four samples each."""
    seed: int = Field(default=0, ge=0, lt=2**63, description="initial weights and order of groups")
    """Any; the same seed gives the same start."""
    miner: MinerConfig
    encoder: EncoderConfig = EncoderConfig()
    """The glyphs encoder."""
    loss: LossConfig = LossConfig()
    """See :class:`LossConfig`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """See :class:`OptimizerConfig`."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """See :class:`CheckpointConfig`."""
    announce: AnnounceConfig = AnnounceConfig()
    """See :class:`AnnounceConfig`."""
    metrics: MetricsConfig = MetricsConfig()
    """See :class:`MetricsConfig`."""
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the forward pass; weights, loss and optimizer stay float32"
    )
    """The same bits on every machine of a kind; bf16 is faster where the hardware has it."""
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU per local rank where there is one"
    )
    """What the machine has."""

    @model_validator(mode="after")
    def _waiting_ends(self) -> Self:
        """A run that waits for fresher rounds must get as far as announcing weights for them."""
        bound, announce = self.miner.max_staleness_steps, self.announce
        if self.miner.stale != "wait" or not bound:
            return self
        waits = f"with miner.stale=wait and miner.max_staleness_steps={bound} the run would"
        if not announce.every_steps:
            raise ValueError(
                f"{waits} wait for ever, as announce.every_steps=0 announces no weights; announce "
                f"them every {bound} steps or more often"
            )
        for key in ("every_steps", "after_step"):
            if (steps := getattr(announce, key)) > bound:
                raise ValueError(
                    f"{waits} stop before it announces the weights it waits for, as "
                    f"announce.{key}={steps} is above that; {bound} is the most"
                )
        return self

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints lie."""
        return self.checkpoint.folder or self.out / "checkpoints"

    @property
    def weights_folder(self) -> Path:
        """Where announced weights lie."""
        return self.announce.folder or self.out / "weights"

    def fixed_over_resume(self) -> dict[str, object]:
        """The keys that decide what is learned; a checkpoint is only resumed with equal ones."""
        fixed = {"run_id", "steps", "batch_rows", "seed", "precision", "loss", "optimizer"}
        return self.model_dump(mode="json", include=fixed | {"encoder"})
