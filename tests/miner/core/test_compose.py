"""How the identities of a group lie to each other."""

import numpy as np
import pytest

from miner.core import QuarantineConfig, SelectionConfig, select_groups
from miner.types import IdentityTable
from tests.miner.core.selection_oracles import World, circle, make_world, search, triplets_of


def negatives_of(world, composition, **changes):
    config = SelectionConfig(
        **{
            "strategy": "hardest",
            "composition": composition,
            "quarantine": QuarantineConfig(policy="off"),
        }
        | changes
    )
    groups = select_groups(
        search(world, [0], config.num_candidates),
        world.embeddings_ND,
        world.identities,
        config,
        seed=1,
        round_id=1,
    ).groups
    return {n for _, _, n, _ in triplets_of(groups)}


# The anchor at 0 degrees; identities in the order of the strategy are at 10, -12, 30, -40 and 95.
SKY = circle([0, 90, 10, -12, 30, -40, 95], [0, 0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("composition", "num_negatives", "expected"),
    [
        ("star", 2, {2, 3}),
        ("chain", 2, {2, 4}),  # 30 is nearer to 10 than -12 is
        ("community", 2, {2, 4}),
        ("diverse", 2, {2, 6}),  # 95 is the farthest from 10
        ("chain", 3, {2, 4, 3}),  # from 30 on to -12: 42 degrees; to 95: 65
        ("diverse", 3, {2, 6, 5}),  # -40 is 50 from 10; 30 is 20
    ],
)
def test_compositions_take_the_identities_that_a_reader_takes(composition, num_negatives, expected):
    found = negatives_of(SKY, composition, identities_per_group=num_negatives + 1, num_candidates=5)
    assert found == expected


def test_what_lies_outside_the_strategy_is_not_rearranged():
    # Semi-hard is 95 only. Nearest to the band come -40 and 30; from -40 a chain would go to -12.
    found = negatives_of(
        SKY,
        "chain",
        strategy="semi_hard",
        underfill="relax",
        identities_per_group=4,
        num_candidates=5,
    )
    assert found == {6, 5, 4}


def test_a_chain_goes_on_from_the_last_identity_and_a_community_from_all():
    # From 0, 20, 40 a chain goes on to 65 (25 from 40), a community to -22 (42 on average).
    world = circle([0, 90, 0, 20, 40, 65, -22], [0, 0, 1, 2, 3, 4, 5])
    changes = {"identities_per_group": 5, "num_candidates": 5}
    assert negatives_of(world, "chain", **changes) == {2, 3, 4, 5}
    assert negatives_of(world, "community", **changes) == {2, 3, 4, 6}


def test_a_diverse_identity_is_far_from_all_before_it_and_not_only_from_one():
    # 170 is the farthest from 10. Then 165 is far from 10 only; 95 is 75 from the nearer of both.
    world = circle([0, 90, 10, 170, 165, 95, -60], [0, 0, 1, 2, 3, 4, 5])
    found = negatives_of(world, "diverse", identities_per_group=4, num_candidates=5)
    assert found == {2, 3, 5}


def test_only_the_first_identities_of_a_list_are_rearranged():
    found = negatives_of(
        SKY, "diverse", identities_per_group=3, num_candidates=5, composition_width=3
    )
    assert found == {2, 3}  # of 10, -12 and 30 the farthest from 10 is -12


def test_identities_are_compared_by_the_row_that_is_preferred():
    # Identity 1 has rows at 10 and 80; 80 would make 95 its nearest.
    world = circle([0, 170, 10, 80, -12, 95], [0, 0, 1, 1, 2, 3])
    assert negatives_of(world, "chain", identities_per_group=3, num_candidates=4) == {2, 4}


@pytest.mark.parametrize("composition", ["chain", "community", "diverse"])
def test_equal_similarities_keep_the_order_of_the_strategy(composition):
    world = make_world(0, [2, *[1] * 9], dim=2)
    world.embeddings_ND[:] = [1.0, 0.5]
    rows = sorted(row for row in range(11) if world.identity(row) != 0)
    anchor = next(row for row in range(11) if world.identity(row) == 0)
    config = SelectionConfig(
        strategy="hardest",
        composition=composition,
        identities_per_group=5,
        num_candidates=9,
        quarantine=QuarantineConfig(policy="off"),
    )
    groups = select_groups(
        search(world, [anchor], 9),
        world.embeddings_ND,
        world.identities,
        config,
        seed=1,
        round_id=1,
    ).groups
    assert [n for _, _, n, _ in triplets_of(groups)] == rows[:4]


def test_communities_are_tied_where_sums_are_however_they_were_added_up():
    # Two identities have the same similarities to those before them, in another order.
    num_before = 24
    rng = np.random.default_rng(3)
    for _ in range(20):
        shares = rng.integers(-3, 4, num_before) / np.float32(16)
        vectors = np.zeros((num_before + 4, num_before + 1), np.float32)
        vectors[0, -1] = vectors[1, -1] = 1.0
        for j in range(num_before):
            vectors[2 + j, j], vectors[2 + j, -1] = 1.0, 4.0 - j / 16
        # the last two differ in the order of their shares only
        vectors[-2, :-1], vectors[-1, :-1] = shares, shares[::-1]
        ids = np.array([0, 0, *range(1, num_before + 3)], np.int32)
        world = World(IdentityTable.from_ids(ids), vectors)
        found = negatives_of(
            world,
            "community",
            identities_per_group=num_before + 2,
            num_candidates=num_before + 2,
        )
        assert found == set(range(2, num_before + 3))
