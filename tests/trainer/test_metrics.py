import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import roc_auc_score, roc_curve

from trainer.blocks import nearest
from trainer.errors import EvaluationError
from trainer.intervals import NUM_RESAMPLES, Resamples
from trainer.metrics import NUM_BINS, Metrics, measure


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_set(
    seed: int, num_rows: int, num_identities: int, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Identities of uneven size, some with one row; numbers with gaps."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(num_identities, 0.6))
    identities = rng.choice(num_identities, num_rows, p=shares)
    identities[:3] = [0, 0, num_identities - 1]
    centres = rng.normal(size=(num_identities, 8))
    embeddings = unit(centres[identities] + spread * rng.normal(size=(num_rows, 8)))
    return embeddings, identities * 7 - 30


def pairs_of(embeddings: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarity and sameness of every pair of two rows."""
    first, second = np.triu_indices(len(identities), 1)
    similarities = np.einsum("pd,pd->p", embeddings[first], embeddings[second])
    return similarities, identities[first] == identities[second]


@pytest.mark.parametrize("seed", range(6))
def test_ranking_figures_equal_pytorch_metric_learning(seed: int) -> None:
    embeddings, identities = random_set(seed, 160, 25)
    metrics = measure(embeddings, identities, block=(1, 7, 64, 500)[seed % 4])
    for by_identity in (False, True):
        reference = AccuracyCalculator(
            include=("precision_at_1", "mean_average_precision_at_r"),
            avg_of_avgs=by_identity,
            k="max_bin_count",
            knn_func=CustomKNN(CosineSimilarity()),
        ).get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(identities))
        found = metrics.map_at_r_by_identity if by_identity else metrics.map_at_r
        recall = metrics.recall_at_1_by_identity if by_identity else metrics.recall_at_1
        assert found.value == pytest.approx(reference["mean_average_precision_at_r"], abs=1e-6)
        assert recall == pytest.approx(reference["precision_at_1"], abs=1e-6)


def test_map_at_r_by_hand() -> None:
    # Neighbours of 0 degrees, nearest first: 10 (other), 20 (own), 40 (own), 90 (other). R = 2:
    # precision at 1 is 0, at 2 is 1/2 and a hit: (0 + 1/2) / 2.
    angles = np.radians([0, 10, 20, 40, 90])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    identities = np.array([5, 1, 5, 5, 2])
    # From 20: 10 (other), then a tie of 0 and 40 up to rounding, both own: 1/4.
    # From 40: 20 (own), 10 (other): (1 + 0) / 2.
    metrics = measure(embeddings, identities)
    assert metrics.map_at_r.value == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert metrics.recall_at_1 == pytest.approx(1 / 3)
    assert (metrics.num_queries, metrics.num_rows, metrics.num_identities) == (3, 5, 3)
    assert (metrics.num_positive_pairs, metrics.num_negative_pairs) == (3, 7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_verification_figures_lie_within_their_stated_error_of_scikit_learn(
    seed: int, has_ties: bool
) -> None:
    embeddings, identities = random_set(seed, 60, 12, spread=0.7)
    if has_ties:  # few distinct, exactly representable vectors: most similarities are tied
        corners = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [-1, 1, 1, 1], [1, -1, 1, -1]]) / 2
        embeddings = corners[np.random.default_rng(seed).integers(4, size=60)].astype(np.float32)
    far = (0.2, 0.05, 0.01, 1e-3)[seed % 4]
    metrics = measure(embeddings, identities, far=far, block=17)
    similarities, is_same = pairs_of(embeddings, identities)
    exact = roc_auc_score(is_same, similarities)
    assert abs(metrics.roc_auc - exact) <= metrics.roc_auc_error + 1e-9
    false_accepts, true_accepts, _ = roc_curve(is_same, similarities, drop_intermediate=False)
    exact_tar = true_accepts[false_accepts <= far].max()
    assert -1e-9 <= exact_tar - metrics.tar_at_far.value <= metrics.tar_at_far_error + 1e-9
    if has_ties:
        assert metrics.roc_auc == pytest.approx(exact, abs=1e-12), "ties count half"


def test_the_stated_errors_are_small_where_similarities_are_spread() -> None:
    metrics = measure(*random_set(0, 1500, 100))
    assert metrics.roc_auc_error < 1e-4
    assert metrics.tar_at_far_error < 1e-3
    assert NUM_BINS >= 1 << 16


def test_the_threshold_accepts_what_it_says() -> None:
    embeddings, identities = random_set(4, 400, 40)
    metrics = measure(embeddings, identities, far=0.01)
    similarities, is_same = pairs_of(embeddings, identities)
    accepted = similarities >= metrics.threshold
    assert accepted[~is_same].mean() <= 0.01
    assert accepted[is_same].mean() == pytest.approx(metrics.tar_at_far.value, abs=1e-3)


def test_neighbours_of_equal_similarity_rank_by_ascending_row() -> None:
    similarities = np.array([[0.5, -0.25, 0.5, -np.inf, 0.0, -0.0, -0.25, -0.5]], np.float32)
    rows = np.array([6, 3, 1, 0, 7, 2, 5, 4])
    assert nearest(similarities, rows, 7).tolist() == [[2, 0, 5, 4, 1, 6, 7]]


def test_figures_depend_neither_on_the_block_nor_on_the_order_of_rows() -> None:
    embeddings, identities = random_set(9, 90, 20)
    order = np.random.default_rng(1).permutation(90)
    first = measure(embeddings, identities, block=90)
    for other in (
        measure(embeddings, identities, block=11),
        measure(embeddings[order], identities[order]),
    ):
        assert other.recall_at_1 == first.recall_at_1
        assert other.map_at_r.value == pytest.approx(first.map_at_r.value, abs=1e-12)
        assert other.roc_auc == pytest.approx(first.roc_auc, abs=1e-6)


def bootstrap_tar(
    embeddings: np.ndarray, identities: np.ndarray, far: float
) -> tuple[float, float]:
    """The whole thing by hand: draw identities, weigh pairs by the product, find the threshold."""
    similarities = embeddings @ embeddings.T
    _, dense = np.unique(identities, return_inverse=True)
    first, second = np.triu_indices(len(dense), 1)
    values, is_same = similarities[first, second], dense[first] == dense[second]
    order = np.argsort(-values[~is_same])
    rng, found = np.random.default_rng(5), []
    for _ in range(300):
        drawn = np.bincount(
            rng.integers(dense.max() + 1, size=dense.max() + 1), minlength=dense.max() + 1
        )
        weight = np.where(is_same, drawn[dense[first]], drawn[dense[first]] * drawn[dense[second]])
        impostors = weight[~is_same][order]
        rate = impostors.cumsum() / impostors.sum()
        threshold = values[~is_same][order][np.searchsorted(rate, far, "right")]
        found.append(weight[is_same & (values > threshold)].sum() / weight[is_same].sum())
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def test_the_interval_of_the_tar_is_that_of_a_bootstrap_over_all_pairs() -> None:
    embeddings, identities = random_set(2, 500, 100, spread=0.6)
    found = measure(embeddings, identities, far=0.01).tar_at_far
    low, high = bootstrap_tar(embeddings, identities, 0.01)
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(low, abs=0.2 * (high - low))
    assert found.high == pytest.approx(high, abs=0.2 * (high - low))


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    interval = Resamples(400, seed=1).ratio(values, np.ones(400))
    error = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.15 * error)
    assert NUM_RESAMPLES >= 1000


def test_intervals_are_wider_for_fewer_identities_however_many_rows() -> None:
    def width(metrics: Metrics) -> float:
        return metrics.map_at_r.high - metrics.map_at_r.low

    few, many = random_set(3, 900, 15), random_set(3, 900, 300)
    assert width(measure(*few)) > 1.5 * width(measure(*many))


def test_a_perfect_encoder_gets_full_marks() -> None:
    identities = np.arange(40) % 8
    metrics = measure(np.eye(8, dtype=np.float32)[identities], identities)
    figures = (
        metrics.recall_at_1,
        metrics.roc_auc,
        metrics.map_at_r.value,
        metrics.tar_at_far.value,
    )
    assert figures == (1, 1, 1, 1)
    assert (metrics.tar_at_far.low, metrics.tar_at_far.high) == (1, 1)


@pytest.mark.parametrize(
    ("embeddings", "identities", "text"),
    [
        (np.eye(3), [0, 0, 0], "1 identities of at most 3 rows"),
        (np.eye(3), [0, 1, 2], "3 identities of at most 1 rows"),
        (np.zeros((0, 3)), [], "0 identities of at most 0 rows"),
        (np.eye(3), [0, 1], "3 embeddings, 2 identities"),
        (np.diag([1, np.nan, 2]), [0, 0, 1], r"2 embeddings are not finite.*rows \[1, 2\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    embeddings: np.ndarray, identities: list[int], text: str
) -> None:
    with pytest.raises(EvaluationError, match=text):
        measure(embeddings.astype(np.float32), np.array(identities, np.int64))


def test_cost_grows_with_the_pairs_and_stays_within_bounds() -> None:
    """15,000 rows take 50 times the pairs of these 2,000; that must stay below 20 s of one core."""
    rng = np.random.default_rng(0)
    embeddings, identities = unit(rng.normal(size=(2000, 128))), rng.integers(100, size=2000)
    begin_s = time.process_time()
    measure(embeddings, identities)
    assert time.process_time() - begin_s < 2
