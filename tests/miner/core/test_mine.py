"""A round from the search on: further candidates and moving targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.core import (
    CurriculumConfig,
    History,
    QuarantineConfig,
    SelectionConfig,
    choose_anchors,
    mine_round,
    random_groups,
    select_groups,
)
from miner.core.pairs import IdentityPairs
from miner.core.positives import choose_positives
from miner.core.select import Guidance
from miner.core.steering import violating_fraction
from miner.core.widen import widen_candidates
from miner.errors import SelectionError
from miner.types import Candidates, Groups
from tests.miner.core.selection_cases import worlds
from tests.miner.core.selection_oracles import (
    by_hand,
    circle,
    make_world,
    same_groups,
    search,
    triplets_of,
)

NO_QUARANTINE = QuarantineConfig(policy="off")
SEED = 7


def config_of(**changes):
    return SelectionConfig(
        **{
            "strategy": "hardest",
            "identities_per_group": 3,
            "num_candidates": 4,
            "quarantine": NO_QUARANTINE,
        }
        | changes
    )


def mine(world, config, *, round_id=1, seed=SEED, **history):
    return mine_round(
        lambda ids, k: search(world, ids.tolist(), k),
        world.embeddings_ND,
        world.identities,
        config,
        seed=seed,
        round_id=round_id,
        history=History(**history),
    )


def widened_by_hand(world, config, round_id, earlier):
    """Candidates, negatives of earlier rounds, neighbours of the positive: each row once."""
    anchors = choose_anchors(world.identities, config, seed=SEED, round_id=round_id)
    positives, _ = choose_positives(
        world.embeddings_ND, world.identities, anchors, config, seed=SEED, round_id=round_id
    )
    found = {}
    for anchor, positive in zip(anchors.tolist(), positives.tolist(), strict=True):
        rows = search(world, [anchor], config.num_candidates).row_ids_AK[0].tolist()
        reminders = [
            n
            for groups in earlier[: config.momentum_rounds]
            for a, _, n, tier in triplets_of(groups)
            if tier < 2 and world.identity(a) == world.identity(anchor)
        ]
        rows += reminders[:64]
        if config.look_ahead:
            rows += search(world, [positive], config.look_ahead).row_ids_AK[0].tolist()
        found[anchor] = sorted({row for row in rows if row >= 0})
    return by_hand(world, found)


@settings(max_examples=100, deadline=None)
@given(
    worlds(),
    st.integers(0, 2),
    st.integers(0, 4),
    st.sampled_from(["hardest", "semi_hard", "simans"]),
    st.sampled_from([0.0, 0.5]),
)
def test_further_candidates_are_those_widened_by_hand(
    world_and_anchors, momentum_rounds, look_ahead, strategy, random_fraction
):
    world, _ = world_and_anchors
    config = config_of(
        strategy=strategy,
        momentum_rounds=momentum_rounds,
        look_ahead=look_ahead,
        random_fraction=random_fraction,
        groups_per_round=6,
        underfill="random",
    )
    earlier = ()
    for round_id in (1, 2, 3):
        candidates = widened_by_hand(world, config, round_id, earlier)
        try:
            selection = mine(world, config, round_id=round_id, earlier=earlier)
        except SelectionError:
            return
        expected = select_groups(
            candidates,
            world.embeddings_ND,
            world.identities,
            config,
            seed=SEED,
            round_id=round_id,
        )
        assert same_groups(selection.groups, expected.groups)
        earlier = (selection.groups, *earlier)


@settings(max_examples=100, deadline=None)
@given(worlds(), st.integers(1, 5), st.data())
def test_widened_candidates_are_those_of_a_search_that_found_them_all(
    world_and_anchors, num_found, data
):
    world, anchors = world_and_anchors
    rows = st.integers(-1, world.identities.num_rows - 1)
    width = data.draw(st.integers(0, 4))
    more = [data.draw(st.lists(rows, min_size=width, max_size=width)) for _ in anchors]
    candidates = search(world, anchors, num_found)
    more_AX = np.array(more, np.int64).reshape(len(anchors), width)
    wide = widen_candidates(candidates, more_AX, world.embeddings_ND, world.identities)
    assert wide.row_ids_AK.shape == (len(anchors), num_found + width)
    for a, anchor in enumerate(anchors):
        found = {row for row in candidates.row_ids_AK[a].tolist() if row >= 0}
        found |= {r for r in more[a] if r >= 0 and world.identity(r) != world.identity(anchor)}
        ordered = sorted(found, key=lambda r: (-world.similarity(anchor, r), r))
        padding = num_found + width - len(ordered)
        assert wide.row_ids_AK[a].tolist() == ordered + [-1] * padding
        similarities = [world.similarity(anchor, row) for row in ordered]
        assert wide.similarities_AK[a].tolist() == similarities + [-np.inf] * padding


def test_a_row_found_by_the_search_keeps_the_similarity_that_the_search_gave_it():
    world = make_world(0, [2, 2, 2])
    anchor = world.possible_anchors()[0]
    other = next(r for r in range(6) if world.identity(r) != world.identity(anchor))
    found = Candidates(np.array([anchor]), np.array([[other]]), np.array([[0.125]], np.float32))
    wide = widen_candidates(found, np.array([[other]]), world.embeddings_ND, world.identities)
    assert wide.row_ids_AK.tolist() == [[other, -1]]
    assert wide.similarities_AK.tolist() == [[0.125, -np.inf]]


def test_momentum_brings_back_negatives_that_the_search_no_longer_finds():
    # Round 1 sees row 4 near; then the anchors' identity has moved away from it.
    before = circle([0, 5, 60, 70, 20, 90], [0, 0, 1, 1, 2, 2])
    after = circle([0, 5, 60, 70, 170, 90], [0, 0, 1, 1, 2, 2])
    config = config_of(
        identities_per_group=2, num_candidates=1, groups_per_round=6, momentum_rounds=1
    )
    first = mine(before, config)
    reminded = {n for a, _, n, _ in triplets_of(first.groups) if before.identity(a) == 0}
    assert reminded == {4}
    wide = config.model_copy(update={"identities_per_group": 3})
    second = mine(after, wide, round_id=2, earlier=(first.groups,))
    found = {n for a, _, n, _ in triplets_of(second.groups) if after.identity(a) == 0}
    assert 4 in found
    forgetful = mine(after, wide.model_copy(update={"momentum_rounds": 0}), round_id=2)
    assert 4 not in {n for a, _, n, _ in triplets_of(forgetful.groups) if after.identity(a) == 0}


def test_only_the_newest_rows_of_an_identity_are_remembered(monkeypatch):
    monkeypatch.setattr("miner.core.widen.MOMENTUM_ROWS", 2)
    world = make_world(3, [2] * 8)
    config = config_of(momentum_rounds=2, groups_per_round=16)
    rounds = [mine(world, config, round_id=r).groups for r in (1, 2)]
    widths = []

    def spy(candidates, more_AX, *rest):
        widths.append(more_AX.shape[1])
        for a, anchor in enumerate(candidates.anchor_ids_A.tolist()):
            newest = [
                n
                for a2, _, n, tier in triplets_of(rounds[1])
                if world.identity(a2) == world.identity(anchor) and tier < 2
            ]
            assert more_AX[a].tolist() == newest[:2]
        return widen_candidates(candidates, more_AX, *rest)

    monkeypatch.setattr("miner.core.mine.widen_candidates", spy)
    mine(world, config, round_id=3, earlier=(rounds[1], rounds[0]))
    assert widths == [2]


def test_a_first_round_with_momentum_is_a_round_without_it():
    world = make_world(3, [3] * 8)
    with_momentum = mine(world, config_of(momentum_rounds=3)).groups
    assert same_groups(with_momentum, mine(world, config_of()).groups)


def test_the_random_strategy_never_searches():
    world = make_world(3, [3] * 8)
    config = config_of(strategy="random", look_ahead=5, momentum_rounds=2)

    def fail(ids, k):
        raise AssertionError

    drawn = mine_round(
        fail, world.embeddings_ND[:0], world.identities, config, seed=SEED, round_id=2
    )
    expected = random_groups(world.identities, config, seed=SEED, round_id=2)
    assert same_groups(drawn.groups, expected.groups)


@pytest.mark.parametrize(
    ("model_step", "target"), [(0, -0.25), (50, -0.125), (100, 0.0), (5000, 0.0)]
)
def test_a_scheduled_target_moves_with_the_model_step_and_is_the_one_selected_with(
    model_step, target
):
    world = make_world(3, [3] * 10)
    curriculum = CurriculumConfig(start=-0.25, end=0.0, steps=100)
    config = config_of(strategy="curriculum", curriculum=curriculum, num_candidates=27)
    mined = mine(world, config, model_step=model_step)
    assert mined.report.target_hardness == pytest.approx(target)
    assert mined.report.still_violating is None
    anchors = choose_anchors(world.identities, config, seed=SEED, round_id=1)
    by_target = select_groups(
        search(world, anchors.tolist(), 27),
        world.embeddings_ND,
        world.identities,
        config,
        seed=SEED,
        round_id=1,
        guidance=Guidance(IdentityPairs.none(10), target),
    )
    assert same_groups(mined.groups, by_target.groups)


def count_violating(world, groups, margin):
    mined = [(a, p, n) for a, p, n, tier in triplets_of(groups) if tier < 2]
    violating = [
        world.similarity(a, n) > world.similarity(a, p) - np.float32(margin) for a, p, n in mined
    ]
    return sum(violating) / len(violating)


def test_a_steered_target_follows_what_the_last_round_still_gets_wrong():
    before, after = make_world(3, [3] * 10), make_world(4, [3] * 10)
    after = type(after)(before.identities, after.embeddings_ND)
    steered = CurriculumConfig(start=-0.4, end=0.2, violating_fraction=0.5, gain=0.5)
    config = config_of(
        strategy="curriculum",
        curriculum=steered,
        margin=0.25,
        num_candidates=27,
        random_fraction=0.3,
    )
    first = mine(before, config, model_step=999)
    assert first.report.target_hardness == -0.4
    share = count_violating(after, first.groups, 0.25)
    assert 0 < share < 1
    second = mine(after, config, round_id=2, earlier=(first.groups,), target_hardness=-0.1)
    assert second.report.still_violating == pytest.approx(share)
    assert second.report.target_hardness == pytest.approx(
        min(0.2, max(-0.4, -0.1 + 0.5 * (0.5 - share)))
    )
    assert share != 0.5


@pytest.mark.parametrize("ends", [(-0.3, 0.1), (0.1, -0.3)])
@pytest.mark.parametrize("wanted", [0.01, 0.5, 0.99])
def test_steering_stays_between_its_ends_and_moves_the_right_way(ends, wanted):
    world = make_world(3, [3] * 10)
    steered = CurriculumConfig(start=ends[0], end=ends[1], violating_fraction=wanted, gain=0.3)
    config = config_of(strategy="curriculum", curriculum=steered, num_candidates=27)
    groups = mine(world, config).groups
    share = count_violating(world, groups, config.margin)
    for last in (-0.3, -0.1, 0.1):
        report = mine(world, config, round_id=2, earlier=(groups,), target_hardness=last).report
        assert -0.3 <= report.target_hardness <= 0.1
        # Harder as long as fewer violate than wanted.
        assert (report.target_hardness - last) * (wanted - share) >= 0
        assert report.target_hardness != last or last in ends


def test_only_mined_triplets_say_what_is_still_wrong():
    world = make_world(3, [3] * 10)
    config = config_of(random_fraction=0.5, underfill="random", groups_per_round=20)
    groups: Groups = mine(world, config).groups
    found = violating_fraction(groups, world.embeddings_ND, 0.25)
    assert found == pytest.approx(count_violating(world, groups, 0.25))
    drawn = random_groups(world.identities, config, seed=1, round_id=1).groups
    assert violating_fraction(drawn, world.embeddings_ND, 0.25) is None


@pytest.mark.parametrize("strategy", ["hardest", "random"])
def test_reported_losses_move_the_quotas_of_the_round(strategy):
    world = make_world(5, [40, 40, 40, 40])
    config = config_of(strategy=strategy, groups_per_round=40, underfill="relax")
    losses = np.array([3.0, 1.0, np.nan, 1.0], np.float32)
    plain, steered = mine(world, config), mine(world, config, losses_I=losses)
    for selection, number in ((plain, 0), (steered, 3)):
        assert selection.report.num_losses == number

    def anchored(selection):
        groups = selection.groups
        rows = groups.row_ids_R[groups.row_offsets_G1[:-1]]
        return np.bincount(world.identities.identity_ids_N[rows], minlength=4).tolist()

    assert anchored(plain) == [10, 10, 10, 10]
    first, second, third, fourth = anchored(steered)
    assert first > third > max(second, fourth)
