"""The sections of the selection's settings: quarantine and curriculum."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["CurriculumConfig", "QuarantineConfig"]


class QuarantineConfig(BaseModel):
    """When two identities are taken for one, or for copies of one another."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    policy: Literal["off", "report", "exclude"] = Field(
        "exclude",
        description="Whether pairs are looked for; whether those listed count as one identity.",
    )
    """The pairs that pass the test are label noise or copies: as negatives they only do harm."""

    @field_validator("policy", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false

    min_copied: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="Share of the smaller identity's samples that have a copy in the other.",
    )
    """Measured on glyphs against equal pixels: `tests/bench/results/quarantine.md`."""

    copy_similarity: float = Field(
        0.99999,
        gt=0.0,
        le=1.0,
        description="Samples at least this similar are copies, in a space around the origin.",
    )
    """Equal inputs give embeddings that are equal but for rounding."""

    mixing_tolerance: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="How far the share of nearest neighbours across a pair may be from what one "
        "identity cut in two shows, relative to that.",
    )
    """Neighbours mix less; who mixes more shares something else: a camera, a session, a font."""

    max_confusion: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="Mixing is evidence only while at most this share of anchors, those with "
        "copies left out, have a nearer row of another identity than of their own.",
    )
    """What a model confuses that still confuses much is what it has to learn, not label noise."""

    max_false_share: float = Field(
        0.01,
        gt=0.0,
        lt=1.0,
        description="False share that the list of mixed pairs is cut at (Benjamini, Hochberg).",
    )
    """One false alarm among a hundred pairs costs a few negatives, no more."""

    max_rows: int = Field(
        64, ge=4, le=4096, description="Most rows of an identity that the test looks at."
    )
    """Bounds the test of two big identities; its power hardly grows beyond."""


class CurriculumConfig(BaseModel):
    """The target hardness ``s_an - s_ap`` of strategy ``curriculum``, and what moves it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: float = Field(-0.2, ge=-2.0, le=2.0, description="Target hardness at step 0.")
    """The easy end of the semi-hard band."""

    end: float = Field(0.0, ge=-2.0, le=2.0, description="Target hardness from `steps` on.")
    """The hard end of the semi-hard band."""

    steps: int = Field(
        1000, ge=1, description="Model steps over which the target goes from start to end."
    )
    """The length of a short training."""

    violating_fraction: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Steer instead: the share of the last round's triplets that should still "
        "violate the margin. None: by the step.",
    )
    """Off: steering needs two mined rounds before it can act."""

    gain: float = Field(
        0.25, gt=0.0, le=4.0, description="Change of the target per unit of violating fraction."
    )
    """A fraction that is off by 0.4 moves the target by half a margin of 0.2."""
