"""Identity-balanced quotas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.core.quotas import allocate_quota


def fair_shares(caps, weights, budget):
    """The level at which shares spend the budget, by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        spent = sum(min(cap, level * weight) for cap, weight in zip(caps, weights, strict=True))
        low, high = (level, high) if spent < budget else (low, level)
    return [min(cap, high * weight) for cap, weight in zip(caps, weights, strict=True)]


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
