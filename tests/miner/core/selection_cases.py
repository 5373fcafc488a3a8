"""Random worlds and configurations for whole rounds (hypothesis)."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from miner.core import CurriculumConfig, QuarantineConfig, SelectionConfig
from tests.miner.core.selection_oracles import World, make_world

STRATEGIES = [
    "hardest",
    "semi_hard",
    "rank_window",
    "distance_weighted",
    "simans",
    "curriculum",
]
COMPOSITIONS = ["star", "chain", "community", "diverse"]
GUARD_POSITIVES = ["chosen", "min", "mean", "max"]

_limit = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5]))
_cap = st.one_of(st.none(), st.integers(1, 3))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, list[int]]:
    """A world and its anchors: single samples, copies and a dominating identity among it."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=8))
    if draw(st.booleans()):
        sizes[0] = 9
    world = make_world(
        draw(st.integers(0, 10**6)),
        [2, *sizes],
        dim=draw(st.integers(2, 4)),
        num_copies=draw(st.integers(0, 3)),
    )
    possible = world.possible_anchors()
    return world, draw(st.permutations(possible))[: draw(st.integers(1, min(12, len(possible))))]


@st.composite
def configs(draw: st.DrawFn, /, **fixed: Any) -> SelectionConfig:
    """Any configuration of a mined round; quarantine is off unless ``fixed`` says otherwise."""
    start = draw(st.integers(0, 2))
    per_group = draw(st.integers(2, 5))
    sample_cap, identity_cap = draw(_cap), draw(_cap)
    values: dict[str, Any] = {
        "strategy": draw(st.sampled_from(STRATEGIES)),
        "positive": draw(st.sampled_from(["random", "hardest", "easiest"])),
        "identities_per_group": per_group,
        "samples_per_identity": draw(st.integers(1, 4)),
        "random_fraction": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        "composition": draw(st.sampled_from(COMPOSITIONS)),
        "composition_width": draw(st.integers(2, 5)),
        "margin": draw(st.sampled_from([0.25, 0.75])),
        "window_start": start,
        "window_stop": start + per_group - 1 + draw(st.integers(0, 2)),
        "distance_cutoff": draw(st.sampled_from([0.25, 0.5, 1.0])),
        "distance_limit": draw(st.sampled_from([1.0, 1.5, 2.0])),  # squares are met exactly
        "simans_sharpness": draw(st.sampled_from([0.5, 20.0])),
        "simans_offset": draw(st.sampled_from([-0.25, 0.1])),
        "curriculum": CurriculumConfig(start=draw(st.sampled_from([-0.5, 0.0, 0.1]))),
        "guard_positive": draw(st.sampled_from(GUARD_POSITIVES)),
        "max_similarity": draw(st.one_of(st.none(), st.sampled_from([0.5, 1.0]))),
        "absolute_margin": draw(_limit),
        "relative_margin": draw(_limit),
        "duplicate_similarity": draw(st.one_of(st.none(), st.sampled_from([0.5, 1.0]))),
        "min_uses_per_sample": draw(st.integers(0, min(2, sample_cap or 2, identity_cap or 2))),
        "min_uses_per_identity": draw(st.integers(0, min(3, identity_cap or 3))),
        "max_uses_per_sample": sample_cap,
        "max_uses_per_identity": identity_cap,
        "underfill": draw(st.sampled_from(["drop", "relax", "random"])),
        "num_candidates": draw(st.sampled_from([8, 40])),
        "quarantine": QuarantineConfig(policy="off"),
    }
    return SelectionConfig(**(values | fixed))
