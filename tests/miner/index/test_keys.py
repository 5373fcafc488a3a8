"""Keys of found rows against sorting pairs of similarity and row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.index.keys import key_of, row_of, similarity_of, unpack


def by_sorting(similarities: list[float], row_ids: list[int], k: int) -> list[tuple[float, int]]:
    found = [(s, r) for s, r in zip(similarities, row_ids, strict=True) if s > -np.inf]
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    return found[:k] + [(-np.inf, -1)] * (k - len(found))


entries = st.tuples(st.floats(-1, 1, width=32), st.integers(0, 2**32 - 2))


@given(st.lists(entries, max_size=30, unique_by=lambda pair: pair[1]))
def test_sorted_keys_give_the_most_similar_first_and_equal_ones_by_row(found):
    keys = [np.uint64(key_of(np.float32(similarity), row)) for similarity, row in found]
    values, rows = unpack(np.sort(np.array([*keys, 0], np.uint64))[::-1])
    expected = by_sorting(*map(list, zip(*found, strict=True)), len(found)) if found else []
    assert list(zip(values.tolist(), rows.tolist(), strict=True)) == [*expected, (-np.inf, -1)]
    assert [similarity_of(key) for key in keys] == [similarity for similarity, _ in found]
    assert [row_of(key) for key in keys] == [row for _, row in found]
