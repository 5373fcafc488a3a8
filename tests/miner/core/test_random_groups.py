"""Random rounds: the same promises without embeddings."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import SelectionConfig, choose_anchors, random_groups, select_groups
from miner.errors import SelectionError
from miner.types import IdentityTable
from tests.miner.core.selection_oracles import make_world, same_groups, search, triplets_of

cap = st.one_of(st.none(), st.integers(1, 3))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=8).filter(lambda sizes: max(sizes) >= 2),
    st.integers(1, 25),
    cap,
    cap,
    st.integers(0, 1000),
)
def test_random_rounds_keep_the_same_promises(sizes, budget, sample_cap, identity_cap, seed):
    table = make_world(seed, sizes).identities
    config = SelectionConfig(
        groups_per_round=budget, max_uses_per_sample=sample_cap, max_uses_per_identity=identity_cap
    )
    selection = random_groups(table, config, seed=seed, round_id=2)
    groups = selection.groups
    anchors = choose_anchors(table, config, seed=seed, round_id=2)
    leaders = groups.row_ids_R[groups.row_offsets_G1[:-1]]
    assert set(leaders.tolist()) <= set(anchors.tolist())
    for anchor, positive, negative, tier in triplets_of(groups):
        assert anchor != positive
        own, other = table.identity_ids_N[[anchor, negative]]
        assert own == table.identity_ids_N[positive] != other
        assert tier == 2
    assert selection.report.sample_exposure.max <= (sample_cap or 10**9)
    assert selection.report.identity_exposure.max <= (identity_cap or 10**9)
    assert np.isnan(groups.similarities_ap_T).all()
    assert np.isnan(groups.similarities_an_T).all()
    assert selection.report.violating_fraction is None


def test_random_rounds_repeat_and_differ_by_seed_and_round():
    table = make_world(0, [4] * 30).identities
    config = SelectionConfig(groups_per_round=50, strategy="random")
    first = random_groups(table, config, seed=1, round_id=1).groups
    assert same_groups(first, random_groups(table, config, seed=1, round_id=1).groups)
    for seed, round_id in [(1, 2), (2, 1)]:
        other = random_groups(table, config, seed=seed, round_id=round_id).groups
        assert not np.array_equal(first.row_ids_R, other.row_ids_R)


def test_the_random_strategy_selects_a_random_round():
    world = make_world(0, [4] * 10)
    config = SelectionConfig(strategy="random", num_candidates=5)
    candidates = search(world, world.possible_anchors(), 5)
    arguments = candidates, world.embeddings_ND, world.identities, config
    mined = select_groups(*arguments, seed=1, round_id=2).groups
    drawn = random_groups(world.identities, config, seed=1, round_id=2).groups
    assert same_groups(mined, drawn)


def test_random_rounds_need_a_second_identity():
    table = IdentityTable.from_ids(np.zeros(4, np.int32))
    with pytest.raises(SelectionError, match="a negative needs a second identity"):
        random_groups(table, SelectionConfig(), seed=0, round_id=1)


def test_the_report_of_any_round_is_plain_json():
    world = make_world(4, [3] * 8)
    config = SelectionConfig(num_candidates=21)
    candidates = search(world, world.possible_anchors(), 21)
    arguments = candidates, world.embeddings_ND, world.identities, config
    for selection in (
        select_groups(*arguments, seed=0, round_id=1),
        random_groups(world.identities, config, seed=0, round_id=1),
    ):
        report = dataclasses.asdict(selection.report)
        assert json.loads(json.dumps(report, allow_nan=False)) == report
