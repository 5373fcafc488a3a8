"""The best entries of each query against sorting all of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.index.reservoir import Reservoir
from tests.miner.index.test_keys import by_sorting


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
    # Whole numbers: taking a mark off and adding it again must not round.
    similarities = np.where(rng.random(similarities.shape) < hidden, -np.inf, similarities)
    similarities = similarities.astype(np.float32)
    owners = rng.integers(3, size=queries).astype(np.int32)
    reservoir = Reservoir(owners, k)
    begin = 0
    for width in widths:
        taking = np.flatnonzero(rng.random(queries) < 0.8)  # some queries skip a matrix
        columns = slice(begin, begin + width)
        owned = rng.integers(9, size=width).astype(np.int32)
        if len(taking):
            part = np.ascontiguousarray(similarities[taking, columns])
            reservoir.push(part, taking.astype(np.int32), np.arange(begin, begin + width), owned)
        similarities[np.setdiff1d(np.arange(queries), taking), columns] = -np.inf
        similarities[:, columns][owners[:, None] == owned] = -np.inf
        begin += width
    ids = reservoir.ids()
    for query in range(queries):
        best = by_sorting(similarities[query].tolist(), list(range(begin)), k)
        assert sorted(ids[query].tolist()) == sorted(row for _, row in best)


def test_what_does_not_exceed_the_mark_is_not_taken():
    reservoir = Reservoir(np.zeros(1, np.int32), 3)
    reservoir.marks_B[:] = 0.5
    scores = np.array([[0.5, 0.6, 0.4]], np.float32)
    reservoir.push(scores, np.zeros(1, np.int32), np.arange(3), np.ones(3, np.int32))
    assert sorted(reservoir.ids()[0].tolist()) == [-1, -1, 1]
