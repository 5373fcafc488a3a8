"""What a round's groups are made of and which negatives are allowed in them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from miner.core.config_parts import CurriculumConfig, QuarantineConfig

__all__ = ["CurriculumConfig", "QuarantineConfig", "SelectionConfig"]


class SelectionConfig(BaseModel):
    """Selection of anchors, positives and negatives. Similarities are cosines, higher is closer."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    strategy: Literal[
        "hardest",
        "semi_hard",
        "rank_window",
        "distance_weighted",
        "simans",
        "curriculum",
        "random",
    ] = Field("rank_window", description="How an anchor prefers its candidates.")
    """The window draws among near identities: always taking the nearest ones collapses training."""

    random_fraction: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the negatives that are random other identities, under any strategy.",
    )
    """None: the groups of a batch are already random to each other."""

    composition: Literal["star", "chain", "community", "diverse"] = Field(
        "star", description="How the identities of a group lie to each other."
    )
    """Each near the anchor, whatever they are to each other: nothing measured was better."""

    composition_width: int = Field(
        32, ge=2, le=256, description="Identities of an anchor's list that a composition reorders."
    )
    """A few times the negatives of a group; their similarities to each other are its cost."""

    groups_per_round: int = Field(
        2048, ge=1, le=1 << 22, description="Groups (and so anchors) of a round."
    )
    """About 170 batches of 12 groups: a round lasts until the next one is mined."""

    balance: float = Field(
        0.0, ge=0.0, le=1.0, description="An identity's share of anchors goes with n_i ** balance."
    )
    """0 gives every identity the same share, so mining does not amplify the bias to big ones."""

    difficulty: float = Field(
        1.0,
        ge=0.0,
        le=4.0,
        description="An identity's share of anchors goes with its reported loss ** difficulty.",
    )
    """Without reports nothing changes; with them, what is learnt makes room for what is not yet."""

    min_groups_per_identity: int = Field(
        0,
        ge=0,
        description="Fewest groups that an identity with enough samples anchors in a round.",
    )
    """None: with balance 0 shares are as even as they can be."""

    max_groups_per_identity: int | None = Field(
        None, ge=1, description="Most groups one identity may anchor in a round."
    )
    """Unbounded: an identity's number of samples already bounds it, no anchor occurs twice."""

    identities_per_group: int = Field(
        4, ge=2, le=256, description="Identities of a group: the anchor's and its negatives'."
    )
    """A few mutually hard identities; several such groups fill a batch and keep it varied."""

    samples_per_identity: int = Field(
        4, ge=1, le=1024, description="Most rows of each identity in a group."
    )
    """Enough for in-batch semi-hard losses. The anchor's identity has at least two rows, always."""

    positive: Literal["random", "hardest", "easiest", "semi_hard", "hardest_percentile"] = Field(
        "random", description="Which sample of the anchor's identity is its positive."
    )
    """Robust to label noise and free of the bias of the hardest positive."""

    positive_percentile: float = Field(
        10.0, ge=0.0, le=100.0, description="For hardest_percentile: 0 is hardest, 100 easiest."
    )
    """Passes over the hardest tenth, where the mislabelled samples are."""

    margin: float = Field(
        0.2, gt=0.0, le=2.0, description="Width of the semi-hard band, in similarity."
    )
    """The usual margin of a triplet loss on the unit sphere."""

    distance_cutoff: float = Field(
        0.5, gt=0.0, lt=2.0, description="For distance_weighted: smaller distances weigh no more."
    )
    """The value of the paper, for Euclidean distances on the unit sphere."""

    distance_limit: float = Field(
        1.4, gt=0.0, le=2.0, description="For distance_weighted: farther candidates are not wanted."
    )
    """The value of the paper: beyond it the loss has no gradient."""

    simans_sharpness: float = Field(
        50.0, gt=0.0, description="For simans: a in exp(-a (s_an - s_ap - b)^2)."
    )
    """Weights fall to a third at 0.15 from the best hardness, the width of a usual margin."""

    simans_offset: float = Field(
        -0.1, ge=-2.0, le=2.0, description="For simans: the best hardness b."
    )
    """The middle of the semi-hard band."""

    window_start: int = Field(
        0, ge=0, description="For rank_window: first rank among distinct identities, from 0."
    )
    """Guards, not ranks, remove suspected false negatives."""

    window_stop: int = Field(
        20, ge=1, description="For rank_window: the rank after the last one of the window."
    )
    """Twenty identities are near enough to be hard, and enough to differ from round to round."""

    guard_positive: Literal["chosen", "min", "mean", "max"] = Field(
        "chosen",
        description="The s_ap of the margin guards: of the positive chosen, or the least, mean or "
        "greatest over all samples of the anchor's identity.",
    )
    """With one positive per triplet, that is the one the negative has to stay behind."""

    max_similarity: float | None = Field(
        None, gt=-1.0, description="Candidates at least this similar to the anchor are dropped."
    )
    """Off: the right ceiling depends on the encoder."""

    absolute_margin: float | None = Field(
        None, ge=0.0, description="Candidates with s_an > s_ap - absolute_margin are dropped."
    )
    """Off: it leaves nothing while the space is still unordered."""

    relative_margin: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Candidates with s_an > s_ap - relative_margin * |s_ap| are dropped.",
    )
    """Off, like the absolute margin."""

    duplicate_similarity: float | None = Field(
        None, gt=-1.0, description="Candidates at least this similar to the positive are dropped."
    )
    """Off: it costs a product per candidate; for sets with copies under two identities."""

    quarantine: QuarantineConfig = QuarantineConfig()
    """See :class:`QuarantineConfig`."""

    curriculum: CurriculumConfig = CurriculumConfig()
    """See :class:`CurriculumConfig`."""

    momentum_rounds: int = Field(
        0, ge=0, le=8, description="Earlier rounds whose negatives are candidates again."
    )
    """None: under fresh weights most of them are among the candidates anyway."""

    look_ahead: int = Field(
        0, ge=0, le=1024, description="Nearest rows of the positive that are candidates too."
    )
    """None: it doubles the search."""

    min_uses_per_sample: int = Field(
        0, ge=0, description="Fewest groups of a round that one row serves as mined negative."
    )
    """None: a floor takes slots from the strategy."""

    min_uses_per_identity: int = Field(
        0, ge=0, description="Fewest groups of a round that one identity serves as mined negative."
    )
    """None: a floor takes slots from the strategy."""

    max_uses_per_sample: int | None = Field(
        None, ge=1, description="Most groups of a round that one row serves as mined negative."
    )
    """Off; `max_uses_per_identity` evens out most of the use already."""

    max_uses_per_identity: int | None = Field(
        None, ge=1, description="Most groups of a round that one identity serves as mined negative."
    )
    """Off: a useful value depends on groups per identity, which the catalog decides."""

    underfill: Literal["drop", "relax", "random"] = Field(
        "relax", description="What becomes of an anchor with too few negatives."
    )
    """Relax keeps the group and marks what is outside the strategy; guards and caps still hold."""

    num_candidates: int = Field(
        256, ge=1, le=65535, description="Neighbours of other identities searched per anchor, K."
    )
    """The nearest 50 often hold no semi-hard one, nor enough distinct identities."""

    @property
    def negatives_per_group(self) -> int:
        """Mined negatives of a full group, M, each of another identity."""
        return self.identities_per_group - 1

    @property
    def is_without_bounds(self) -> bool:
        """Whether any number of uses as a negative will do, so that no proposal is refused."""
        caps = self.max_uses_per_sample, self.max_uses_per_identity
        return caps == (None, None) and not (self.min_uses_per_sample or self.min_uses_per_identity)

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        for name in ("groups_per_identity", "uses_per_sample", "uses_per_identity"):
            floor, cap = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if cap is not None and floor > cap:
                raise ValueError(f"min_{name}={floor} is above max_{name}={cap}")
        for low, high in (
            ("min_uses_per_sample", "max_uses_per_identity"),
            ("distance_cutoff", "distance_limit"),
        ):
            least, most = getattr(self, low), getattr(self, high)
            if most is not None and least > most:
                raise ValueError(f"{low}={least} is above {high}={most}, so it cannot be met")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.strategy == "rank_window":
            width = self.window_stop - self.window_start
            if width < self.negatives_per_group:
                raise ValueError(
                    f"window_start={self.window_start} and window_stop={self.window_stop} leave "
                    f"{width} identities, but a group of identities_per_group="
                    f"{self.identities_per_group} takes {self.negatives_per_group} from them; "
                    "widen the window or make groups smaller"
                )
            if self.window_stop > self.num_candidates:
                raise ValueError(
                    f"window_stop={self.window_stop} identities cannot come out of "
                    f"num_candidates={self.num_candidates}; raise num_candidates"
                )
        elif self.strategy != "random" and self.num_candidates < self.negatives_per_group:
            raise ValueError(
                f"num_candidates={self.num_candidates} cannot give the "
                f"{self.negatives_per_group} negatives of identities_per_group="
                f"{self.identities_per_group}; raise num_candidates"
            )
        return self
