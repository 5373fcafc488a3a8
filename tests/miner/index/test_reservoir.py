"""The best entries of each query against sorting all of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.index.reservoir import Reservoir
from tests.miner.index.test_top_k import by_sorting


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
    st.integers(1, 20),
    st.sampled_from(["any", "rising", "falling"]),
    st.floats(0, 1),
)
def test_it_keeps_the_best_whatever_the_order_and_size_of_the_matrices(
    seed, queries, widths, k, order, hidden
):
    rng = np.random.default_rng(seed)
    similarities = rng.permutation(queries * sum(widths)).reshape(queries, -1).astype(np.float32)
    if order != "any":  # rising: every column gets in; falling: none after the first
        similarities = np.sort(similarities, axis=1)[:, :: 1 if order == "rising" else -1]
    similarities = np.where(rng.random(similarities.shape) < hidden, -np.inf, similarities)
    reservoir = Reservoir(np.full(queries, -np.inf, np.float32), k)
    begin = 0
    for width in widths:
        taking = np.flatnonzero(rng.random(queries) < 0.8)  # some queries skip a matrix
        skipped = np.setdiff1d(np.arange(queries), taking)
        similarities[skipped, begin : begin + width] = -np.inf
        ids = np.arange(begin, begin + width)
        if len(taking):
            part = np.ascontiguousarray(similarities[taking, begin : begin + width], np.float32)
            reservoir.push(part, taking, ids)
        begin += width
    values, ids = reservoir.entries()
    for query in range(queries):
        found = sorted(zip(values[query].tolist(), ids[query].tolist(), strict=True), reverse=True)
        assert found == by_sorting(similarities[query].tolist(), list(range(begin)), k)


def test_what_does_not_exceed_the_mark_is_not_taken():
    reservoir = Reservoir(np.array([0.5], np.float32), 3)
    reservoir.push(np.array([[0.5, 0.6, 0.4]], np.float32), np.array([0]), np.arange(3))
    assert sorted(reservoir.entries()[1][0].tolist()) == [-1, -1, 1]
