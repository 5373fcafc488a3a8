"""Sets of unordered pairs of identities."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.core.pairs import IdentityPairs

pairs_of_ids = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def columns(pairs):
    return (np.array([pair[side] for pair in pairs], np.int32) for side in (0, 1))


@given(pairs_of_ids, pairs_of_ids)
def test_a_set_of_pairs_holds_what_was_put_in_whichever_way_round(put_in, looked_up):
    different = [pair for pair in put_in if pair[0] != pair[1]]
    pairs = IdentityPairs.of(*columns(different), 7)
    expected = {frozenset(pair) for pair in different}
    assert len(pairs) == len(expected)
    found = pairs.contain(*columns(looked_up))
    assert found.tolist() == [frozenset(pair) in expected for pair in looked_up]
    members = {frozenset(pair) for pair in zip(*(m.tolist() for m in pairs.members()), strict=True)}
    assert members == expected
    partners = Counter(identity for pair in expected for identity in pair)
    assert pairs.most_partners() == max(partners.values(), default=0)


def test_ids_whose_keys_pass_32_bits_are_kept_apart():
    ids = np.array([99_998, 99_999], np.int32)
    pairs = IdentityPairs.of(ids[:1], ids[1:], 100_000)
    assert pairs.contain(ids[1:], ids[:1]).tolist() == [True]
    assert pairs.contain(np.array([99_998], np.int32), np.array([0], np.int32)).tolist() == [False]


def test_the_empty_set_holds_nothing():
    none = IdentityPairs.none(5)
    assert (len(none), none.most_partners()) == (0, 0)
    assert none.contain(np.array([1, 2]), np.array([2, 1])).tolist() == [False, False]
