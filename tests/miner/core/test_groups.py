"""How groups are filled up and laid out."""

from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core.groups import Negatives, build_groups
from miner.core.pool import Anchors
from miner.core.rng import RoundSeed
from miner.types import IdentityTable
from tests.miner.core.selection_oracles import make_world, triplets_of

KEYS = RoundSeed(2, 1)


def make_anchors(table, ids, rng):
    ids = np.sort(np.asarray(ids, np.int64))
    positives = [
        rng.choice([r for r in table.rows_of(table.identity_ids_N[a]) if r != a]) for a in ids
    ]
    similarities = rng.random(len(ids)).astype(np.float32)
    return Anchors(
        ids,
        table.identity_ids_N[ids],
        np.array(positives, np.int64),
        similarities,
        similarities,
        np.arange(len(ids)),
    )


def make_negatives(table, anchors, rng, most):
    found = [
        (a, rng.choice(table.rows_of(identity)), rng.integers(-2, 3) / 4, rng.integers(3))
        for a, own in enumerate(anchors.identities_A)
        for identity in rng.permutation(np.delete(np.arange(table.num_identities), own))[
            : rng.integers(0, most + 1)
        ]
    ]
    columns = list(zip(*found, strict=True)) if found else [(), (), (), ()]
    types = (np.int64, np.int64, np.float32, np.uint8)
    return Negatives(*(np.array(c, t) for c, t in zip(columns, types, strict=True)))


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 7), min_size=2, max_size=6),
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 6),
)
def test_groups_are_laid_out_as_promised(sizes, seed, samples):
    rng = np.random.default_rng(seed)
    table = make_world(seed, sizes).identities
    anchors = make_anchors(table, rng.permutation(table.num_rows)[:4], rng)
    negatives = make_negatives(table, anchors, rng, most=3)
    groups = build_groups(anchors, negatives, table, samples, KEYS)
    served = np.unique(negatives.anchors_T)
    assert groups.num_groups == len(served)
    assert groups.num_triplets == len(negatives.rows_T)
    seen = []
    for g in range(groups.num_groups):
        group = groups.take(np.array([g]))
        rows, ids = group.row_ids_R.tolist(), group.identity_ids_R.tolist()
        a = anchors.ids_A.tolist().index(rows[0])
        seen.append(a)
        assert rows[1] == anchors.positives_A[a]
        assert len(set(rows)) == len(rows)
        assert ids == table.identity_ids_N[rows].tolist()
        mine = negatives.take(negatives.anchors_T == a)
        expected = sorted(zip(mine.tiers_T, -mine.similarities_T, mine.rows_T, strict=True))
        assert [n for _, _, n, _ in triplets_of(group)] == [row for _, _, row in expected]
        assert group.similarities_an_T.tolist() == [-s for _, s, _ in expected]
        assert group.tiers_T.tolist() == [t for t, _, _ in expected]
        assert set(group.similarities_ap_T) <= {anchors.similarities_ap_A[a]}
        leads = [0, *group.negatives_T.tolist()]
        for begin, end in zip(leads, [*leads[1:], len(rows)], strict=True):
            size = sizes[ids[begin]]
            want = min(size, max(2, samples) if begin == 0 else samples)
            assert ids[begin:end] == [ids[begin]] * want
        assert (group.anchors_T == 0).all()
        assert (group.positives_T == 1).all()
    assert sorted(seen) == served.tolist()


def test_further_samples_are_drawn_alike_from_the_rest_of_the_identity():
    table = IdentityTable.from_ids(np.array([0] * 6 + [1] * 6, np.int32))
    counts = np.zeros(12, np.int64)
    for round_id in range(600):
        anchors = Anchors(
            np.array([2]),
            np.array([0], np.int32),
            np.array([4]),
            np.zeros(1, np.float32),
            np.zeros(1, np.float32),
            np.array([0]),
        )
        negatives = Negatives(
            np.array([0]), np.array([9]), np.zeros(1, np.float32), np.zeros(1, np.uint8)
        )
        groups = build_groups(anchors, negatives, table, 4, RoundSeed(0, round_id))
        counts[groups.row_ids_R] += 1
    assert counts[[2, 4, 9]].tolist() == [600] * 3
    own, other = counts[[0, 1, 3, 5]], counts[[6, 7, 8, 10, 11]]
    assert np.abs(own - 300).max() < 60
    assert np.abs(other - 360).max() < 60


def test_the_order_in_which_negatives_come_has_no_effect():
    rng = np.random.default_rng(0)
    table = make_world(0, [4] * 6).identities
    anchors = make_anchors(table, np.arange(20), rng)
    negatives = make_negatives(table, anchors, rng, most=4)
    shuffled = negatives.take(rng.permutation(len(negatives.rows_T)))
    first, second = (build_groups(anchors, n, table, 3, KEYS) for n in (negatives, shuffled))
    assert np.array_equal(first.row_ids_R, second.row_ids_R)
    assert np.array_equal(first.negatives_T, second.negatives_T)


def test_group_order_is_not_that_of_the_rows():
    rng = np.random.default_rng(0)
    table = make_world(0, [4] * 10).identities
    anchors = make_anchors(table, np.arange(40), rng)
    negatives = make_negatives(table, anchors, rng, most=4)
    groups = build_groups(anchors, negatives, table, 2, KEYS)
    leaders = groups.row_ids_R[groups.row_offsets_G1[:-1]]
    assert leaders.tolist() != sorted(leaders.tolist())


def test_groups_between_two_are_those_taken_one_by_one():
    rng = np.random.default_rng(3)
    table = make_world(3, [4, 2, 5, 3]).identities
    anchors = make_anchors(table, rng.permutation(table.num_rows)[:9], rng)
    groups = build_groups(anchors, make_negatives(table, anchors, rng, most=3), table, 3, KEYS)
    for first, stop in ((0, groups.num_groups), (2, 5), (3, 3)):
        taken, between = groups.take(np.arange(first, stop)), groups.between(first, stop)
        for field in fields(groups):
            assert np.array_equal(getattr(taken, field.name), getattr(between, field.name))
