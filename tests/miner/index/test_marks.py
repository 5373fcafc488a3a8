"""Marks against counting who reaches them."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.index.marks import marks_of
from miner.index.quickselect import bring_greatest


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 30), st.integers(1, 9))
def test_at_least_k_rows_of_other_owners_reach_the_mark_and_few_more(seed, rows, k, owners):
    rng = np.random.default_rng(seed)
    scores = rng.random((4, rows), np.float32)
    owners_b, owners_g = (rng.integers(owners, size=n).astype(np.int32) for n in (4, rows))
    marks = np.empty(4, np.float32)
    marks_of(scores, owners_b, owners_g, k, marks)
    scores[owners_b[:, None] == owners_g] = -np.inf
    reach = (scores >= marks[:, None]).sum(axis=1)
    known = marks > -np.inf
    assert (reach[known] >= k).all()
    assert owners > 1 or not known.any(), "all rows are the anchors' own"


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_few_more_than_k_rows_reach_the_mark(seed, k):
    scores = np.random.default_rng(seed).random((4, 40 * k), np.float32)
    marks = np.empty(4, np.float32)
    marks_of(scores, np.zeros(4, np.int32), np.ones(40 * k, np.int32), k, marks)
    assert ((scores >= marks[:, None]).sum(axis=1) <= 4 * k + 8).all()


@given(
    st.lists(st.floats(-3, 3, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=80),
    st.data(),
)
def test_the_greatest_come_to_the_front_whatever_is_equal(values, data):
    count = data.draw(st.integers(1, len(values)))
    array = np.array(values, np.float32)
    least = bring_greatest(array, count)
    expected = sorted(values, reverse=True)
    assert sorted(array[:count].tolist(), reverse=True) == expected[:count]
    assert sorted(array.tolist(), reverse=True) == expected
    assert least == expected[count - 1]


@pytest.mark.parametrize(
    "values",
    [
        np.r_[np.arange(1e5), np.arange(1e5)[::-1]],
        np.r_[np.arange(1e5)[::-1], np.arange(1e5)],
        np.arange(2e5),
        np.zeros(200_000),
    ],
    ids=["rising and falling", "falling and rising", "rising", "equal"],
)
def test_no_order_of_the_values_takes_many_passes(values):
    expected, began_s = np.sort(values)[-50], time.process_time()
    assert bring_greatest(values.astype(np.float32), 50) == expected
    assert time.process_time() - began_s < 5, "in one of the orders it would be minutes"
