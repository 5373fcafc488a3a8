"""Pairs of identities that look like one: against nested loops, and what is done about them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import (
    History,
    QuarantineConfig,
    SelectionConfig,
    choose_anchors,
    mine_round,
    select_groups,
)
from miner.core.pairs import IdentityPairs
from miner.core.positives import choose_positives
from miner.core.quarantine import inspect_identities
from miner.errors import SelectionError
from miner.types import IdentityTable
from tests.miner.core.quarantine_oracle import chernoff, inspect_by_hand
from tests.miner.core.selection_cases import configs
from tests.miner.core.selection_oracles import World, same_groups, search, triplets_of
from tests.miner.core.strategy_oracles import mined_negatives


def make_people(seed, people, sizes, *, num_levels):
    """Identities, each a name of a person; samples of one person are near each other.

    All inner products are exact; with few levels of noise many samples are copies.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    embeddings = np.zeros((len(ids), max(people) + 3), np.float32)
    embeddings[np.arange(len(ids)), np.array(people)[ids]] = 1.0
    noise = rng.integers(0, num_levels, (len(ids), 2)) - num_levels // 2
    embeddings[:, -2:] = noise / np.float32(16)
    return World(IdentityTable.from_ids(ids, len(sizes)), embeddings)


def make_faces(seed, people, sizes):
    """The same on the unit sphere, without ties; people are far from each other."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    centres = np.eye(max(people) + 1, 64)[np.array(people)[ids]]
    embeddings = (centres + 0.1 * rng.normal(size=centres.shape)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return World(IdentityTable.from_ids(ids, len(sizes)), embeddings)


def inspect(world, candidates, config, *, known=(), seed=5):
    anchors = candidates.anchor_ids_A.tolist()
    any_positive = [world.similarity(a, world.others(a)[0]) for a in anchors]
    left, right = (np.array([pair[side] for pair in known], np.int64) for side in (0, 1))
    return inspect_identities(
        candidates,
        np.array(any_positive, np.float32),
        world.embeddings_ND,
        world.identities,
        config=config,
        known=IdentityPairs.of(left, right, world.identities.num_identities),
        seed=seed,
    )


def pairs_of(found):
    suspicion = found.suspicion
    return list(zip(suspicion.left_Q.tolist(), suspicion.right_Q.tolist(), strict=True))


@st.composite
def peoples(draw):
    sizes = draw(st.lists(st.integers(1, 7), min_size=2, max_size=7))
    sizes[0] = max(sizes[0], 2)
    people = [draw(st.integers(0, 4)) for _ in sizes]
    world = make_people(
        draw(st.integers(0, 10**6)), people, sizes, num_levels=draw(st.sampled_from([1, 3, 9]))
    )
    possible = world.possible_anchors()
    anchors = draw(st.permutations(possible))[: draw(st.integers(1, len(possible)))]
    return world, anchors


inspections = st.builds(
    QuarantineConfig,
    min_copied=st.sampled_from([0.25, 0.5, 1.0]),
    copy_similarity=st.sampled_from([0.25, 0.99999, 1.0]),
    mixing_tolerance=st.sampled_from([0.187, 0.487, 0.987]),
    max_false_share=st.sampled_from([0.013, 0.31, 0.99]),
    max_rows=st.sampled_from([4, 5, 64]),
    max_confusion=st.sampled_from([0.187, 0.487, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(peoples(), inspections, st.sets(st.tuples(st.just(0), st.integers(1, 6)), max_size=2))
def test_pairs_are_tested_and_listed_as_nested_loops_do(world_and_anchors, config, known):
    world, anchors = world_and_anchors
    known = {pair for pair in known if pair[1] < world.identities.num_identities}
    candidates = search(world, anchors, 20)
    found = inspect(world, candidates, config, known=known)
    expected = inspect_by_hand(world, candidates, config, known=frozenset(known), seed=5)
    assert found.num_tested == len(expected.tested)
    assert found.confusion_rate == pytest.approx(expected.confusion_rate)
    pairs = pairs_of(found)
    assert set(pairs) == expected.listed
    assert len(pairs) == len(set(pairs))
    listed = found.suspicion
    for q, pair in enumerate(pairs):
        evidence = expected.tested[pair]
        assert (listed.num_left_Q[q], listed.num_right_Q[q]) == evidence.num_rows
        assert listed.mixing_Q[q] == pytest.approx(evidence.mixing)
        assert listed.num_mutual_Q[q] == evidence.num_mutual
        assert listed.num_copies_Q[q] == evidence.num_copies
        assert listed.similarity_Q[q] == pytest.approx(evidence.similarity, abs=1e-5)
        assert listed.p_value_Q[q] == pytest.approx(expected.p_values[pair], rel=1e-6)
    assert (np.diff(listed.p_value_Q) >= -1e-12).all()


@settings(max_examples=120, deadline=None)
@given(peoples(), configs(quarantine=QuarantineConfig(max_false_share=0.31)))
def test_rounds_with_quarantine_are_those_of_nested_loops(world_and_anchors, config):
    world, anchors = world_and_anchors
    # Random slots obey listed pairs in test_no_round_breaks_a_promise.
    config = config.model_copy(update={"random_fraction": 0.0, "underfill": "relax"})
    candidates = search(world, anchors, config.num_candidates)
    listed = inspect_by_hand(world, candidates, config.quarantine, seed=11).listed
    try:
        selection = select_groups(
            candidates, world.embeddings_ND, world.identities, config, seed=11, round_id=4
        )
    except SelectionError:
        triplets = []
    else:
        triplets = triplets_of(selection.groups)
        assert {tuple(p.identities) for p in selection.report.quarantine.pairs} == listed
    positives, _ = choose_positives(
        world.embeddings_ND, world.identities, np.array(anchors), config, seed=11, round_id=4
    )
    mined = mined_negatives(
        replace(world, listed=frozenset(listed)),
        candidates,
        dict(zip(anchors, positives.tolist(), strict=True)),
        config,
        seed=11,
        round_id=4,
    )
    assert {(a, n, tier) for a, _, n, tier in triplets} == mined.negatives


@pytest.mark.parametrize("size", [5, 8, 20])
def test_one_identity_under_two_names_is_found_in_a_clean_world(size):
    # Identities 0 and 1 are one person; all others are people of their own.
    world = make_faces(3, [0, 0, *range(1, 30)], [size, size, *[size] * 29])
    found = inspect(world, search(world, world.possible_anchors(), 10), QuarantineConfig())
    assert pairs_of(found) == [(0, 1)]
    assert found.suspicion.mixing_Q[0] == pytest.approx(1, abs=0.5)
    assert found.num_tested == 1


def test_copies_are_found_although_their_own_samples_are_near_too():
    # Names 0 and 1 hold the same four pictures.
    world = make_faces(3, [0, 0, 1, 2, 3], [4, 4, 4, 4, 4])
    vectors = world.embeddings_ND.copy()
    vectors[world.identities.rows_of(1)] = vectors[world.identities.rows_of(0)]
    copied = World(world.identities, vectors)
    found = inspect(copied, search(copied, copied.possible_anchors(), 10), QuarantineConfig())
    assert pairs_of(found) == [(0, 1)]
    assert found.suspicion.num_copies_Q.tolist() == [4]
    assert found.suspicion.similarity_Q[0] == pytest.approx(1)


def test_identities_that_are_near_to_each_other_but_do_not_mix_are_not_listed():
    # Two tight identities side by side, and one sample of the first among those of the second.
    world = make_faces(3, list(range(12)), [8] * 12)
    stray, host = world.identities.rows_of(0)[0], world.identities.rows_of(1)[0]
    world.embeddings_ND[stray] = world.embeddings_ND[host]
    world.embeddings_ND[stray, -1] += np.float32(0.05)
    found = inspect(world, search(world, world.possible_anchors(), 10), QuarantineConfig())
    assert found.num_tested >= 1
    assert pairs_of(found) == []


def test_an_embedding_that_tells_nothing_apart_lists_no_mixed_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(160, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    world = World(IdentityTable.from_ids(np.repeat(np.arange(20, dtype=np.int32), 8)), vectors)
    found = inspect(world, search(world, world.possible_anchors(), 20), QuarantineConfig())
    assert found.confusion_rate > 0.5
    assert found.num_tested > 50
    assert pairs_of(found) == []


def test_the_bound_on_the_chance_holds_for_every_binomial_tail():
    for num_rows in (1, 2, 5, 12):
        for rate in (0.05, 0.3, 0.8):
            for hits in range(num_rows + 1):
                tail = sum(
                    np.prod([(num_rows - j) / (j + 1) for j in range(k)])
                    * rate**k
                    * (1 - rate) ** (num_rows - k)
                    for k in range(hits, num_rows + 1)
                )
                assert tail <= chernoff(hits, num_rows, rate) * (1 + 1e-9)


def two_names():
    """Names 0 and 1 are one person, who is far nearer to itself than anybody else is."""
    world = make_faces(4, [0, 0, *range(1, 12)], [8] * 13)
    return world, search(world, world.possible_anchors(), 30)


def select(world, candidates, policy, **changes):
    config = SelectionConfig(
        num_candidates=30,
        strategy="hardest",
        quarantine=QuarantineConfig(policy=policy),
        **changes,
    )
    return select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=5, round_id=1
    )


def pairs_used(world, selection):
    triplets = triplets_of(selection.groups)
    return {tuple(sorted((world.identity(a), world.identity(n)))) for a, _, n, _ in triplets}


@pytest.mark.parametrize("underfill", ["drop", "relax", "random"])
@pytest.mark.parametrize("random_fraction", [0.0, 0.5, 1.0])
def test_policy_exclude_keeps_listed_pairs_apart_in_every_tier(underfill, random_fraction):
    world, candidates = two_names()
    changes = {"underfill": underfill, "random_fraction": random_fraction}
    selection = select(world, candidates, "exclude", **changes)
    assert [pair.identities for pair in selection.report.quarantine.pairs] == [[0, 1]]
    assert (0, 1) not in pairs_used(world, selection)
    assert (selection.report.dropped["quarantine"] > 0) == (random_fraction < 1)


@pytest.mark.parametrize("composition", ["star", "chain", "community", "diverse"])
@pytest.mark.parametrize("underfill", ["relax", "random"])
def test_no_group_holds_two_identities_that_count_as_one(composition, underfill):
    # Ten people, each under three names that hold the same pictures: 0-2, 3-5...
    world = make_faces(4, [i // 3 for i in range(30)], [6] * 30)
    for identity in range(30):
        first = world.identities.rows_of(identity - identity % 3)
        world.embeddings_ND[world.identities.rows_of(identity)] = world.embeddings_ND[first]
    config = SelectionConfig(
        composition=composition,
        underfill=underfill,
        identities_per_group=6,
        window_stop=10,
        num_candidates=170,
    )
    candidates = search(world, world.possible_anchors(), 170)
    selection = select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=5, round_id=1
    )
    assert len(selection.report.quarantine.pairs) == 30
    people = {}
    for anchor, _, negative, _ in triplets_of(selection.groups):
        people.setdefault(anchor, [world.identity(anchor) // 3]).append(
            world.identity(negative) // 3
        )
    assert all(len(set(found)) == len(found) == 6 for found in people.values())


def test_a_random_round_knows_the_suspects_of_its_history():
    world, _ = two_names()
    config = SelectionConfig(strategy="random", identities_per_group=10)
    for suspects, expected in (((), True), (((0, 1),), False)):
        selection = mine_round(
            lambda ids, k: search(world, ids.tolist(), k),
            world.embeddings_ND,
            world.identities,
            config,
            seed=5,
            round_id=2,
            history=History(suspects=suspects),
        )
        assert ((0, 1) in pairs_used(world, selection)) is expected


def test_a_collapsed_embedding_has_no_copies():
    rng = np.random.default_rng(0)
    for noise in (0.0, 1e-4):
        vectors = np.ones((80, 8)) + noise * rng.normal(size=(80, 8))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        table = IdentityTable.from_ids(np.repeat(np.arange(20, dtype=np.int32), 4))
        world = World(table, vectors.astype(np.float32))
        found = inspect(world, search(world, world.possible_anchors(), 20), QuarantineConfig())
        assert found.num_tested > 50
        assert pairs_of(found) == []


def test_many_copies_do_not_hide_a_person_under_two_names():
    # Names 0 and 1 are one person; names 22 to 41 hold copies of the pictures of 2 to 21.
    world = make_faces(4, [0, 0, *range(1, 21), *range(1, 21), *range(21, 60)], [8] * 81)
    for identity in range(22, 42):
        rows = world.identities.rows_of(identity)
        world.embeddings_ND[rows] = world.embeddings_ND[world.identities.rows_of(identity - 20)]
    found = inspect(world, search(world, world.possible_anchors(), 20), QuarantineConfig())
    assert set(pairs_of(found)) == {(0, 1), *((i, i + 20) for i in range(2, 22))}


def test_policy_report_lists_pairs_and_policy_off_does_not_look_and_neither_touches_groups():
    world, candidates = two_names()
    reported, off = select(world, candidates, "report"), select(world, candidates, "off")
    assert [pair.identities for pair in reported.report.quarantine.pairs] == [[0, 1]]
    assert (off.report.quarantine.pairs, off.report.quarantine.num_tested) == ([], 0)
    assert off.report.quarantine.confusion_rate is None
    assert same_groups(reported.groups, off.groups)
    assert (0, 1) in pairs_used(world, off)
    assert reported.report.dropped["quarantine"] == off.report.dropped["quarantine"] == 0


def test_a_pair_stays_listed_though_no_anchor_points_to_it_this_round_while_history_names_it():
    # Only anchors of other people are in the round; the pair comes from the round before.
    world, _ = two_names()
    anchors = [a for a in world.possible_anchors() if world.identity(a) > 1]
    candidates = search(world, anchors, 30)
    config = QuarantineConfig()
    assert pairs_of(inspect(world, candidates, config)) == []
    assert pairs_of(inspect(world, candidates, config, known=[(0, 1)])) == [(0, 1)]
    # A pair that no longer mixes is let go.
    assert pairs_of(inspect(world, candidates, config, known=[(2, 3)])) == []


def test_a_round_tests_the_suspects_of_its_history_again():
    world, _ = two_names()
    config = SelectionConfig(num_candidates=30, groups_per_round=6, strategy="hardest")
    # A round without anchors of the pair, which so finds nothing of it.
    round_id = next(
        r
        for r in range(1, 50)
        if world.identities.identity_ids_N[
            choose_anchors(world.identities, config, seed=5, round_id=r)
        ].min()
        > 1
    )
    tested = {}
    for suspects in ((), ((3, 7),), ((0, 1), (3, 7))):
        report = mine_round(
            lambda ids, k: search(world, ids.tolist(), k),
            world.embeddings_ND,
            world.identities,
            config,
            seed=5,
            round_id=round_id,
            history=History(suspects=suspects),
        ).report
        tested[suspects] = [pair.identities for pair in report.quarantine.pairs]
    assert list(tested.values()) == [[], [], [[0, 1]]]


def test_big_identities_are_judged_by_a_seeded_draw_of_their_samples():
    world = make_faces(4, [0, 0, *range(1, 15)], [25, 25, *[16] * 14])
    candidates = search(world, world.possible_anchors(), 20)
    config = QuarantineConfig(max_rows=16, mixing_tolerance=0.99)
    first, again, other = (inspect(world, candidates, config, seed=seed) for seed in (5, 5, 6))
    assert first.suspicion.num_left_Q.tolist() == [16]
    assert first.suspicion.mixing_Q[0] == again.suspicion.mixing_Q[0]
    assert first.suspicion.similarity_Q[0] != other.suspicion.similarity_Q[0]


def test_the_order_of_anchors_and_blocks_of_work_do_not_show(monkeypatch):
    world = make_people(7, [0, 0, 1, 1, 2, 3, 4, 4], [4, 9, 3, 6, 2, 7, 5, 5], num_levels=9)
    anchors = world.possible_anchors()
    config = QuarantineConfig(max_false_share=0.5)
    whole = inspect(world, search(world, anchors, 20), config)
    assert len(whole.suspicion) > 1
    monkeypatch.setattr("miner.core.suspicion._BLOCK", 1)
    for order in (anchors, anchors[::-1]):
        again = inspect(world, search(world, order, 20), config)
        assert pairs_of(again) == pairs_of(whole)
        assert np.allclose(again.suspicion.p_value_Q, whole.suspicion.p_value_Q)


def test_when_there_are_too_many_pairs_those_most_pointed_to_are_tested(monkeypatch):
    world = make_faces(4, [0, 0, *range(1, 15)], [10] * 16)
    # one stray sample makes a second, weaker pair
    stray, host = world.identities.rows_of(2)[0], world.identities.rows_of(3)[0]
    world.embeddings_ND[stray] = world.embeddings_ND[host]
    candidates = search(world, world.possible_anchors(), 10)
    config = QuarantineConfig(mixing_tolerance=0.99)
    assert inspect(world, candidates, config).num_tested > 1
    monkeypatch.setattr("miner.core.quarantine._MAX_PAIRS", 1)
    found = inspect(world, candidates, config)
    assert found.num_tested == 1
    assert pairs_of(found) == [(0, 1)]
