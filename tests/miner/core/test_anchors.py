"""Which rows anchor a round."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import SelectionConfig, choose_anchors
from miner.errors import SelectionError
from tests.miner.core.selection_oracles import make_world

sizes_of_identities = st.lists(st.integers(1, 7), min_size=1, max_size=9).filter(
    lambda sizes: max(sizes) >= 2
)


def anchors_of(sizes, round_id, **changes):
    table = make_world(5, sizes).identities
    config = SelectionConfig(**changes)
    return table, choose_anchors(table, config, seed=9, round_id=round_id)


@given(sizes_of_identities, st.integers(1, 30), st.integers(1, 20))
def test_anchors_are_distinct_rows_of_identities_with_a_positive(sizes, budget, round_id):
    table, anchors = anchors_of(sizes, round_id, groups_per_round=budget)
    assert len(np.unique(anchors)) == len(anchors)
    assert len(anchors) == min(budget, sum(size for size in sizes if size >= 2))
    assert (table.sizes_I[table.identity_ids_N[anchors]] >= 2).all()


@given(sizes_of_identities, st.integers(1, 30), st.integers(1, 9))
def test_identities_anchor_alike_unless_they_run_out_of_rows(sizes, budget, round_id):
    table, anchors = anchors_of(sizes, round_id, groups_per_round=budget)
    units = np.bincount(table.identity_ids_N[anchors], minlength=len(sizes))
    most = units.max()
    for size, used in zip(sizes, units, strict=True):
        assert used >= most - 1 or size in {used, 1}


@given(sizes_of_identities, st.integers(1, 30), st.integers(1, 15))
def test_every_row_anchors_once_before_any_row_of_its_identity_does_again(sizes, budget, start):
    table = make_world(5, sizes).identities
    config = SelectionConfig(groups_per_round=budget)
    uses = np.zeros(table.num_rows, np.int64)
    for round_id in range(1, start + 12):
        uses[choose_anchors(table, config, seed=9, round_id=round_id)] += 1
        for identity, size in enumerate(sizes):
            if size >= 2:
                assert np.ptp(uses[table.rows_of(identity)]) <= 1


def test_every_identity_anchors_within_its_share_of_rounds_wherever_one_starts():
    sizes = [2] * 23
    for start in (1, 2, 17):
        seen = set()
        for round_id in range(start, start + math.ceil(23 / 5)):
            table, anchors = anchors_of(sizes, round_id, groups_per_round=5)
            seen |= set(table.identity_ids_N[anchors].tolist())
        assert len(seen) == 23


def test_balance_one_anchors_in_proportion_to_size_and_zero_alike():
    sizes = [4, 40, 400]
    proportional = [44 * size / 444 for size in sizes]
    for balance, expected in [(0.0, [4, 20, 20]), (1.0, proportional)]:
        table, anchors = anchors_of(sizes, 3, groups_per_round=44, balance=balance)
        units = np.bincount(table.identity_ids_N[anchors], minlength=3)
        assert (np.abs(units - expected) < 1).all()


def test_the_cap_on_groups_per_identity_holds():
    table, anchors = anchors_of([9, 9, 2], 1, groups_per_round=50, max_groups_per_identity=3)
    assert np.bincount(table.identity_ids_N[anchors]).tolist() == [3, 3, 2]


@settings(max_examples=60, deadline=None)
@given(
    sizes_of_identities,
    st.integers(1, 30),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 9),
)
def test_every_row_anchors_within_as_many_rounds_as_its_identity_needs(
    sizes, budget, floor, balance, start
):
    table = make_world(5, sizes).identities
    config = SelectionConfig(
        groups_per_round=budget, min_groups_per_identity=floor, balance=balance
    )
    rounds = [choose_anchors(table, config, seed=9, round_id=r) for r in range(start, start + 8)]
    units = [np.bincount(table.identity_ids_N[a], minlength=len(sizes)) for a in rounds]
    for identity, size in enumerate(sizes):
        least = min(int(used[identity]) for used in units)
        needed = math.ceil(size / least) if least else 99
        if size >= 2 and needed <= 8:
            seen = np.concatenate(rounds[:needed])
            assert set(table.rows_of(identity).tolist()) <= set(seen.tolist())


@given(sizes_of_identities, st.integers(1, 60), st.integers(0, 4), st.integers(1, 9))
def test_floors_of_anchors_are_met_as_far_as_an_identity_has_rows(sizes, budget, floor, round_id):
    table, anchors = anchors_of(
        sizes, round_id, groups_per_round=budget, min_groups_per_identity=floor, balance=1.0
    )
    units = np.bincount(table.identity_ids_N[anchors], minlength=len(sizes))
    least = [min(floor, size) if size >= 2 else 0 for size in sizes]
    assert units.sum() == min(budget, sum(size for size in sizes if size >= 2))
    if budget >= sum(least):
        assert (units >= least).all()


def test_a_floor_gives_small_identities_more_than_their_proportion():
    table, anchors = anchors_of(
        [2, 2, 200], 3, groups_per_round=40, balance=1.0, min_groups_per_identity=2
    )
    assert np.bincount(table.identity_ids_N[anchors]).tolist() == [2, 2, 36]


def test_seeds_and_rounds_give_other_orders():
    table = make_world(5, [3] * 40).identities
    config = SelectionConfig(groups_per_round=60)
    chosen = [choose_anchors(table, config, seed=s, round_id=r) for s in (0, 1) for r in (1, 2)]
    assert len({tuple(anchors.tolist()) for anchors in chosen}) == 4
    again = choose_anchors(table, config, seed=0, round_id=1)
    assert np.array_equal(again, chosen[0])


def test_a_round_mixes_identities_from_the_start():
    table, anchors = anchors_of([50] * 20, 1, groups_per_round=400)
    assert len(np.unique(table.identity_ids_N[anchors[:20]])) > 8


def test_a_catalog_of_single_samples_has_no_anchor():
    table = make_world(5, [1, 1, 1]).identities
    with pytest.raises(SelectionError, match="none of the 3 identities has two samples"):
        choose_anchors(table, SelectionConfig(), seed=0, round_id=1)


def units_under(losses, **changes):
    table = make_world(5, [200] * len(losses)).identities
    config = SelectionConfig(**{"groups_per_round": 120, **changes})
    given = np.array(losses, np.float32)
    anchors = choose_anchors(table, config, seed=9, round_id=3, losses_I=given)
    return np.bincount(table.identity_ids_N[anchors], minlength=len(losses))


def test_shares_follow_reported_losses_within_bounds():
    assert units_under([1.0, 2.0, 3.0, 2.0]).tolist() == [15, 30, 45, 30]
    assert units_under([1.0, 2.0, 3.0, 2.0], difficulty=0.0).tolist() == [30, 30, 30, 30]
    assert units_under([2.0, 2.0, np.nan, np.nan]).tolist() == [30, 30, 30, 30]
    # At most four times the mean of the others' share, at least a quarter.
    hopeless = units_under([1e9, *[0.0] * 7])
    assert hopeless[0] == pytest.approx(16 * hopeless[1:].mean(), rel=0.2)
    assert (hopeless[1:] > 0).all(), "what is learnt is not forgotten"


def test_losses_of_nothing_change_nothing():
    table, plain = anchors_of([5, 5, 5], 2, groups_per_round=7)
    for losses in ([np.nan] * 3, [0.0] * 3):
        config = SelectionConfig(groups_per_round=7)
        given = np.array(losses, np.float32)
        steered = choose_anchors(table, config, seed=9, round_id=2, losses_I=given)
        assert steered.tolist() == plain.tolist()
