"""The best K of a row against sorting all of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.index.top_k import pass_mark, top_k


def by_sorting(similarities: list[float], row_ids: list[int], k: int) -> list[tuple[float, int]]:
    found = [(s, r) for s, r in zip(similarities, row_ids, strict=True) if s > -np.inf]
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    return found[:k] + [(-np.inf, -1)] * (k - len(found))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 120),
    st.integers(1, 40),
    st.sampled_from([2, 50, 10_000]),
    st.floats(0, 1),
)
def test_top_k_equals_a_full_sort_with_ties_by_row_id(seed, queries, rows, k, levels, hidden):
    rng = np.random.default_rng(seed)
    similarities = (rng.integers(-levels, levels + 1, (queries, rows)) / levels).astype(np.float32)
    similarities[rng.random(similarities.shape) < hidden] = -np.inf
    row_ids = rng.permutation(2**32 - 1 - np.arange(rows)).astype(np.int64)
    values, found = top_k(similarities, row_ids, k)
    for query in range(queries):
        expected = by_sorting(similarities[query].tolist(), row_ids.tolist(), k)
        assert list(zip(values[query].tolist(), found[query].tolist(), strict=True)) == expected


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 30))
def test_at_least_k_rows_reach_the_pass_mark_and_few_more(seed, rows, k):
    similarities = np.random.default_rng(seed).random((4, rows), np.float32)
    reach = (similarities >= pass_mark(similarities, k)[:, None]).sum(axis=1)
    assert (reach >= min(k, rows)).all()
    if rows >= k:
        assert (reach <= 4 * k + 8).all(), "else sorting them would be no gain"


def test_a_negative_zero_ties_with_zero():
    _, found = top_k(np.array([[0.0, -0.0]], np.float32), np.array([5, 3]), 2)
    assert found.tolist() == [[3, 5]]
