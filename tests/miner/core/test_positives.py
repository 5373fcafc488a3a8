"""Which positive an anchor gets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import SelectionConfig
from miner.core.positives import choose_positives, guard_similarities, random_positives
from miner.errors import SelectionError
from miner.types import IdentityTable
from tests.miner.core.selection_oracles import World, guard_similarity, make_world


def pick_by_hand(world: World, anchor: int, config: SelectionConfig) -> int:
    others = [row for row in world.identities.rows_of(world.identity(anchor)) if row != anchor]
    ranked = sorted(others, key=lambda row: (world.similarity(anchor, row), row))
    if config.positive == "hardest":
        return ranked[0]
    if config.positive == "easiest":
        return ranked[-1]
    if config.positive == "hardest_percentile":
        return ranked[math.floor((len(ranked) - 1) * (config.positive_percentile / 100))]
    nearest = world.similarity(anchor, ranked[-1])
    floor = nearest - np.float32(config.margin)
    return next(row for row in ranked if world.similarity(anchor, row) >= floor)


sizes_of_identities = st.lists(st.integers(2, 9), min_size=1, max_size=5)


@pytest.mark.parametrize("positive", ["hardest", "easiest", "semi_hard", "hardest_percentile"])
@settings(max_examples=40)
@given(sizes_of_identities, st.integers(0, 1000), st.sampled_from([0.0, 10.0, 50.0, 75.0, 100.0]))
def test_positives_are_those_found_by_hand(positive, sizes, seed, percentile):
    world = make_world(seed, sizes)
    config = SelectionConfig(positive=positive, positive_percentile=percentile, margin=0.5)
    anchors = np.random.default_rng(seed).permutation(world.identities.num_rows)
    positives, similarities = choose_positives(
        world.embeddings_ND, world.identities, anchors, config, seed=0, round_id=1
    )
    for anchor, found, similarity in zip(anchors, positives, similarities, strict=True):
        assert found == pick_by_hand(world, anchor, config)
        assert similarity == world.similarity(anchor, found)


def test_on_the_unit_circle_the_furthest_sample_is_the_hardest_positive():
    degrees = np.array([0, 10, 80, 30, 200])
    angles = np.radians(degrees)
    embeddings = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
    table = IdentityTable.from_ids(np.array([0, 0, 0, 0, 1], np.int32))
    anchor = np.array([0])
    for positive, expected in [("hardest", 2), ("easiest", 1), ("semi_hard", 3)]:
        config = SelectionConfig(positive=positive, margin=0.2)
        found, similarity = choose_positives(embeddings, table, anchor, config, seed=0, round_id=1)
        assert found.tolist() == [expected]
        assert similarity[0] == pytest.approx(math.cos(angles[expected]), abs=1e-6)


def test_a_random_positive_is_any_other_sample_alike_and_never_the_anchor():
    table = IdentityTable.from_ids(np.array([0, 1, 0, 0, 0, 1], np.int32))
    anchor = np.array([2])
    drawn = [int(random_positives(table, anchor, seed=0, round_id=r)[0]) for r in range(3000)]
    counts = np.bincount(drawn, minlength=6)
    assert counts[[1, 2, 5]].tolist() == [0, 0, 0]
    assert np.abs(counts[[0, 3, 4]] - 1000).max() < 120


def test_a_positive_does_not_depend_on_the_other_anchors():
    world = make_world(1, [5, 6, 7])
    anchors = np.arange(18)
    for positive in ("random", "semi_hard"):
        config = SelectionConfig(positive=positive)
        arguments = world.embeddings_ND, world.identities
        together, _ = choose_positives(*arguments, anchors, config, seed=4, round_id=2)
        alone = [
            choose_positives(*arguments, anchors[a : a + 1], config, seed=4, round_id=2)[0][0]
            for a in range(18)
        ]
        assert together.tolist() == alone


def test_blocks_of_pairs_do_not_show(monkeypatch):
    world = make_world(2, [9, 4, 30])
    anchors, config = np.arange(43), SelectionConfig(positive="hardest")
    whole = choose_positives(
        world.embeddings_ND, world.identities, anchors, config, seed=0, round_id=1
    )
    monkeypatch.setattr("miner.core.positives._BLOCK_PAIRS", 10)
    monkeypatch.setattr("miner.core.similarities._BLOCK_FLOATS", 7)
    parts = choose_positives(
        world.embeddings_ND, world.identities, anchors, config, seed=0, round_id=1
    )
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


@pytest.mark.parametrize("rule", ["min", "mean", "max"])
@settings(max_examples=40)
@given(sizes_of_identities, st.integers(0, 1000))
def test_guard_similarities_are_those_over_all_other_samples(rule, sizes, seed):
    world = make_world(seed, sizes)
    anchors = np.random.default_rng(seed).permutation(world.identities.num_rows)
    found = guard_similarities(world.embeddings_ND, world.identities, anchors, rule)
    expected = [guard_similarity(world, rule, anchor, -1) for anchor in anchors.tolist()]
    assert found.tolist() == expected


def test_an_anchor_without_another_sample_is_named():
    world = make_world(1, [1, 3])
    lonely = int(world.identities.rows_of(0)[0])
    with pytest.raises(SelectionError, match=rf"1 anchors have no other sample.*\[{lonely}\]"):
        random_positives(world.identities, np.array([lonely]), seed=0, round_id=1)


@pytest.mark.parametrize("positive", ["random", "hardest"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_anchors_with_broken_embeddings_are_named(positive, value):
    world = make_world(1, [2, 2])
    broken = world.embeddings_ND.copy()
    rows = world.identities.rows_of(1)
    broken[rows[0]] = value
    config = SelectionConfig(positive=positive)
    with pytest.raises(
        SelectionError, match=rf"NaN or infinite for 2 anchors: rows \[{rows[0]}, {rows[1]}\]"
    ):
        choose_positives(broken, world.identities, np.arange(4), config, seed=0, round_id=1)
