"""Merged candidates against a plain concatenation that is sorted."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.index.keys import by_similarity
from miner.index.merge import merge_into


def padded(similarities, rows, width):
    """One anchor's entries in order, cut or padded to a width; similarities of few values: ties."""
    order = np.lexsort((rows, -similarities))[:width]
    short = width - len(order)
    return (
        np.append(similarities[order], [-np.inf] * short).astype(np.float32),
        np.append(rows[order], [-1] * short).astype(np.int64),
    )


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_parts_merged_in_any_order_are_the_whole_sorted(seed, anchors, k, parts, order):
    rng = np.random.default_rng(seed)
    found = np.full((anchors, k), -np.inf, np.float32), np.full((anchors, k), -1)
    given_parts, all_entries = [], []
    for number, (count, width) in enumerate(parts):
        # Parts of no rows, of fewer than K, and of an anchor's own identity alone: all are short.
        counts = rng.integers(count + 1, size=anchors)
        entries = [
            (
                rng.integers(-2, 3, size=size).astype(np.float32) / 2,
                100 * number + rng.permutation(50)[:size],
            )
            for size in counts
        ]
        columns = [padded(*entry, width) for entry in entries]
        given_parts.append(tuple(np.stack(column) for column in zip(*columns, strict=True)))
        all_entries.append(columns)
    order.shuffle(given_parts)
    for part in given_parts:
        merge_into(*found, *part)
    for anchor in range(anchors):
        columns = [part[anchor] for part in all_entries]
        similarities, rows = (np.concatenate(column) for column in zip(*columns, strict=True))
        expected = padded(similarities[rows >= 0], rows[rows >= 0], k)
        assert np.array_equal(found[0][anchor], expected[0])
        assert np.array_equal(found[1][anchor], expected[1])
    assert all(map(np.array_equal, by_similarity(*found), found))


def test_what_comes_over_ray_may_be_read_only():
    found = np.full((1, 2), -np.inf, np.float32), np.full((1, 2), -1)
    part = np.array([[0.5]], np.float32), np.array([[7]])
    for column in part:
        column.setflags(write=False)
    merge_into(*found, *part)
    assert found[1].tolist() == [[7, -1]]
