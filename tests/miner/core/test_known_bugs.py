"""Bugs that other miners were found to have; each would fail here."""

import numpy as np
import pytest

from miner.core import History, QuarantineConfig, SelectionConfig, mine_round, select_groups
from miner.errors import SelectionError
from miner.types import Candidates, IdentityTable
from tests.miner.core.selection_oracles import (
    World,
    by_hand,
    circle,
    make_world,
    search,
    triplets_of,
)

NO_QUARANTINE = QuarantineConfig(policy="off")


def run(world, config, candidates):
    return select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=11, round_id=4
    )


def test_pairs_of_samples_get_no_negative_of_their_own_identity_and_never_the_anchor_itself():
    # Identities are pairs, and the search has not left anything out: each anchor finds itself and
    # its partner first.
    world = make_world(1, [2] * 10, dim=4)
    rows = list(range(20))
    config = SelectionConfig(strategy="hardest", num_candidates=20, quarantine=NO_QUARANTINE)
    selection = run(world, config, by_hand(world, dict.fromkeys(rows, rows)))
    assert selection.report.dropped["same_identity"] == 40
    assert selection.report.num_triplets == 60
    for anchor, _, negative, _ in triplets_of(selection.groups):
        assert world.identity(anchor) != world.identity(negative)


def test_a_relative_margin_lowers_the_threshold_when_the_positive_is_on_the_other_side():
    # s_ap = cos 120 = -0.5. With 5 % the threshold is -0.525, not 0.95 * -0.5 = -0.475.
    world = circle([0, 120, 119, 123], [0, 0, 1, 2])
    config = SelectionConfig(
        strategy="hardest", relative_margin=0.05, identities_per_group=2, num_candidates=2
    )
    selection = run(world, config, search(world, [0], 2))
    assert [n for _, _, n, _ in triplets_of(selection.groups)] == [3]
    assert selection.report.dropped["relative_margin"] == 1


@pytest.mark.parametrize("rule", ["min", "mean", "max"])
def test_a_relative_margin_lowers_the_threshold_of_every_rule_for_the_positive(rule):
    # Both positives at s_ap = -0.5, so that every rule looks at the same number.
    world = circle([0, 120, 240, 119, 123], [0, 0, 0, 1, 2])
    config = SelectionConfig(
        strategy="hardest",
        relative_margin=0.05,
        guard_positive=rule,
        identities_per_group=2,
        num_candidates=2,
    )
    selection = run(world, config, search(world, [0], 2))
    assert [n for _, _, n, _ in triplets_of(selection.groups)] == [4]


def test_positives_and_negatives_of_every_tier_are_scored_with_one_similarity():
    # Vectors of any length: a cosine on one side and an inner product on the other would show.
    world = make_world(6, [3] * 12, dim=4)
    config = SelectionConfig(
        strategy="semi_hard",
        margin=0.25,
        random_fraction=0.3,
        look_ahead=4,
        momentum_rounds=1,
        num_candidates=6,
        groups_per_round=30,
        quarantine=NO_QUARANTINE,
    )
    tiers, earlier = set(), ()
    for round_id in (1, 2):
        groups = mine_round(
            lambda ids, k: search(world, ids.tolist(), k),
            world.embeddings_ND,
            world.identities,
            config,
            seed=3,
            round_id=round_id,
            history=History(earlier=earlier),
        ).groups
        earlier = (groups,)
        columns = zip(groups.similarities_ap_T, groups.similarities_an_T, strict=True)
        for (a, p, n, tier), (s_ap, s_an) in zip(triplets_of(groups), columns, strict=True):
            assert (s_ap, s_an) == (world.similarity(a, p), world.similarity(a, n))
            tiers.add(tier)
    assert tiers == {0, 1, 2}


def test_too_few_candidates_are_no_negatives_at_all_rather_than_the_last_row():
    world = make_world(4, [3] * 8)
    last = world.identities.num_rows - 1
    anchors = [a for a in world.possible_anchors() if world.identity(a) != world.identity(last)]
    rows = np.full((len(anchors), 6), -1, np.int64)
    similarities = np.full((len(anchors), 6), -np.inf, np.float32)
    found = search(world, anchors, 1)
    rows[:, :1], similarities[:, :1] = found.row_ids_AK, found.similarities_AK
    config = SelectionConfig(strategy="hardest", num_candidates=6, quarantine=NO_QUARANTINE)
    selection = run(world, config, Candidates(found.anchor_ids_A, rows, similarities))
    expected = dict(zip(anchors, found.row_ids_AK[:, 0].tolist(), strict=True))
    assert {a: n for a, _, n, _ in triplets_of(selection.groups)} == expected
    assert selection.report.negatives_missing == 2 * len(anchors)
    assert selection.report.shortfalls == {"candidates": len(anchors)}
    assert np.isfinite(selection.groups.similarities_an_T).all()


def test_more_candidates_than_the_gallery_holds_leave_no_trace_of_the_padding():
    world = make_world(1, [2, 1])
    config = SelectionConfig(strategy="hardest", num_candidates=50, quarantine=NO_QUARANTINE)
    selection = run(world, config, search(world, world.possible_anchors(), 50))
    assert (selection.groups.row_ids_R >= 0).all()
    assert selection.groups.num_triplets == 2
    assert selection.report.negatives_missing == 4


def test_missing_negatives_are_never_filled_with_rows_that_may_be_positives():
    world = make_world(2, [6, 1, 1])
    config = SelectionConfig(
        strategy="hardest", underfill="random", num_candidates=8, quarantine=NO_QUARANTINE
    )
    anchors = world.possible_anchors()
    selection = run(world, config, search(world, anchors, 8))
    assert selection.report.num_triplets == 2 * len(anchors)
    for anchor, _, negative, _ in triplets_of(selection.groups):
        assert world.identity(anchor) != world.identity(negative)


def test_caps_and_floors_keep_hubs_from_being_all_the_negatives():
    # One sample stands in the middle of thirty identities, nearest to everything.
    rng = np.random.default_rng(0)
    embeddings = rng.normal(scale=0.1, size=(91, 100)).astype(np.float32)
    embeddings[:, 0], embeddings[0, 1:] = 1.0, 0.0
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ids = np.repeat(np.arange(31, dtype=np.int32), [1, *[3] * 30])
    world = World(IdentityTable.from_ids(ids), embeddings)
    candidates = search(world, world.possible_anchors(), 90)
    reports = {}
    for name, bounds in {
        "none": {},
        "caps": {"max_uses_per_sample": 4, "max_uses_per_identity": 12},
        "floors": {"min_uses_per_sample": 1, "max_uses_per_sample": 4},
    }.items():
        config = SelectionConfig(
            strategy="hardest", num_candidates=90, quarantine=NO_QUARANTINE, **bounds
        )
        reports[name] = run(world, config, candidates).report
        assert reports[name].num_triplets == 270
    exposures = {name: report.sample_exposure for name, report in reports.items()}
    assert exposures["none"].max == 90
    assert exposures["none"].gini > 0.39
    assert exposures["none"].unused > 0.04
    assert exposures["caps"].max == exposures["floors"].max == 4
    assert exposures["caps"].gini < exposures["none"].gini / 2
    assert exposures["floors"].unused == 0
    assert reports["floors"].floors_unmet == {"min_uses_per_sample": 0}


@pytest.mark.parametrize("changes", [{"max_similarity": -0.99}, {"absolute_margin": 9.0}])
def test_everything_filtered_out_is_an_error_that_says_by_what(changes):
    world = make_world(4, [3] * 8)
    config = SelectionConfig(
        strategy="hardest", num_candidates=21, quarantine=NO_QUARANTINE, **changes
    )
    shifted = World(world.identities, np.abs(world.embeddings_ND))
    (rule,) = changes
    with pytest.raises(SelectionError, match=rf"no group could be made.*{rule} \d+"):
        run(shifted, config, search(shifted, world.possible_anchors(), 21))


@pytest.mark.parametrize("strategy", ["hardest", "distance_weighted", "simans"])
def test_vectors_of_any_length_give_no_nan(strategy):
    world = make_world(4, [3] * 8)
    long = World(world.identities, world.embeddings_ND * np.float32(8))
    config = SelectionConfig(strategy=strategy, num_candidates=21, quarantine=NO_QUARANTINE)
    selection = run(long, config, search(long, long.possible_anchors(), 21))
    assert selection.report.num_triplets == 72
    assert np.isfinite(selection.groups.similarities_an_T).all()
