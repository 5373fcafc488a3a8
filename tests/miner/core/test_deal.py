"""Random negatives: caps, evenness, distinctness."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import SelectionConfig
from miner.core.deal import Dealer
from miner.core.pairs import IdentityPairs
from miner.core.pool import Anchors
from miner.core.rng import RoundSeed
from miner.types import IdentityTable
from tests.miner.core.selection_oracles import make_world


def make_dealer(table, anchor_ids, *, apart=(), **changes):
    ids = np.sort(np.asarray(anchor_ids, np.int64))
    nothing = np.zeros(len(ids), np.float32)
    anchors = Anchors(ids, table.identity_ids_N[ids], ids, nothing, nothing, np.arange(len(ids)))
    config = SelectionConfig(strategy="random", **changes)
    left, right = (np.array([pair[side] for pair in apart], np.int64) for side in (0, 1))
    kin = IdentityPairs.of(left, right, table.num_identities).kin()
    return Dealer(table, config, RoundSeed(3, 1), anchors, kin)


def deal_to_empty(dealer):
    num_negatives = dealer.config.negatives_per_group
    held = np.full((len(dealer.anchors.ids_A), num_negatives), -1, np.int32)
    needs = np.full(len(held), num_negatives)
    return dealer.deal(held, needs, np.zeros(dealer.identities.num_rows, np.int64))


cap = st.one_of(st.none(), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
    per_group=st.integers(2, 5),
    caps=st.tuples(cap, cap),
    apart=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=6),
)
def test_dealing_keeps_caps_and_gives_all_that_can_be_given(sizes, seed, per_group, caps, apart):
    sample_cap, identity_cap = caps
    apart = {(min(p), max(p)) for p in apart if p[0] != p[1] and max(p) < len(sizes)}
    rng = np.random.default_rng(seed)
    table = make_world(seed, sizes).identities
    anchor_ids = rng.permutation(table.num_rows)[: rng.integers(1, table.num_rows + 1)]
    dealer = make_dealer(
        table,
        anchor_ids,
        apart=apart,
        identities_per_group=per_group,
        max_uses_per_sample=sample_cap,
        max_uses_per_identity=identity_cap,
    )
    # Some negatives have been given before.
    held = np.full((len(anchor_ids), per_group - 1), -1, np.int32)
    uses = np.zeros(table.num_rows, np.int64)
    own, kin = dealer.anchors.identities_A, dealer.kin_I
    for a in range(len(anchor_ids)):
        row = int(rng.integers(table.num_rows))
        identity = int(table.identity_ids_N[row])
        used = int(uses[table.rows_of(identity)].sum())
        if (
            kin[identity] != kin[own[a]]
            and uses[row] < (sample_cap or 99)
            and used < (identity_cap or 99)
        ):
            held[a, 0] = kin[identity]
            uses[row] += 1
    anchors_T, rows_T = dealer.deal(held, (held < 0).sum(1), uses)
    held_after = [[int(i) for i in row if i >= 0] for row in held]
    for a, row in zip(anchors_T, rows_T, strict=True):
        held_after[a].append(int(kin[table.identity_ids_N[row]]))
        uses[row] += 1
    uses_I = np.bincount(table.identity_ids_N, uses, len(sizes))
    assert (uses <= (sample_cap or 99)).all()
    assert (uses_I <= (identity_cap or 99)).all()
    for a, identities in enumerate(held_after):
        assert len(set(identities)) == len(identities) <= per_group - 1
        assert kin[own[a]] not in identities
        if len(identities) < per_group - 1:  # then nothing acceptable is left
            for identity, size in enumerate(sizes):
                full = uses_I[identity] >= min(size * (sample_cap or 99), identity_cap or 99)
                assert full or kin[identity] in (kin[own[a]], *identities)


def test_identities_and_their_rows_are_used_alike():
    table = make_world(0, [3] * 40 + [30] * 10).identities
    anchors_T, rows_T = deal_to_empty(make_dealer(table, np.arange(400)))
    assert np.bincount(anchors_T).tolist() == [3] * 400
    uses_I = np.bincount(table.identity_ids_N[rows_T], minlength=50)
    assert np.median(uses_I) == 24
    assert np.ptp(uses_I) <= 4
    uses = np.bincount(rows_T, minlength=table.num_rows)
    assert max(np.ptp(uses[table.rows_of(i)]) for i in range(50)) <= 1


def test_rows_in_use_already_are_spared_within_their_identity():
    table = IdentityTable.from_ids(np.array([0, 0, 0, 1, 1, 1], np.int32))
    dealer = make_dealer(table, [3, 4, 5], identities_per_group=2)
    held = np.array([[-1], [0], [-1]], np.int32)
    anchors_T, rows_T = dealer.deal(held, (held < 0).sum(1), np.array([0, 1, 0, 0, 0, 0]))
    assert sorted(anchors_T.tolist()) == [0, 2]
    assert sorted(rows_T.tolist()) == [0, 2]


def test_every_anchor_can_hold_all_other_identities():
    table = make_world(0, [25] * 4).identities
    anchors_T, _ = deal_to_empty(make_dealer(table, np.arange(100)))
    assert np.bincount(anchors_T).tolist() == [3] * 100


def test_one_dominating_identity_does_not_stop_the_others():
    table = make_world(0, [500, 2, 1]).identities
    anchors_T, rows_T = deal_to_empty(make_dealer(table, np.arange(503), identities_per_group=3))
    assert len(anchors_T) == 2 * 503
    assert np.bincount(table.identity_ids_N[rows_T]).tolist() == [3, 501, 502]


@pytest.mark.parametrize("round_id", range(12))
def test_an_anchor_that_counts_as_one_with_most_identities_still_finds_the_few_that_are_left(
    round_id,
):
    table = make_world(0, [2] * 40).identities
    anchor = int(table.rows_of(0)[0])
    dealer = make_dealer(
        table, [anchor], apart={(0, i) for i in range(1, 36)}, identities_per_group=5
    )
    _, rows_T = deal_to_empty(replace(dealer, keys=RoundSeed(3, round_id)))
    assert sorted(table.identity_ids_N[rows_T].tolist()) == [36, 37, 38, 39]


def test_a_single_identity_gives_nothing():
    table = make_world(0, [5]).identities
    anchors_T, rows_T = deal_to_empty(make_dealer(table, np.arange(5)))
    assert len(anchors_T) == len(rows_T) == 0


@pytest.mark.parametrize("identity", [0, 1, 2, 3])
def test_an_anchor_gets_each_other_identity_equally_often(identity):
    table = make_world(0, [2] * 5).identities
    anchor = int(table.rows_of(4)[0])
    counts = np.zeros(5, np.int64)
    for round_id in range(800):
        dealer = make_dealer(table, [anchor], identities_per_group=2)
        dealer = replace(dealer, keys=RoundSeed(3, round_id))
        _, rows_T = deal_to_empty(dealer)
        counts[table.identity_ids_N[rows_T]] += 1
    assert abs(counts[identity] - 200) < 60
