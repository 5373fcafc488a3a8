"""Recall by hand."""

import numpy as np
import pytest

from miner.index.recall import measure_recall
from miner.types import Candidates


def candidates(similarities: list[list[float]]) -> Candidates:
    similarities_AK = np.array(similarities, np.float32)
    row_ids_AK = np.where(np.isneginf(similarities_AK), -1, 0).astype(np.int64)
    return Candidates(np.arange(len(similarities)), row_ids_AK, similarities_AK)


def test_recall_is_the_mean_share_of_the_nearest_that_were_found():
    exact = candidates([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    found = candidates([[0.9, 0.8, 0.1], [0.3, 0.2, 0.1]])
    assert measure_recall(found, exact, 2).value == 0.5
    assert measure_recall(found, exact, 1).value == 0.5
    assert measure_recall(found, exact, 3).value == pytest.approx(1 / 3)


def test_rows_of_equal_similarity_stand_for_each_other():
    exact, found = candidates([[0.9, 0.8]]), candidates([[0.9, 0.8 - 1e-6]])
    assert measure_recall(found, exact, 2).value == 1.0


def test_missing_rows_are_not_found_and_rows_that_do_not_exist_not_missed():
    inf = -np.inf
    exact = candidates([[0.9, 0.8], [0.7, inf], [inf, inf]])
    assert measure_recall(exact, exact, 2).value == 1.0
    assert measure_recall(candidates([[0.9, inf], [inf, inf], [inf, inf]]), exact, 2).value == 0.5


def test_the_interval_covers_the_true_recall_of_most_samples():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        hits = rng.random((200, 5)) < 0.93
        found = candidates(np.sort(np.where(hits, 1.0, 0.0), axis=1)[:, ::-1].tolist())
        measured = measure_recall(found, candidates([[1.0] * 5] * 200), 5)
        covered += measured.low <= 0.93 <= measured.high
    assert covered >= 0.95 * 400


def test_the_interval_of_a_perfect_sample_does_not_claim_perfection():
    measured = measure_recall(candidates([[1.0]] * 1000), candidates([[1.0]] * 1000), 1)
    assert measured.value == 1.0
    assert 0.995 < measured.low < 0.998
