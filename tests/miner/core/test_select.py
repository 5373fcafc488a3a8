"""Whole rounds: against nested loops, and the invariants of any round."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import SelectionConfig, select_groups
from miner.core.positives import choose_positives
from miner.errors import SelectionError
from miner.types import Candidates, IdentityTable
from tests.miner.core.selection_oracles import (
    World,
    make_world,
    mined_negatives,
    passes_guards,
    same_groups,
    search,
    triplets_of,
)

SEED, ROUND = 11, 4


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


limit = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5]))
cap = st.one_of(st.none(), st.integers(1, 3))


@st.composite
def configs(draw):
    start = draw(st.integers(0, 2))
    per_group = draw(st.integers(2, 4))
    return SelectionConfig(
        strategy=draw(st.sampled_from(["hardest", "semi_hard", "rank_window"])),
        positive=draw(st.sampled_from(["random", "hardest", "easiest"])),
        identities_per_group=per_group,
        samples_per_identity=draw(st.integers(1, 4)),
        margin=draw(st.sampled_from([0.25, 0.75])),
        window_start=start,
        window_stop=start + per_group - 1 + draw(st.integers(0, 2)),
        max_similarity=draw(st.one_of(st.none(), st.sampled_from([0.5, 1.0]))),
        absolute_margin=draw(limit),
        relative_margin=draw(limit),
        duplicate_similarity=draw(st.one_of(st.none(), st.sampled_from([0.5, 1.0]))),
        max_uses_per_sample=draw(cap),
        max_uses_per_identity=draw(cap),
        underfill=draw(st.sampled_from(["drop", "relax", "random"])),
        num_candidates=draw(st.sampled_from([8, 40])),
    )


@st.composite
def worlds(draw):
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=7))
    world = make_world(draw(st.integers(0, 10**6)), [2, *sizes])
    possible = world.possible_anchors()
    chosen = draw(st.permutations(possible))[: draw(st.integers(1, len(possible)))]
    return world, chosen


@settings(max_examples=250, deadline=None)
@given(worlds(), configs())
def test_mined_negatives_are_those_of_nested_loops(world_and_anchors, config):
    world, anchors = world_and_anchors
    candidates = search(world, anchors, config.num_candidates)
    positives = positives_of(world, config, candidates)
    expected = mined_negatives(world, candidates, positives, config, seed=SEED, round_id=ROUND)
    if config.underfill == "drop":
        full = [
            a for a in anchors if sum(n[0] == a for n in expected) == config.negatives_per_group
        ]
        expected = {n for n in expected if n[0] in full}
    selection = run_or_explain(world, config, candidates)
    if isinstance(selection, str):
        assert not expected
        return
    found = triplets_of(selection.groups)
    assert {(a, n, tier) for a, _, n, tier in found if tier < 2} == expected
    assert all(p == positives[a] for a, p, _, _ in found)


@settings(max_examples=150, deadline=None)
@given(worlds(), configs())
def test_no_round_breaks_a_promise(world_and_anchors, config):
    world, anchors = world_and_anchors
    candidates = search(world, anchors, config.num_candidates)
    selection = run_or_explain(world, config, candidates)
    if isinstance(selection, str):
        assert "no group could be made" in selection
        return
    groups, report = selection.groups, selection.report
    triplets = triplets_of(groups)
    uses: dict[int, int] = {}
    uses_of_identity: dict[int, int] = {}
    negatives: dict[int, list[int]] = {}
    for anchor, positive, negative, tier in triplets:
        assert anchor != positive
        assert world.identity(anchor) == world.identity(positive) != world.identity(negative)
        assert tier == 2 or passes_guards(world, config, anchor, positive, negative)
        uses[negative] = uses.get(negative, 0) + 1
        identity = world.identity(negative)
        uses_of_identity[identity] = uses_of_identity.get(identity, 0) + 1
        negatives.setdefault(anchor, []).append(identity)
    assert max(uses.values()) <= (config.max_uses_per_sample or 10**9)
    assert max(uses_of_identity.values()) <= (config.max_uses_per_identity or 10**9)
    for identities in negatives.values():
        assert len(set(identities)) == len(identities) <= config.negatives_per_group
        assert config.underfill != "drop" or len(identities) == config.negatives_per_group
    assert np.isfinite(groups.similarities_an_T).all()
    assert groups.num_groups == len(negatives) == report.num_groups
    assert len(triplets) == report.num_triplets == sum(report.tiers) == sum(report.hardness_counts)
    # Short anchors are counted before groups are dropped, so only what is left can be compared.
    short = [a for a in negatives if len(negatives[a]) < config.negatives_per_group]
    assert len(short) <= report.anchors_short <= report.num_anchors == len(anchors)


@settings(max_examples=60, deadline=None)
@given(worlds(), configs(), st.randoms(use_true_random=False))
def test_the_order_of_anchors_has_no_effect_not_even_on_the_order_of_groups(
    world_and_anchors, config, shuffler
):
    world, anchors = world_and_anchors
    shuffled = list(anchors)
    shuffler.shuffle(shuffled)
    first, second = (
        run_or_explain(world, config, search(world, order, config.num_candidates))
        for order in (anchors, shuffled)
    )
    if isinstance(first, str):
        assert first == second
    else:
        assert same_groups(first.groups, second.groups)
        assert first.report == second.report


@pytest.mark.parametrize("strategy", ["hardest", "semi_hard", "rank_window"])
def test_blocks_of_work_do_not_show(strategy, monkeypatch):
    world = make_world(3, [4] * 12)
    config = SelectionConfig(
        strategy=strategy, margin=0.5, max_uses_per_sample=2, num_candidates=30
    )
    candidates = search(world, world.possible_anchors(), 30)
    whole = run(world, config, candidates).groups
    monkeypatch.setattr("miner.core.proposals._BLOCK_ENTRIES", 70)
    assert same_groups(run(world, config, candidates).groups, whole)


def test_hardest_is_the_nearest_sample_of_another_identity_over_the_whole_set():
    # The well-known slip: the place in the list of *other* samples is not a row number.
    world = make_world(8, [3, 4, 1, 5, 2, 6], dim=8)
    config = SelectionConfig(
        strategy="hardest", identities_per_group=2, samples_per_identity=1, num_candidates=5
    )
    anchors = world.possible_anchors()
    groups = run(world, config, search(world, anchors, 5)).groups
    for anchor, _, negative, _ in triplets_of(groups):
        others = [r for r in range(21) if world.identity(r) != world.identity(anchor)]
        assert negative == max(others, key=lambda r: (world.similarity(anchor, r), -r))
    assert groups.num_groups == len(anchors)


def circle(degrees: list[float], ids: list[int]) -> World:
    angles = np.radians(degrees)
    embeddings = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
    return World(IdentityTable.from_ids(np.array(ids, np.int32)), embeddings)


def test_a_relative_margin_lowers_the_threshold_when_the_positive_is_on_the_other_side():
    # s_ap = cos 120 = -0.5. With 5 % the threshold is -0.525, not 0.95 * -0.5 = -0.475.
    world = circle([0, 120, 119, 123], [0, 0, 1, 2])
    config = SelectionConfig(
        strategy="hardest", relative_margin=0.05, identities_per_group=2, num_candidates=2
    )
    selection = run(world, config, search(world, [0], 2))
    assert [n for _, _, n, _ in triplets_of(selection.groups)] == [3]
    assert selection.report.dropped["relative_margin"] == 1


def test_semi_hard_takes_what_is_further_than_the_positive_but_within_the_margin():
    # cos: positive at 40 degrees 0.77; 30 is harder, 41 and 50 are semi-hard, 70 is easy.
    world = circle([0, 40, 30, 41, 50, 70], [0, 0, 1, 2, 3, 4])
    config = SelectionConfig(strategy="semi_hard", margin=0.2, underfill="relax", num_candidates=4)
    found = triplets_of(run(world, config, search(world, [0], 4)).groups)
    assert [(n, tier) for _, _, n, tier in found] == [(3, 0), (4, 0), (2, 1)]


def test_a_copy_of_the_positive_under_another_identity_is_dropped():
    world = circle([0, 40, 40, 60], [0, 0, 1, 2])
    config = SelectionConfig(
        strategy="hardest", duplicate_similarity=0.999, identities_per_group=2, num_candidates=2
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


def test_the_same_identity_in_the_candidates_is_never_a_negative():
    world = make_world(1, [3, 3])
    rows = np.tile(np.arange(6), (6, 1))
    candidates = Candidates(np.arange(6), rows, np.zeros((6, 6), np.float32))
    config = SelectionConfig(strategy="hardest", num_candidates=6)
    selection = run(world, config, candidates)
    assert selection.report.dropped["same_identity"] == 18
    for anchor, _, negative, _ in triplets_of(selection.groups):
        assert world.identity(anchor) != world.identity(negative)


def test_more_candidates_than_the_gallery_holds_leave_no_trace_of_the_padding():
    world = make_world(1, [2, 1])
    config = SelectionConfig(strategy="hardest", num_candidates=50)
    selection = run(world, config, search(world, world.possible_anchors(), 50))
    assert (selection.groups.row_ids_R >= 0).all()
    assert selection.groups.num_triplets == 2
    assert selection.report.negatives_missing == 4


def test_one_dominating_identity_is_held_to_its_cap():
    world = make_world(2, [200, *[2] * 30])
    config = SelectionConfig(max_uses_per_identity=5, underfill="random", num_candidates=250)
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
