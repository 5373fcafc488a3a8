"""The order of a round's groups."""

import numpy as np
import pytest

from miner.core import group_order
from miner.core.permutation import stable_order


def test_the_order_of_groups_never_changes():
    # Plans on disk rely on these: a failure here means that runs can no longer be resumed.
    order = group_order(12, seed=20261124, round_id=7, pass_number=2)
    assert order.dtype == np.int64
    assert order.tolist() == GOLDEN


def test_every_group_is_served_once_a_pass():
    order = group_order(1000, seed=1, round_id=1, pass_number=0)
    assert sorted(order.tolist()) == list(range(1000))


def test_seeds_rounds_and_passes_are_shuffled_independently():
    orders = {
        tuple(group_order(50, seed=s, round_id=r, pass_number=p).tolist())
        for s in (0, 1)
        for r in (1, 2)
        for p in (0, 1)
    }
    assert len(orders) == 8


@pytest.mark.parametrize("most", [3, 2**20, 2**64])
def test_equal_draws_keep_their_order_on_every_machine(most):
    values = np.random.default_rng(0).integers(0, most, 50_000, dtype=np.uint64)
    assert np.array_equal(stable_order(values), np.argsort(values, kind="stable"))


def test_every_order_is_as_likely():
    firsts = [group_order(5, seed=0, round_id=1, pass_number=p)[0] for p in range(2000)]
    assert np.abs(np.bincount(firsts, minlength=5) - 400).max() < 80


def test_an_empty_round_has_an_empty_order_and_a_negative_one_is_refused():
    assert group_order(0, seed=0, round_id=1, pass_number=0).tolist() == []
    with pytest.raises(ValueError, match="-1 groups"):
        group_order(-1, seed=0, round_id=1, pass_number=0)


GOLDEN = [7, 6, 1, 9, 11, 8, 5, 4, 2, 10, 0, 3]
