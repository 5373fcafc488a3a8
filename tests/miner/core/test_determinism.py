"""The same inputs give the same groups, whatever the order of work; other seeds give others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import QuarantineConfig, SelectionConfig, mine_round, select_groups
from miner.errors import SelectionError
from tests.miner.core.selection_cases import COMPOSITIONS, STRATEGIES, configs, worlds
from tests.miner.core.selection_oracles import make_world, same_groups, search, triplets_of

NO_QUARANTINE = QuarantineConfig(policy="off")


def run(world, config, candidates, *, seed=11, round_id=4):
    return select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=seed, round_id=round_id
    )


def run_or_explain(world, config, candidates):
    try:
        return run(world, config, candidates)
    except SelectionError as error:
        return str(error)


@settings(max_examples=100, deadline=None)
@given(
    worlds(),
    st.one_of(configs(), configs(quarantine=QuarantineConfig(max_false_share=0.3))),
    st.randoms(use_true_random=False),
)
def test_the_order_of_anchors_has_no_effect_not_even_on_the_order_of_groups(
    world_and_anchors, config, shuffler
):
    world, anchors = world_and_anchors
    shuffled = list(anchors)
    shuffler.shuffle(shuffled)
    first, second = (
        run_or_explain(world, config, search(world, order, config.num_candidates))
        for order in (anchors, shuffled)
    )
    if isinstance(first, str):
        assert first == second
    else:
        assert same_groups(first.groups, second.groups)
        assert first.report == second.report


BLOCKS = {
    "miner.core.proposals._BLOCK_ENTRIES": 70,
    "miner.core.pool._BLOCK_ENTRIES": 70,
    "miner.core.compose._BLOCK_FLOATS": 200,
    "miner.core.suspicion._BLOCK": 3,
    "miner.core.groups._BLOCK": 20,
    "miner.core.assign._BLOCK": 5,
    "miner.core.widen._BLOCK_ENTRIES": 50,
    "miner.core.shortfalls._BLOCK_ENTRIES": 70,
    "miner.core.positives._BLOCK_PAIRS": 10,
    "miner.core.similarities._BLOCK_FLOATS": 20,
}


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_blocks_of_work_do_not_show(strategy, composition, monkeypatch):
    world = make_world(3, [4] * 12, num_copies=2)
    config = SelectionConfig(
        strategy=strategy,
        composition=composition,
        margin=0.5,
        random_fraction=0.2,
        guard_positive="mean",
        absolute_margin=0.125,
        window_stop=6,
        min_uses_per_sample=1,
        max_uses_per_sample=2,
        underfill="drop" if strategy == "semi_hard" else "random",
        groups_per_round=40,
        look_ahead=6,
        num_candidates=24,
    )

    def mine():
        return mine_round(
            lambda ids, k: search(world, ids.tolist(), k),
            world.embeddings_ND,
            world.identities,
            config,
            seed=5,
            round_id=2,
        )

    whole = mine()
    assert whole.report.shortfalls
    for name, size in BLOCKS.items():
        monkeypatch.setattr(name, size)
    parts = mine()
    assert same_groups(parts.groups, whole.groups)
    assert parts.report == whole.report


def lists_of(groups):
    found = {}
    for anchor, _, negative, _ in triplets_of(groups):
        found.setdefault(anchor, []).append(negative)
    return found


@pytest.mark.parametrize("changes", [{}, {"random_fraction": 1.0}])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_seed_or_round_gives_other_groups_and_the_same_gives_the_same(strategy, changes):
    world = make_world(3, [4] * 12)
    config = SelectionConfig(
        strategy=strategy, num_candidates=44, quarantine=NO_QUARANTINE, **changes
    )
    candidates = search(world, world.possible_anchors(), 44)
    first = run(world, config, candidates).groups
    assert same_groups(first, run(world, config, candidates).groups)
    for other in ({"seed": 12}, {"round_id": 5}):
        assert not same_groups(first, run(world, config, candidates, **other).groups)


@pytest.mark.parametrize("strategy", ["rank_window", "distance_weighted", "simans"])
def test_strategies_that_draw_choose_other_negatives_under_another_seed_or_round(strategy):
    # Positives are fixed, so that only the draws of the strategy can differ.
    world = make_world(3, [4] * 12)
    config = SelectionConfig(
        strategy=strategy,
        positive="hardest",
        num_candidates=44,
        simans_sharpness=1.0,
        distance_limit=2.0,
        window_stop=10,
        quarantine=NO_QUARANTINE,
    )
    candidates = search(world, world.possible_anchors(), 44)
    first, seed, round_id = (
        lists_of(run(world, config, candidates, **changes).groups)
        for changes in ({}, {"seed": 12}, {"round_id": 5})
    )
    assert sum(set(first[a]) != set(seed[a]) for a in first) > len(first) / 2
    assert sum(set(first[a]) != set(round_id[a]) for a in first) > len(first) / 2


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_further_anchor_changes_no_draw_of_the_others(strategy, composition):
    world = make_world(3, [4] * 12)
    config = SelectionConfig(
        strategy=strategy,
        composition=composition,
        num_candidates=44,
        margin=0.5,
        quarantine=NO_QUARANTINE,
    )
    anchors = world.possible_anchors()
    everything = lists_of(run(world, config, search(world, anchors, 44)).groups)
    for some in (anchors[::2], anchors[5:6], anchors[3:20]):
        alone = lists_of(run(world, config, search(world, some, 44)).groups)
        assert alone == {anchor: everything[anchor] for anchor in some}


@pytest.mark.parametrize("changes", [{}, {"underfill": "random", "max_uses_per_sample": 2}])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_anchor_that_occurs_twice_gets_two_groups(strategy, changes):
    world = make_world(3, [4] * 12)
    config = SelectionConfig(
        strategy=strategy, num_candidates=44, quarantine=NO_QUARANTINE, **changes
    )
    anchors = world.possible_anchors()[:10]
    groups = run(world, config, search(world, [*anchors, *anchors], 44)).groups
    leaders = groups.row_ids_R[groups.row_offsets_G1[:-1]]
    assert sorted(leaders.tolist()) == sorted([*anchors, *anchors])
    negatives = [n for _, _, n, _ in triplets_of(groups)]
    if changes:
        assert max(negatives.count(n) for n in negatives) <= 2
    else:
        alone = lists_of(run(world, config, search(world, anchors, 44)).groups)
        assert lists_of(groups) == {a: rows * 2 for a, rows in alone.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_further_candidate_changes_the_order_of_no_other(strategy):
    # The farthest row is taken away; under strategies that look at rows one by one nothing changes
    # for the rest.
    world = make_world(6, [4] * 12)
    config = SelectionConfig(
        strategy=strategy,
        num_candidates=44,
        margin=1.0,
        distance_limit=2.0,
        quarantine=NO_QUARANTINE,
    )
    anchors = world.possible_anchors()
    more = lists_of(run(world, config, search(world, anchors, 44)).groups)
    less = lists_of(run(world, config, search(world, anchors, 43)).groups)
    for anchor, negatives in more.items():
        last = search(world, [anchor], 44).row_ids_AK[0, 43]
        if last not in negatives:
            assert less[anchor] == negatives
    assert np.mean([less[a] == more[a] for a in more]) > 0.8
