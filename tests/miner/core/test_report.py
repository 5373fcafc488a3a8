"""The figures of a round."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.core import CurriculumConfig, History, SelectionConfig, mine_round
from miner.core.report import Notes, describe_selection, gini
from miner.types import Groups, IdentityTable
from tests.miner.core.selection_oracles import circle, search


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_gini_is_half_the_mean_difference_over_the_mean(uses):
    differences = np.mean([[abs(a - b) for a in uses] for b in uses])
    expected = differences / (2 * np.mean(uses)) if sum(uses) else 0.0
    assert gini(np.array(uses)) == pytest.approx(expected)


def test_the_figures_of_a_small_round_are_those_counted_by_hand():
    table = IdentityTable.from_ids(np.array([0, 0, 1, 1, 2, 3], np.int32))
    groups = Groups(
        row_ids_R=np.array([0, 1, 2, 4, 2, 3, 4]),
        identity_ids_R=np.array([0, 0, 1, 2, 1, 1, 2], np.int32),
        row_offsets_G1=np.array([0, 4, 7]),
        anchors_T=np.zeros(3, np.int32),
        positives_T=np.ones(3, np.int32),
        negatives_T=np.array([2, 3, 2], np.int32),
        similarities_ap_T=np.array([0.5, 0.5, 0.25], np.float32),
        similarities_an_T=np.array([0.75, 0.25, -0.9], np.float32),
        tiers_T=np.array([0, 1, 0], np.uint8),
        triplet_offsets_G1=np.array([0, 2, 3]),
    )
    notes = Notes(dropped=Counter({"max_similarity": 7}))
    config = SelectionConfig(margin=0.3)
    report = describe_selection(groups, np.array([0, 2, 3]), table, config, notes)
    assert (report.num_anchors, report.num_groups, report.num_triplets) == (3, 2, 3)
    assert (report.anchors_short, report.negatives_missing) == (2, 5)
    assert report.tiers == [2, 1, 0]
    assert report.dropped["max_similarity"] == 7
    assert report.dropped["outside_strategy"] == 0
    identity = report.identity_exposure  # uses 0, 1, 2, 0
    assert (identity.min, identity.median, identity.max, identity.unused) == (0, 0.5, 2, 0.5)
    sample = report.sample_exposure  # rows 2 once, 4 twice
    assert (sample.max, sample.unused) == (2, pytest.approx(4 / 6))
    assert report.mean_similarity_ap == pytest.approx(1.25 / 3)
    assert report.mean_similarity_an == pytest.approx(0.1 / 3)
    assert report.violating_fraction == pytest.approx(2 / 3)
    # Hardness 0.25, -0.25 and -1.15, which counts in the lowest bin.
    edges, counts = report.hardness_edges, report.hardness_counts
    filled = {edges[i]: count for i, count in enumerate(counts) if count}
    assert filled == {-1.0: 1, -0.25: 1, 0.25: 1}


def test_a_report_with_everything_in_it_is_plain_json():
    # Copies, so that a pair is listed; a steered curriculum; floors; anchors that come out short.
    world = circle([0, 10, 20, 0, 10, 20, 90, 100, 180, 185], [0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    config = SelectionConfig(
        strategy="curriculum",
        curriculum=CurriculumConfig(violating_fraction=0.5),
        min_uses_per_sample=1,
        min_groups_per_identity=1,
        num_candidates=7,
        groups_per_round=10,
    )
    earlier: tuple[Groups, ...] = ()
    for round_id in (1, 2):
        selection = mine_round(
            lambda ids, k: search(world, ids.tolist(), k),
            world.embeddings_ND,
            world.identities,
            config,
            seed=0,
            round_id=round_id,
            history=History(earlier=earlier, target_hardness=-0.1),
        )
        earlier = (selection.groups,)
    report = dataclasses.asdict(selection.report)
    assert report["quarantine"]["pairs"]
    assert report["shortfalls"]
    assert report["still_violating"] is not None
    assert set(report["floors_unmet"]) == {"min_uses_per_sample", "min_groups_per_identity"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
