"""Rounds that cannot be made: what is refused, and what the text says."""

import dataclasses

import numpy as np
import pytest

from miner.core import SelectionConfig, select_groups
from miner.errors import SelectionError
from miner.types import Candidates
from tests.miner.core.selection_oracles import World, circle, make_world, search


def run(world, config, candidates):
    return select_groups(
        candidates, world.embeddings_ND, world.identities, config, seed=11, round_id=4
    )


@pytest.mark.parametrize(
    ("changes", "name", "advice"),
    [
        (
            {"max_similarity": -0.99, "strategy": "hardest"},
            "max_similarity",
            "raise max_similarity",
        ),
        ({"absolute_margin": 9.0}, "absolute_margin", "lower absolute_margin"),
        ({"duplicate_similarity": -0.99}, "duplicate_similarity", "raise duplicate_similarity"),
        (
            {"strategy": "semi_hard", "margin": 0.001, "underfill": "drop"},
            "outside_strategy",
            "raise num_candidates, widen the strategy",
        ),
    ],
)
def test_a_round_with_everything_filtered_out_says_by_what_and_what_to_do(changes, name, advice):
    world = make_world(4, [3] * 8)
    config = SelectionConfig(num_candidates=21, **changes)
    candidates = search(world, world.possible_anchors(), 21)
    similarities = np.clip(candidates.similarities_AK, -0.9, None)
    candidates = dataclasses.replace(candidates, similarities_AK=similarities)
    with pytest.raises(SelectionError, match=rf"no group could be made.*{name} \d+.*{advice}"):
        run(World(world.identities, np.clip(world.embeddings_ND, 0.25, None)), config, candidates)


def test_candidates_that_are_all_padding_are_explained():
    world = make_world(4, [3] * 8)
    candidates = Candidates(
        np.array([0]), np.full((1, 3), -1), np.full((1, 3), -np.inf, np.float32)
    )
    config = SelectionConfig(strategy="hardest", num_candidates=3)
    with pytest.raises(SelectionError, match=r"removed by rule: none; search more candidates"):
        run(world, config, candidates)


def test_a_round_of_suspected_copies_only_says_so():
    world = circle([0, 10, 20, 0, 10, 20], [0, 0, 0, 1, 1, 1])
    config = SelectionConfig(strategy="hardest", identities_per_group=2, num_candidates=3)
    candidates = search(world, world.possible_anchors(), 3)
    with pytest.raises(SelectionError, match=r"quarantine 18; look at the identities"):
        run(world, config, candidates)


def with_fault(fault):
    world = make_world(4, [3] * 8)
    candidates = search(world, [5, 6], 21)
    rows, similarities = candidates.row_ids_AK.copy(), candidates.similarities_AK.copy()
    if fault == "nan":
        similarities[1, 3] = np.nan
    elif fault == "infinite":
        similarities[1, 0] = np.inf
    elif fault == "outside":
        rows[1, 2] = 24
    elif fault == "unsorted":
        similarities[1, 4] = 5.0
    return world, Candidates(candidates.anchor_ids_A, rows, similarities)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "NaN or infinity"),
        ("infinite", "NaN or infinity"),
        ("outside", "outside the 24 rows"),
        ("unsorted", "do not stand nearest first"),
    ],
)
def test_broken_candidates_are_refused_with_the_anchors(fault, message):
    world, candidates = with_fault(fault)
    with pytest.raises(SelectionError, match=rf"1 anchors have .*{message}.*rows \[6\]"):
        run(world, SelectionConfig(num_candidates=21), candidates)


def test_what_does_not_fit_the_catalog_is_refused():
    world = make_world(4, [3] * 8)
    candidates = search(world, [5, 6], 21)
    config = SelectionConfig(num_candidates=21)
    with pytest.raises(SelectionError, match=r"do not fit a catalog of 24 rows"):
        run(World(world.identities, world.embeddings_ND[:-1]), config, candidates)
    wrong = dataclasses.replace(candidates, anchor_ids_A=np.array([5, 99]))
    with pytest.raises(SelectionError, match=r"1 anchors lie outside the 24 rows.*\[99\]"):
        run(world, config, wrong)
    with pytest.raises(SelectionError, match=r"2 anchors do not fit candidates of shape \(1, 21\)"):
        run(world, config, dataclasses.replace(candidates, row_ids_AK=candidates.row_ids_AK[:1]))
    with pytest.raises(SelectionError, match="there are no anchors"):
        run(world, config, search(world, [], 21))
