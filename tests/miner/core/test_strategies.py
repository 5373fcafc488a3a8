"""How anchors prefer candidates: by hand on the circle, and the odds of the draws."""

import math
from collections import Counter

import numpy as np
import pytest

from miner.core import CurriculumConfig, QuarantineConfig, SelectionConfig, select_groups
from miner.types import Candidates, IdentityTable
from tests.miner.core.selection_oracles import World, circle, search, triplets_of

NO_QUARANTINE = QuarantineConfig(policy="off")


def config_of(strategy, **changes):
    return SelectionConfig(strategy=strategy, quarantine=NO_QUARANTINE, **changes)


def negatives_of(world, config, *, seed=11, round_id=4):
    groups = select_groups(
        search(world, [0], config.num_candidates),
        world.embeddings_ND,
        world.identities,
        config,
        seed=seed,
        round_id=round_id,
    ).groups
    return [(n, tier) for _, _, n, tier in triplets_of(groups)]


def crowd(degrees, num_anchors):
    """Many anchors at 0 degrees, their positives at 90, and one negative at each angle."""
    angles = np.radians([*[0, 90] * num_anchors, *degrees])
    embeddings = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
    embeddings = np.concatenate((embeddings, np.zeros((len(angles), 1), np.float32)), 1)
    ids = [*np.repeat(np.arange(num_anchors), 2), *range(num_anchors, num_anchors + len(degrees))]
    anchors = np.arange(0, 2 * num_anchors, 2)
    rows = np.arange(len(degrees)) + 2 * num_anchors
    similarities = np.cos(np.radians(degrees)).astype(np.float32)
    order = np.argsort(-similarities, kind="stable")
    return World(IdentityTable.from_ids(np.array(ids, np.int32)), embeddings), Candidates(
        anchors,
        np.tile(rows[order], (num_anchors, 1)),
        np.tile(similarities[order], (num_anchors, 1)),
    )


def drawn_sets(world, candidates, config, num_anchors):
    """Of every anchor the negatives' places among the angles."""
    groups = select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=3, round_id=1
    ).groups
    sets = {}
    for a, _, n, _ in triplets_of(groups):
        sets.setdefault(a, set()).add(n - 2 * num_anchors)
    return Counter(frozenset(drawn) for drawn in sets.values())


def check_odds(weights, drawn, num_anchors, per_group):
    """Draws without replacement in proportion to the weights, within four standard deviations."""
    num = len(weights)
    total = sum(weights)
    for i in range(num):
        chance = weights[i] / total
        if per_group == 2:
            chance += sum(
                weights[j] / total * weights[i] / (total - weights[j])
                for j in range(num)
                if j != i and total > weights[j]
            )
        found = sum(count for chosen, count in drawn.items() if i in chosen) / num_anchors
        assert abs(found - chance) <= 4 * math.sqrt(chance * (1 - chance) / num_anchors) + 1e-9


DEGREES = [25, 40, 55, 70, 85, 120]


@pytest.mark.parametrize("per_group", [1, 2])
def test_simans_draws_in_proportion_to_its_weights(per_group):
    num_anchors = 1500
    world, candidates = crowd(DEGREES, num_anchors)
    config = config_of(
        "simans",
        simans_sharpness=4.0,
        simans_offset=0.5,
        identities_per_group=per_group + 1,
        samples_per_identity=1,
    )
    weights = [math.exp(-4 * (math.cos(math.radians(x)) - 0.5) ** 2) for x in DEGREES]
    drawn = drawn_sets(world, candidates, config, num_anchors)
    check_odds(weights, drawn, num_anchors, per_group)


@pytest.mark.parametrize("per_group", [1, 2])
def test_distance_weighted_draws_in_inverse_proportion_to_the_density_of_distances(per_group):
    num_anchors = 1500
    world, candidates = crowd(DEGREES, num_anchors)
    wide = np.concatenate((world.embeddings_ND, np.zeros((len(world.embeddings_ND), 5))), 1)
    world = World(world.identities, wide.astype(np.float32))  # 8 dimensions
    config = config_of(
        "distance_weighted",
        distance_cutoff=0.6,
        distance_limit=1.4,
        identities_per_group=per_group + 1,
        samples_per_identity=1,
    )
    distances = [2 * math.sin(math.radians(x) / 2) for x in DEGREES]
    clipped = [max(d, 0.6) for d in distances]
    weights = [d**-6 * (1 - d * d / 4) ** -2.5 for d in clipped]
    weights[-1] = 0.0  # 1.73 away
    drawn = drawn_sets(world, candidates, config, num_anchors)
    check_odds(weights, drawn, num_anchors, per_group)


def test_very_sharp_simans_takes_the_candidate_of_the_best_hardness_first():
    # The positive at 60 degrees: s_ap = 0.5; hardness -0.1 is cos 66.4.
    world = circle([0, 60, 20, 50, 66, 80], [0, 0, 1, 2, 3, 4])
    config = config_of("simans", simans_sharpness=1e6, identities_per_group=2, num_candidates=4)
    assert negatives_of(world, config) == [(4, 0)]


def test_distance_weighted_wants_nothing_beyond_its_limit_and_relaxes_to_the_nearest_of_it():
    # Distances 0.35, 1.45, 1.73 and 2: with a limit of 1.4 only the first.
    world = circle([0, 90, 20, 180, 120, 93], [0, 0, 1, 2, 3, 4])
    config = config_of("distance_weighted", identities_per_group=4, num_candidates=4)
    assert negatives_of(world, config) == [(2, 0), (5, 1), (4, 1)]


def test_an_opposite_point_has_a_finite_weight():
    world = circle([0, 90, 180], [0, 0, 1])
    config = config_of(
        "distance_weighted", distance_limit=2.0, identities_per_group=2, num_candidates=3
    )
    assert negatives_of(world, config) == [(2, 0)]


def test_a_curriculum_takes_the_hardness_nearest_to_its_target():
    # s_ap = cos 60 = 0.5; hardness of 40, 50, 70 and 80 degrees: 0.27, 0.14, -0.16, -0.33.
    world = circle([0, 60, 40, 50, 70, 80], [0, 0, 1, 2, 3, 4])
    expected = {-0.35: [5, 4], -0.1: [4, 5], 0.1: [3, 2], 0.3: [2, 3]}
    for start, rows in expected.items():
        config = config_of(
            "curriculum",
            curriculum=CurriculumConfig(start=start),
            margin=0.25,
            identities_per_group=3,
            num_candidates=4,
        )
        assert {n for n, _ in negatives_of(world, config)} == set(rows)


def test_a_curriculum_wants_nothing_beyond_a_margin_from_its_target():
    world = circle([0, 60, 40, 80], [0, 0, 1, 2])
    config = config_of(
        "curriculum",
        curriculum=CurriculumConfig(start=-0.3),
        margin=0.1,
        identities_per_group=3,
        num_candidates=2,
    )
    assert negatives_of(world, config) == [(3, 0), (2, 1)]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        # s_ap = 0.5; hardness 0.25, 0, -0.25 and -0.5 of rows 2 to 5
        ({"strategy": "curriculum", "curriculum": CurriculumConfig(start=0.0)}, {2, 3, 4}),
        ({"strategy": "curriculum", "curriculum": CurriculumConfig(start=-0.5)}, {4, 5}),
        ({"strategy": "semi_hard"}, set()),
        ({"strategy": "semi_hard", "margin": 0.375}, {4}),
        ({"strategy": "distance_weighted", "distance_limit": 1.0}, {2, 3}),
        ({"strategy": "distance_weighted", "distance_limit": 2**0.5}, {2, 3, 4, 5}),
    ],
)
def test_the_edges_of_bands_belong_to_them_or_not_as_documented(changes, wanted):
    vectors = [(1, 0), (0.5, 0.5), (0.75, 0), (0.5, 0), (0.25, 0), (0, 0.5)]
    ids = np.array([0, 0, 1, 2, 3, 4], np.int32)
    world = World(IdentityTable.from_ids(ids), np.array(vectors, np.float32))
    config = SelectionConfig(
        **{"margin": 0.25, "identities_per_group": 5, "num_candidates": 4}
        | {"quarantine": NO_QUARANTINE}
        | changes
    )
    assert {n for n, tier in negatives_of(world, config) if tier == 0} == wanted


@pytest.mark.parametrize("rule", ["chosen", "min", "mean", "max"])
def test_the_margin_guard_looks_at_the_positive_that_its_rule_names(rule):
    # Positives at 20, 60 and 80 degrees: 0.94, 0.5 and 0.17, mean 0.54. Hardest is chosen: 80.
    world = circle([0, 20, 60, 80, 10, 30, 58, 65, 85], [0, 0, 0, 0, 1, 2, 3, 4, 5])
    config = config_of(
        "hardest",
        positive="hardest",
        guard_positive=rule,
        absolute_margin=0.0,
        identities_per_group=6,
        num_candidates=5,
    )
    left = {"max": [5, 6, 7, 8], "mean": [6, 7, 8], "chosen": [8], "min": [8]}
    assert [n for n, _ in negatives_of(world, config)] == left[rule]
