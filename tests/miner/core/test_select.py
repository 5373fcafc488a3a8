"""Whole rounds: against nested loops, and the invariants of any round."""

import statistics
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import QuarantineConfig, SelectionConfig, select_groups
from miner.core.positives import choose_positives
from miner.errors import SelectionError
from tests.miner.core.selection_cases import configs, worlds
from tests.miner.core.selection_oracles import (
    circle,
    count_random_slots,
    explain_by_hand,
    make_world,
    passes_guards,
    search,
    triplets_of,
)
from tests.miner.core.strategy_oracles import mined_negatives

SEED, ROUND = 11, 4
NO_QUARANTINE = QuarantineConfig(policy="off")


def run(world, config, candidates):
    return select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=SEED, round_id=ROUND
    )


def run_or_explain(world, config, candidates):
    try:
        return run(world, config, candidates)
    except SelectionError as error:
        return str(error)


def positives_of(world, config, candidates):
    anchors = candidates.anchor_ids_A
    positives, _ = choose_positives(
        world.embeddings_ND, world.identities, anchors, config, seed=SEED, round_id=ROUND
    )
    return dict(zip(anchors.tolist(), positives.tolist(), strict=True))


def mine_by_hand(world, config, candidates):
    positives = positives_of(world, config, candidates)
    return mined_negatives(world, candidates, positives, config, seed=SEED, round_id=ROUND)


@settings(max_examples=300, deadline=None)
@given(worlds(), configs())
def test_mined_negatives_are_those_of_nested_loops(world_and_anchors, config):
    world, anchors = world_and_anchors
    candidates = search(world, anchors, config.num_candidates)
    positives = positives_of(world, config, candidates)
    mined = mine_by_hand(world, config, candidates)
    selection = run_or_explain(world, config, candidates)
    if isinstance(selection, str):
        triplets = []
    else:
        triplets = triplets_of(selection.groups)
        reasons = Counter(selection.report.shortfalls)
        of_random = reasons.pop("identities", 0)
        if config.underfill == "random":
            assert not reasons
        else:
            assert reasons == explain_by_hand(world, candidates, config, mined)
            assert sum(reasons.values()) == len(mined.short())
        assert of_random + sum(reasons.values()) == selection.report.anchors_short
    served = {anchor for anchor, _, _, _ in triplets}
    found = {(a, n, tier) for a, _, n, tier in triplets if tier < 2}
    assert found == {triplet for triplet in mined.negatives if triplet[0] in served}
    assert all(p == positives[a] for a, p, _, _ in triplets)
    for anchor in anchors:
        num_random = sum(a == anchor and tier == 2 for a, _, _, tier in triplets)
        room = config.negatives_per_group - mined.count(anchor)
        slots = config.negatives_per_group - mined.demands[anchor]
        assert num_random <= (room if config.underfill == "random" else slots)
        if config.underfill == "drop":
            complete = mined.count(anchor) == mined.demands[anchor]
            # with random slots, caps may leave nothing to draw
            assert anchor not in served or (complete and num_random == slots)
            assert anchor in served or not complete or slots
        else:
            assert anchor in served or not mined.count(anchor)


@settings(max_examples=150, deadline=None)
@given(worlds(), st.one_of(configs(), configs(quarantine=QuarantineConfig())))
def test_no_round_breaks_a_promise(world_and_anchors, config):
    world, anchors = world_and_anchors
    candidates = search(world, anchors, config.num_candidates)
    selection = run_or_explain(world, config, candidates)
    if isinstance(selection, str):
        assert "no group could be made" in selection
        return
    groups, report = selection.groups, selection.report
    listed = frozenset(tuple(pair.identities) for pair in report.quarantine.pairs)
    world = replace(world, listed=listed)
    negatives: dict[int, list[int]] = {}
    for anchor, positive, negative, tier in triplets_of(groups):
        assert anchor != positive
        assert world.identity(anchor) == world.identity(positive) != world.identity(negative)
        assert tier == 2 or passes_guards(world, config, anchor, positive, negative)
        assert world.one(anchor) != world.one(negative)
        negatives.setdefault(anchor, []).append(world.one(negative))
    for identities in negatives.values():
        assert len(set(identities)) == len(identities) <= config.negatives_per_group
        assert config.underfill != "drop" or len(identities) == config.negatives_per_group
    assert np.isfinite(groups.similarities_an_T).all()
    assert groups.num_groups == len(negatives) == report.num_groups
    # Short anchors are counted before groups are dropped, so only what is left can be compared.
    short = [a for a in negatives if len(negatives[a]) < config.negatives_per_group]
    assert len(short) <= report.anchors_short <= report.num_anchors == len(anchors)


@settings(max_examples=80, deadline=None)
@given(worlds(), configs())
def test_the_figures_of_the_report_are_those_counted_one_by_one(world_and_anchors, config):
    world, anchors = world_and_anchors
    selection = run_or_explain(world, config, search(world, anchors, config.num_candidates))
    if isinstance(selection, str):
        return
    report, triplets = selection.report, triplets_of(selection.groups)
    sizes = world.identities.sizes_I.tolist()
    served = [world.identity(anchor) for anchor in {a for a, _, _, _ in triplets}]
    used_ids = [world.identity(n) for _, _, n, _ in triplets]
    uses = {
        "groups_per_identity": [served.count(i) for i, size in enumerate(sizes) if size >= 2],
        "uses_per_identity": [used_ids.count(i) for i in range(len(sizes))],
        "uses_per_sample": [sum(t[2] == row for t in triplets) for row in range(sum(sizes))],
    }
    exposures = report.anchor_exposure, report.identity_exposure, report.sample_exposure
    for exposure, counts in zip(exposures, uses.values(), strict=True):
        assert (exposure.min, exposure.max) == (min(counts), max(counts))
        assert exposure.median == statistics.median(counts)
        assert exposure.unused == pytest.approx(counts.count(0) / len(counts))
        spread = sum(abs(a - b) for a in counts for b in counts) / len(counts) ** 2
        assert exposure.gini == pytest.approx(spread / (2 * statistics.mean(counts)))
    for name, counts in uses.items():
        most = getattr(config, f"max_{name}")
        assert max(counts) <= (most or 10**9)
        least = getattr(config, f"min_{name}")
        unmet = sum(count < least for count in counts)
        assert report.floors_unmet.get(f"min_{name}", 0) == unmet
    assert report.tiers == [sum(t[3] == tier for t in triplets) for tier in (0, 1, 2)]
    assert len(triplets) == report.num_triplets == sum(report.hardness_counts)


@settings(max_examples=80, deadline=None)
@given(worlds(), configs(min_uses_per_sample=0, min_uses_per_identity=0))
def test_every_candidate_that_was_removed_is_counted_once(world_and_anchors, config):
    world, anchors = world_and_anchors
    candidates = search(world, anchors, config.num_candidates)
    mined = mine_by_hand(world, config, candidates)
    selection = run_or_explain(world, config, candidates)
    if isinstance(selection, str):
        return
    dropped = dict(selection.report.dropped)
    mining = [a for a, anchor in enumerate(anchors) if mined.demands[anchor]]
    num_found = int((candidates.row_ids_AK[mining] >= 0).sum())
    num_passed = sum(len(mined.passed[anchors[a]]) for a in mining)
    num_wanted = sum(len(mined.bands[anchors[a]]) for a in mining)
    assert dropped.pop("outside_strategy") == num_passed - num_wanted
    assert sum(dropped.values()) == num_found - num_passed


def test_a_round_without_room_for_random_slots_keeps_what_was_mined():
    # Everything is asked to be random, and the cap leaves two uses of each other identity.
    world = make_world(3, [3, 3, 3])
    config = SelectionConfig(
        strategy="hardest",
        random_fraction=1.0,
        identities_per_group=3,
        max_uses_per_identity=2,
        num_candidates=6,
        quarantine=NO_QUARANTINE,
    )
    report = run(world, config, search(world, world.possible_anchors(), 6)).report
    assert report.tiers == [0, 0, 6]
    assert (report.negatives_missing, report.shortfalls) == (12, {"identities": 9})


def test_random_slots_are_the_fraction_asked_for_and_drawn_per_anchor_and_slot():
    world = make_world(5, [2] * 150, dim=4)
    config = SelectionConfig(
        strategy="hardest", random_fraction=0.25, num_candidates=150, quarantine=NO_QUARANTINE
    )
    anchors = world.possible_anchors()
    groups = run(world, config, search(world, anchors, 150)).groups
    random_of = Counter(a for a, _, _, tier in triplets_of(groups) if tier == 2)
    slots = {a: count_random_slots(config, a, seed=SEED, round_id=ROUND) for a in anchors}
    assert random_of == Counter({a: count for a, count in slots.items() if count})
    # 900 slots: a standard deviation is 13.
    assert abs(sum(slots.values()) - 225) < 52
    assert len(set(slots.values())) > 2  # drawn for each slot, not for the anchor


def test_hardest_is_the_nearest_sample_of_another_identity_over_the_whole_set():
    # The well-known slip: the place in the list of *other* samples is not a row number.
    world = make_world(8, [3, 4, 1, 5, 2, 6], dim=8)
    config = SelectionConfig(
        strategy="hardest", identities_per_group=2, num_candidates=5, quarantine=NO_QUARANTINE
    )
    anchors = world.possible_anchors()
    groups = run(world, config, search(world, anchors, 5)).groups
    for anchor, _, negative, _ in triplets_of(groups):
        others = [r for r in range(21) if world.identity(r) != world.identity(anchor)]
        assert negative == max(others, key=lambda r: (world.similarity(anchor, r), -r))
    assert groups.num_groups == len(anchors)


def test_semi_hard_takes_what_is_further_than_the_positive_but_within_the_margin():
    # cos: positive at 40 degrees 0.77; 30 is harder, 41 and 50 are semi-hard, 70 is easy.
    world = circle([0, 40, 30, 41, 50, 70], [0, 0, 1, 2, 3, 4])
    config = SelectionConfig(strategy="semi_hard", margin=0.2, underfill="relax", num_candidates=4)
    found = triplets_of(run(world, config, search(world, [0], 4)).groups)
    assert [(n, tier) for _, _, n, tier in found] == [(3, 0), (4, 0), (2, 1)]


def test_a_copy_of_the_positive_under_another_identity_is_dropped():
    world = circle([0, 40, 40, 60], [0, 0, 1, 2])
    config = SelectionConfig(
        strategy="hardest",
        duplicate_similarity=0.999,
        identities_per_group=2,
        num_candidates=2,
        quarantine=NO_QUARANTINE,
    )
    selection = run(world, config, search(world, [0], 2))
    assert [n for _, _, n, _ in triplets_of(selection.groups)] == [3]
    assert selection.report.dropped["duplicate_similarity"] == 1


def test_the_window_counts_distinct_identities_among_what_the_guards_leave():
    # Rows 2 and 3 are one identity; row 4 is guarded away; ranks 1 and 2 are rows 5 and 6.
    world = circle([0, 90, 10, 11, 0, 20, 30, 40], [0, 0, 1, 1, 2, 3, 4, 5])
    config = SelectionConfig(
        window_start=1,
        window_stop=3,
        identities_per_group=3,
        max_similarity=0.999,
        num_candidates=6,
    )
    found = triplets_of(run(world, config, search(world, [0], 6)).groups)
    assert {n for _, _, n, _ in found} == {5, 6}


def test_the_window_draws_each_identity_alike():
    world = circle([0, 90, *range(10, 60, 10)], [0, 0, 1, 2, 3, 4, 5])
    config = SelectionConfig(window_stop=4, identities_per_group=2, num_candidates=5)
    candidates = search(world, [0], 5)
    counts = np.zeros(7, np.int64)
    for round_id in range(500):
        groups = select_groups(
            candidates, world.embeddings_ND, world.identities, config, seed=1, round_id=round_id
        ).groups
        counts[triplets_of(groups)[0][2]] += 1
    assert counts[[0, 1, 6]].tolist() == [0, 0, 0]
    assert np.abs(counts[2:6] - 125).max() < 45


def test_one_dominating_identity_is_held_to_its_cap():
    world = make_world(2, [200, *[2] * 30])
    config = SelectionConfig(
        max_uses_per_identity=5,
        underfill="random",
        num_candidates=250,
        quarantine=NO_QUARANTINE,
    )
    anchors = [a for a in world.possible_anchors() if world.identity(a) != 0]
    selection = run(world, config, search(world, anchors, 250))
    # 31 identities can be used 5 times each, less than the 180 that 60 full groups would take.
    exposure = selection.report.identity_exposure
    assert (exposure.min, exposure.max) == (5, 5)
    assert selection.report.num_triplets == 155
    assert selection.report.negatives_missing == 25


def test_random_underfill_fills_up_past_the_guards():
    world = make_world(4, [3] * 8)
    config = SelectionConfig(
        strategy="hardest", max_similarity=-0.99, underfill="random", num_candidates=10
    )
    selection = run(world, config, search(world, world.possible_anchors(), 10))
    assert selection.report.tiers == [0, 0, 72]
    for anchor, _, negative, _ in triplets_of(selection.groups):
        assert world.identity(anchor) != world.identity(negative)
    assert np.isfinite(selection.groups.similarities_an_T).all()
