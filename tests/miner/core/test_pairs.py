"""Sets of unordered pairs of identities, and what they connect."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.core.pairs import IdentityPairs

pairs_of_ids = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def columns(pairs):
    return (np.array([pair[side] for pair in pairs], np.int32) for side in (0, 1))


@given(pairs_of_ids)
def test_a_set_of_pairs_holds_what_was_put_in_whichever_way_round(put_in):
    different = [pair for pair in put_in if pair[0] != pair[1]]
    pairs = IdentityPairs.of(*columns(different), 7)
    expected = {frozenset(pair) for pair in different}
    assert len(pairs) == len(expected)
    members = {frozenset(pair) for pair in zip(*(m.tolist() for m in pairs.members()), strict=True)}
    assert members == expected


@given(pairs_of_ids)
def test_kin_are_those_that_a_walk_over_pairs_reaches(put_in):
    pairs = [pair for pair in put_in if pair[0] != pair[1]]
    reached = []
    for start in range(7):
        found, grown = {start}, True
        while grown:
            more = {i for pair in pairs for i in pair if found & set(pair)}
            grown = not more <= found
            found |= more
        reached.append(min(found))
    assert IdentityPairs.of(*columns(pairs), 7).kin().tolist() == reached


def test_ids_whose_keys_pass_32_bits_stay_what_they_are():
    ids = np.array([99_998, 99_999], np.int32)
    pairs = IdentityPairs.of(ids[1:], ids[:1], 100_000)
    assert [member.tolist() for member in pairs.members()] == [[99_998], [99_999]]
    assert pairs.kin()[[0, 99_998, 99_999]].tolist() == [0, 99_998, 99_998]


def test_the_empty_set_connects_nothing():
    assert IdentityPairs.none(5).kin().tolist() == [0, 1, 2, 3, 4]
