"""Fewest uses of samples and identities as negatives."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from miner.core import QuarantineConfig, SelectionConfig, select_groups
from miner.core.positives import choose_positives
from miner.errors import SelectionError
from miner.types import IdentityTable
from tests.miner.core.selection_cases import configs, worlds
from tests.miner.core.selection_oracles import (
    World,
    by_hand,
    circle,
    make_world,
    search,
    triplets_of,
)
from tests.miner.core.strategy_oracles import mined_negatives

NO_QUARANTINE = QuarantineConfig(policy="off")


def run(world, config, candidates):
    return select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=11, round_id=4
    )


@settings(max_examples=100, deadline=None)
@given(
    worlds(),
    configs(underfill="relax", random_fraction=0.0, max_uses_per_sample=3),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_who_is_below_its_floor_is_wanted_by_no_anchor_that_has_room(
    world_and_anchors, config, per_sample, per_identity
):
    assume(per_sample or per_identity)
    world, anchors = world_and_anchors
    config = config.model_copy(
        update={
            "min_uses_per_sample": per_sample,
            "min_uses_per_identity": min(per_identity, config.max_uses_per_identity or 3),
        }
    )
    candidates = search(world, anchors, config.num_candidates)
    positives, _ = choose_positives(
        world.embeddings_ND, world.identities, np.array(anchors), config, seed=11, round_id=4
    )
    bands = mined_negatives(
        world,
        candidates,
        dict(zip(anchors, positives.tolist(), strict=True)),
        config,
        seed=11,
        round_id=4,
    ).bands
    try:
        triplets = triplets_of(run(world, config, candidates).groups)
    except SelectionError:
        triplets = []
    wanted = [(a, n) for a, _, n, tier in triplets if tier == 0]
    used_rows = [n for _, n in wanted]
    used_ids = [world.identity(n) for n in used_rows]
    for anchor in anchors:
        held = [world.identity(n) for a, n in wanted if a == anchor]
        if len(held) == config.negatives_per_group:
            continue
        for row in bands[anchor]:
            identity = world.identity(row)
            if identity in held:
                continue
            full = used_ids.count(identity) >= (config.max_uses_per_identity or 10**9)
            assert full or used_rows.count(row) >= config.min_uses_per_sample
            assert used_rows.count(row) == 3 or (
                used_ids.count(identity) >= config.min_uses_per_identity
            )


def star():
    """Anchors of ten pairs that all want row 0 first, which stands in their middle."""
    rng = np.random.default_rng(1)
    embeddings = rng.normal(scale=0.1, size=(24, 40)).astype(np.float32)
    embeddings[:, 0] = 1.0
    embeddings[0, 1:] = 0.0
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ids = np.array([0, *np.repeat(np.arange(1, 11), 2), 11, 11, 12], np.int32)
    world = World(IdentityTable.from_ids(ids), embeddings)
    return world, search(world, list(range(1, 21)), 22)


def config_of(**changes):
    return SelectionConfig(
        **{
            "strategy": "hardest",
            "identities_per_group": 2,
            "num_candidates": 22,
            "quarantine": NO_QUARANTINE,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "floor", "of_samples"),
    [
        ({"min_uses_per_identity": 1}, 1, False),
        ({"min_uses_per_identity": 1, "max_uses_per_identity": 2}, 1, False),
        ({"min_uses_per_sample": 1, "identities_per_group": 4}, 1, True),
        ({"min_uses_per_sample": 2, "identities_per_group": 4}, 2, True),
    ],
)
def test_floors_are_met_where_there_is_room_and_what_is_left_goes_to_the_hub(
    changes, floor, of_samples
):
    world, candidates = star()
    without = {k: v for k, v in changes.items() if not k.startswith("min")}
    plain = run(world, config_of(**without), candidates).report
    report = run(world, config_of(**changes), candidates).report
    name = "sample_exposure" if of_samples else "identity_exposure"
    exposures = [getattr(r, name) for r in (plain, report)]
    assert exposures[0].min == 0
    assert exposures[1].min == floor
    assert list(report.floors_unmet.values()) == [0]
    assert report.num_triplets == plain.num_triplets
    if "max_uses_per_identity" not in changes:
        assert exposures[0].max >= 18 > exposures[1].max > floor


def test_floors_that_cannot_be_met_are_counted():
    world, candidates = star()
    report = run(world, config_of(min_uses_per_identity=3), candidates).report
    # 20 negatives for 13 identities that should have three each
    assert report.floors_unmet["min_uses_per_identity"] >= 13 - 20 // 3
    assert report.num_triplets == 20
    report = run(world, config_of(min_groups_per_identity=2), candidates).report
    # Identity 11 has two samples but no anchor; the single samples count as none.
    assert report.floors_unmet == {"min_groups_per_identity": 1}


def test_under_a_floor_an_identity_goes_to_the_anchor_for_which_it_is_hardest():
    # Both anchors, rows 0 and 2, want row 4 at 30 degrees first: hardness 0.37 and -0.18.
    world = circle([0, 60, 65, 70, 30, -32, 102], [0, 0, 1, 1, 2, 3, 4])
    candidates = by_hand(world, {2: [4, 6], 0: [4, 5]})
    for changes, expected in (
        ({}, {(0, 4), (2, 4)}),
        ({"min_uses_per_identity": 1}, {(0, 4), (2, 6)}),
        ({"min_uses_per_sample": 1}, {(0, 4), (2, 6)}),
    ):
        triplets = triplets_of(run(world, config_of(**changes), candidates).groups)
        assert {(a, n) for a, _, n, _ in triplets} == expected


@pytest.mark.parametrize(
    "floor", [{"min_uses_per_identity": 1}, {"min_uses_per_sample": 1}, {"min_uses_per_sample": 9}]
)
def test_with_floors_too_the_report_counts_all_that_guards_and_strategy_removed(floor):
    world, candidates = star()
    changes = {"strategy": "semi_hard", "max_similarity": 0.7, "margin": 0.1}
    plain = run(world, config_of(**changes), candidates).report.dropped
    assert plain["max_similarity"] > 0
    assert plain["outside_strategy"] > 0
    assert run(world, config_of(**changes, **floor), candidates).report.dropped == plain


def test_floors_above_caps_are_refused():
    for name in ("groups_per_identity", "uses_per_sample", "uses_per_identity"):
        with pytest.raises(ValueError, match=rf"min_{name}=3 is above max_{name}=2"):
            SelectionConfig(**{f"min_{name}": 3, f"max_{name}": 2})


def test_a_dominating_identity_does_not_keep_small_ones_below_their_floor():
    world = make_world(2, [60, *[2] * 12], dim=4)
    config = config_of(min_uses_per_identity=2, num_candidates=84, max_uses_per_identity=20)
    report = run(world, config, search(world, world.possible_anchors(), 84)).report
    assert report.identity_exposure.min >= 2
    assert report.identity_exposure.max <= 20
