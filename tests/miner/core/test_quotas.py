"""Identity-balanced quotas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core.quotas import allocate_quota


def fair_shares(caps, weights, budget, floors=None):
    """The level at which shares spend the budget, by bisection."""
    floors = [0] * len(caps) if floors is None else floors

    def at(level):
        rows = zip(floors, caps, weights, strict=True)
        return [max(floor, min(cap, level * weight)) for floor, cap, weight in rows]

    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if sum(at(level)) < budget else (low, level)
    return at(high)


cases = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12)


@given(cases, st.integers(0, 80), st.integers(1, 40), st.booleans())
def test_shares_are_fair_within_one_unit_and_spend_the_budget(pairs, budget, round_id, equal):
    caps = np.array([cap for cap, _ in pairs])
    weights = np.array([1.0 if equal else weight for _, weight in pairs])
    quota = allocate_quota(caps, weights, budget=budget, round_id=round_id)
    assert quota.units_I.sum() == min(budget, caps.sum())
    assert (quota.units_I <= caps).all()
    shares = fair_shares(caps, weights, budget) if budget < caps.sum() else caps
    for units, share in zip(quota.units_I, shares, strict=True):
        assert math.floor(share - 1e-6) <= units <= math.ceil(share + 1e-6)


@given(cases, st.integers(0, 80), st.booleans())
def test_what_was_handed_out_before_is_the_sum_over_earlier_rounds(pairs, budget, equal):
    caps = np.array([cap for cap, _ in pairs])
    weights = np.array([1.0 if equal else weight for _, weight in pairs])
    total = np.zeros(len(caps), np.int64)
    for round_id in range(1, 12):
        quota = allocate_quota(caps, weights, budget=budget, round_id=round_id)
        assert np.array_equal(quota.before_I, total)
        total += quota.units_I


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
def test_with_a_small_budget_every_identity_has_its_turn_in_any_full_window(
    num_identities, budget, first_round
):
    caps, weights = np.full(num_identities, 3), np.ones(num_identities)
    seen = np.zeros(num_identities, np.int64)
    for round_id in range(first_round, first_round + math.ceil(num_identities / budget)):
        seen += allocate_quota(caps, weights, budget=budget, round_id=round_id).units_I
    assert (seen > 0).all()


def test_unequal_weights_get_their_share_in_the_long_run():
    weights = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    quota = allocate_quota(np.full(5, 100), weights, budget=3, round_id=2001)
    assert np.allclose(quota.before_I / 2000, 3 * weights / 20, atol=0.01)


def test_what_capped_identities_leave_goes_to_the_others():
    caps = np.array([1, 100, 100, 2])
    assert allocate_quota(caps, np.ones(4), budget=43, round_id=1).units_I.tolist() == [
        1,
        20,
        20,
        2,
    ]


def test_a_budget_beyond_all_caps_gives_the_caps():
    quota = allocate_quota(np.array([2, 0, 5]), np.ones(3), budget=99, round_id=4)
    assert quota.units_I.tolist() == [2, 0, 5]
    assert quota.before_I.tolist() == [6, 0, 15]


bounded = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12
)


@settings(max_examples=300)
@given(bounded, st.integers(0, 90), st.integers(1, 40), st.booleans())
def test_with_floors_shares_are_fair_between_bounds_within_one_unit(
    triples, budget, round_id, equal
):
    caps = np.array([cap for cap, _, _ in triples])
    floors = np.array([min(cap, floor) for cap, _, floor in triples])
    weights = np.array([1.0 if equal else weight for _, weight, _ in triples])
    quota = allocate_quota(caps, weights, budget=budget, round_id=round_id, floors_I=floors)
    assert quota.units_I.sum() == min(budget, caps.sum())
    assert (quota.units_I <= caps).all()
    if budget >= floors.sum():
        assert (quota.units_I >= floors).all()
        shares = fair_shares(caps, weights, budget, floors) if budget < caps.sum() else caps
    else:
        assert (quota.units_I <= floors).all()
        shares = fair_shares(floors, weights, budget)
    for units, share in zip(quota.units_I, shares, strict=True):
        assert math.floor(share - 1e-6) <= units <= math.ceil(share + 1e-6)


@given(bounded, st.integers(0, 90), st.booleans())
def test_with_floors_too_what_was_handed_out_before_is_the_sum_over_earlier_rounds(
    triples, budget, equal
):
    caps = np.array([cap for cap, _, _ in triples])
    floors = np.array([min(cap, floor) for cap, _, floor in triples])
    weights = np.array([1.0 if equal else weight for _, weight, _ in triples])
    total = np.zeros(len(caps), np.int64)
    for round_id in range(1, 9):
        quota = allocate_quota(caps, weights, budget=budget, round_id=round_id, floors_I=floors)
        assert np.array_equal(quota.before_I, total)
        total += quota.units_I


def test_what_small_identities_get_by_their_floor_is_missing_from_the_others():
    # By weight they would share 12 as 0.6, 0.6, 5.4 and 5.4; the floor of 2 leaves 4 for each.
    units = allocate_quota(
        np.full(4, 20), np.array([1.0, 1, 9, 9]), budget=12, round_id=1, floors_I=np.full(4, 2)
    ).units_I
    assert units.tolist() == [2, 2, 4, 4]


def test_a_budget_of_exactly_the_floors_gives_the_floors():
    floors = np.array([1, 0, 3])
    quota = allocate_quota(
        np.full(3, 9), np.array([1.0, 50, 2]), budget=4, round_id=6, floors_I=floors
    )
    assert quota.units_I.tolist() == [1, 0, 3]
    assert quota.before_I.tolist() == [5, 0, 15]


@given(st.integers(2, 12), st.integers(1, 11), st.integers(1, 30))
def test_a_budget_below_the_floors_still_gives_every_identity_its_turn(
    num_identities, budget, first_round
):
    budget = min(budget, num_identities)
    seen = np.zeros(num_identities, np.int64)
    for round_id in range(first_round, first_round + math.ceil(num_identities / budget)):
        seen += allocate_quota(
            np.full(num_identities, 5),
            np.ones(num_identities),
            budget=budget,
            round_id=round_id,
            floors_I=np.full(num_identities, 2),
        ).units_I
    assert (seen > 0).all()


@pytest.mark.parametrize("floors", [[-1, 0], [3, 0]])
def test_floors_outside_zero_and_the_cap_are_refused(floors):
    with pytest.raises(ValueError, match="0 <= floors <= caps"):
        allocate_quota(
            np.array([2, 2]), np.ones(2), budget=1, round_id=1, floors_I=np.array(floors)
        )


def test_a_million_identities_share_exactly():
    sizes = np.random.default_rng(0).integers(1, 10_000, 1_000_000)
    quota = allocate_quota(sizes, sizes.astype(float), budget=1 << 22, round_id=50)
    assert quota.units_I.sum() == 1 << 22
    assert (quota.units_I >= 0).all()
    assert (quota.units_I <= sizes).all()


@pytest.mark.parametrize(
    ("caps", "weights", "budget", "round_id"),
    [([1], [1.0], -1, 1), ([1], [1.0], 1, 0), ([-1], [1.0], 1, 1), ([1], [0.0], 1, 1)],
)
def test_impossible_arguments_are_refused(caps, weights, budget, round_id):
    with pytest.raises(ValueError, match="quota needs"):
        allocate_quota(np.array(caps), np.array(weights), budget=budget, round_id=round_id)
