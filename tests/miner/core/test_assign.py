"""Deferred acceptance under caps, against one proposal at a time in random order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core.assign import Caps, assign
from miner.core.proposals import Proposals
from tests.miner.core.selection_oracles import Market


def make_lists(rng, num_anchors, num_rows, longest):
    """Random preference lists over rows, and hardness with many ties; not related on purpose."""
    lists = {
        anchor: rng.permutation(num_rows)[: rng.integers(0, longest + 1)].tolist()
        for anchor in range(num_anchors)
    }
    return lists, rng.integers(-2, 3, (num_anchors, num_rows)).astype(np.float32) / 4


def as_proposals(lists, identity_of, similarities):
    rows = [row for anchor in lists for row in lists[anchor]]
    owners = [anchor for anchor in lists for _ in lists[anchor]]
    pairs = [(a, int(identity_of[row])) for a, row in zip(owners, rows, strict=True)]
    steps = [
        next((j - i for j in range(i + 1, len(pairs)) if pairs[j] == pair), 0)
        for i, pair in enumerate(pairs)
    ]
    rows_P = np.array(rows, np.int64)
    return Proposals(
        offsets_A1=np.cumsum([0] + [len(lists[anchor]) for anchor in lists]),
        rows_P=rows_P,
        identities_P=identity_of[rows_P].astype(np.int32),
        similarities_P=similarities[np.array(owners, np.int64), rows_P],
        steps_P=np.array(steps, np.int32),
        leads_P=np.array([pair not in pairs[:i] for i, pair in enumerate(pairs)], np.bool_),
    )


def matched(proposals, demands, caps):
    zeros = np.zeros(len(demands), np.float32)
    accepted = assign(proposals, demands, zeros, caps)
    anchors = np.searchsorted(proposals.offsets_A1, accepted, side="right") - 1
    return set(zip(anchors.tolist(), proposals.rows_P[accepted].tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_anchors=st.integers(1, 9),
    num_rows=st.integers(1, 12),
    num_identities=st.integers(1, 6),
    most_uses=st.tuples(st.sampled_from([None, 1, 2]), st.sampled_from([None, 1, 2, 4])),
)
def test_the_matching_is_that_of_one_proposal_at_a_time(
    seed, num_anchors, num_rows, num_identities, most_uses
):
    rng = np.random.default_rng(seed)
    lists, similarities = make_lists(rng, num_anchors, num_rows, longest=12)
    identity_of = rng.integers(0, num_identities, num_rows)
    demands = rng.integers(0, 4, num_anchors)
    row_caps, identity_caps = (
        None if most is None else rng.integers(0, most + 1, size)
        for most, size in zip(most_uses, (num_rows, num_identities), strict=True)
    )
    market = Market(
        lists=lists,
        identity=lambda row: int(identity_of[row]),
        one=lambda row: int(identity_of[row]),
        hardness=lambda anchor, row: float(similarities[anchor, row]),
        demand=lambda anchor: int(demands[anchor]),
        row_cap=lambda row: np.inf if row_caps is None else row_caps[row],
        identity_cap=lambda i: np.inf if identity_caps is None else identity_caps[i],
    )
    proposals = as_proposals(lists, identity_of, similarities)
    found = matched(proposals, demands, Caps(row_caps, identity_caps))
    assert found == market.run(seed) == market.run(seed + 1)


def test_a_refused_anchor_turns_back_to_another_row_of_the_same_identity():
    # Anchor 0 skips row 1, as row 0 of that identity holds it; once row 0 is lost, row 1 comes
    # before what it holds further down.
    identity_of = np.array([0, 0, 1, 2])
    lists = {0: [0, 1, 2, 3], 1: [0]}
    similarities = np.array([[0.1, 0.1, 0.1, 0.1], [0.9, 0, 0, 0]], np.float32)
    proposals = as_proposals(lists, identity_of, similarities)
    caps = Caps(np.array([1, 1, 1, 1]), None)
    assert matched(proposals, np.array([2, 1]), caps) == {(0, 1), (0, 2), (1, 0)}


def test_equally_hard_anchors_are_served_by_position():
    proposals = as_proposals({0: [0], 1: [0], 2: [0]}, np.array([0]), np.zeros((3, 1), np.float32))
    assert matched(proposals, np.ones(3, np.int64), Caps(np.array([2]), None)) == {(0, 0), (1, 0)}


def test_negative_zero_is_as_hard_as_zero():
    similarities = np.array([[-0.0], [0.0]], np.float32)
    proposals = as_proposals({0: [0], 1: [0]}, np.array([0]), similarities)
    assert matched(proposals, np.ones(2, np.int64), Caps(np.array([1]), None)) == {(0, 0)}


@pytest.mark.parametrize("caps", [Caps(None, None), Caps(np.zeros(0, np.int64), None)])
def test_empty_lists_give_an_empty_matching(caps):
    proposals = as_proposals({0: [], 1: []}, np.zeros(0, np.int64), np.zeros((2, 0), np.float32))
    assert matched(proposals, np.array([3, 3]), caps) == set()


def test_a_chain_of_displacements_ends_after_as_many_rounds_as_anchors():
    num = 300
    lists = {a: [a, a + 1] for a in range(num)} | {num: [0]}
    similarities = np.full((num + 1, num + 1), -0.5, np.float32)
    for a in range(num):
        similarities[a, a + 1] = 0.5
    similarities[num, 0] = 0.9
    proposals = as_proposals(lists, np.arange(num + 1), similarities)
    found = matched(proposals, np.ones(num + 1, np.int64), Caps(np.ones(num + 1, np.int64), None))
    assert found == {(a, a + 1) for a in range(num)} | {(num, 0)}
