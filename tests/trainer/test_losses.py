"""The losses against nested loops; embeddings on the unit circle can be checked by hand."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import LossConfig, LossMode
from trainer.losses import BatchIndex, TripletLoss

MARGIN = 0.2


def circle(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def index(identities: list[int], triplets: list[tuple[int, int, int]] = []) -> BatchIndex:  # noqa: B006
    columns = zip(*triplets, strict=True) if triplets else ([], [], [])
    return BatchIndex(
        torch.arange(len(identities)),
        torch.tensor(identities),
        *(torch.tensor(column, dtype=torch.int64) for column in columns),
    )


def loss_of(mode: LossMode, embeddings: torch.Tensor, batch: BatchIndex) -> float:
    return float(TripletLoss(LossConfig(mode=mode, margin=MARGIN))(embeddings, batch))


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    # Identity 0 at 0, 10 and 40 degrees, identity 1 at 60 and 300.
    embeddings = circle(0, 10, 40, 60, 300)
    expected = [
        chord(40) - chord(60),  # anchor at 0: positive at 40, not 10
        chord(30) - chord(50),  # anchor at 10: positive at 40, negative at 60, not 300
        chord(40) - chord(20),  # anchor at 40
        chord(120) - chord(20),  # anchor at 60
        chord(120) - chord(60),  # anchor at 300
    ]
    violating = [x + MARGIN for x in expected if x + MARGIN > 0]
    found = loss_of("in_batch_hard", embeddings, index([0, 0, 0, 1, 1]))
    assert found == pytest.approx(sum(violating) / len(violating), abs=1e-5)


def test_semi_hard_negatives_are_farther_than_the_positive_but_within_the_margin() -> None:
    # From 0, with the positive at 30: 25 is hard, 35 is semi-hard, 90 is easy.
    embeddings = circle(0, 30, 25, 35, 90)
    batch = index([0, 0, 1, 2, 3])
    expected = [
        chord(30) - chord(35) + MARGIN,  # anchor at 0, negative at 35
    ]  # from 30 the negatives at 25 and 35 are both hard, 90 is easy
    assert loss_of("in_batch_semi_hard", embeddings, batch) == pytest.approx(expected[0], abs=1e-5)


def test_mined_triplets_are_used_as_given() -> None:
    embeddings = circle(0, 20, 30, 180)
    batch = index([0, 0, 1, 1], [(0, 1, 2), (0, 1, 3)])
    expected = chord(20) - chord(30) + MARGIN  # the second has no loss, and no part in the mean
    assert loss_of("mined", embeddings, batch) == pytest.approx(expected, abs=1e-5)


def oracle(mode: str, embeddings: np.ndarray, batch: BatchIndex) -> float:
    """Three nested loops; distances in float64."""
    rows, labels = batch.row_ids_R.tolist(), batch.identity_ids_R.tolist()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    kept = [r for r in range(len(rows)) if rows.index(rows[r]) == r]
    total = 0.0
    for part in mode.split("+"):
        losses = []
        if part == "mined":
            columns = (batch.anchors_T, batch.positives_T, batch.negatives_T)
            triplets = list(zip(*(column.tolist() for column in columns), strict=True))
            losses = [distance[a, p] - distance[a, n] + MARGIN for a, p, n in triplets]
        for a in kept if part != "mined" else []:
            positives = [distance[a, p] for p in kept if p != a and labels[p] == labels[a]]
            negatives = [distance[a, n] for n in kept if labels[n] != labels[a]]
            if not positives or not negatives:
                continue
            if part == "in_batch_hard":
                losses.append(max(positives) - min(negatives) + MARGIN)
            else:
                losses += [
                    ap - an + MARGIN
                    for ap in positives
                    for an in negatives
                    if ap < an <= ap + MARGIN
                ]
        violating = [loss for loss in losses if loss > 0]
        total += sum(violating) / len(violating) if violating else 0.0
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(get_args(LossMode)))
def test_every_mode_equals_nested_loops_also_with_repeated_rows(seed: int, mode: LossMode) -> None:
    rng = np.random.default_rng(seed)
    row_ids = rng.integers(0, 14, 16)
    labels_of_row, vector_of_row = rng.integers(0, 4, 14), rng.normal(size=(14, 5))
    labels, embeddings = labels_of_row[row_ids], vector_of_row[row_ids]
    triplets = rng.integers(0, 16, (3, 7))
    batch = BatchIndex(*(torch.from_numpy(x) for x in (row_ids, labels, *triplets)))
    found = loss_of(mode, torch.from_numpy(embeddings).float(), batch)
    assert found == pytest.approx(oracle(mode, embeddings, batch), abs=2e-5)


@pytest.mark.parametrize("mode", get_args(LossMode))
def test_a_batch_without_any_triplet_costs_nothing_and_moves_nothing(mode: LossMode) -> None:
    embeddings = circle(0, 90, 180).requires_grad_()
    loss = TripletLoss(LossConfig(mode=mode))(embeddings, index([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_descending_the_batch_hard_loss_brings_positives_closer_than_negatives() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(12, 4, requires_grad=True)
    batch = index([i // 3 for i in range(12)])
    loss_function = TripletLoss(LossConfig(mode="in_batch_hard"))
    for _ in range(300):
        gradient = torch.autograd.grad(loss_function(embeddings, batch), embeddings)[0]
        embeddings = (embeddings - 0.5 * gradient).detach().requires_grad_()
    unit = torch.nn.functional.normalize(embeddings.detach())
    same = batch.identity_ids_R[:, None] == batch.identity_ids_R[None]
    distance = torch.cdist(unit, unit)
    farthest_positive = distance.masked_fill(~same, -1).amax(1)
    nearest_negative = distance.masked_fill(same, 9).amin(1)
    assert (farthest_positive < nearest_negative).all()


def crowded(spread_degrees: float) -> tuple[torch.Tensor, BatchIndex]:
    """Six rows around one point: the less spread, the nearer to collapse."""
    rows = circle(*(x * spread_degrees for x in (0, 0.5, 0.6, 1.0, 1.3, 1.5)))
    return rows, index([0, 0, 1, 1, 2, 2])


def crowding_of(rows: torch.Tensor) -> float:
    return float(rows.mean(0).square().sum())


@pytest.mark.parametrize("spread", [2.0, 10.0, 30.0, 60.0])
def test_hard_triplets_fade_beside_semi_hard_ones_as_the_batch_crowds(spread: float) -> None:
    rows, batch = crowded(spread)
    limit = 0.9
    config = LossConfig(
        mode="in_batch_hard+in_batch_semi_hard", margin=MARGIN, crowding_limit=limit
    )
    room = min(1.0, (1 - crowding_of(rows)) / (1 - limit))
    expected = loss_of("in_batch_semi_hard", rows, batch) + room * loss_of(
        "in_batch_hard", rows, batch
    )
    assert float(TripletLoss(config)(rows, batch)) == pytest.approx(expected, abs=1e-6)


def test_the_spreads_above_lie_on_both_sides_of_the_limit() -> None:
    crowdings = [crowding_of(crowded(spread)[0]) for spread in (2.0, 30.0, 60.0)]
    assert crowdings[0] > 0.99
    assert crowdings[1] > 0.9 > crowdings[2]


def test_a_crowding_limit_of_one_never_fades_anything() -> None:
    rows, batch = crowded(2.0)
    config = LossConfig(mode="in_batch_hard+in_batch_semi_hard", margin=MARGIN, crowding_limit=1.0)
    parts = [loss_of(mode, rows, batch) for mode in ("in_batch_hard", "in_batch_semi_hard")]
    assert float(TripletLoss(config)(rows, batch)) == pytest.approx(sum(parts), abs=1e-6)


def test_hard_triplets_alone_do_not_fade() -> None:
    rows, batch = crowded(2.0)
    faded = LossConfig(mode="in_batch_hard", margin=MARGIN, crowding_limit=0.1)
    assert float(TripletLoss(faded)(rows, batch)) == loss_of("in_batch_hard", rows, batch)


def test_a_row_that_several_groups_hold_counts_once_in_the_crowding() -> None:
    rows, batch = crowded(60.0)
    again = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0, 0, 0])
    repeated = BatchIndex(
        batch.row_ids_R[again],
        batch.identity_ids_R[again],
        *(torch.empty(0, dtype=torch.int64),) * 3,
    )
    loss = TripletLoss(
        LossConfig(mode="in_batch_hard+in_batch_semi_hard", margin=MARGIN, crowding_limit=0.5)
    )
    assert float(loss(rows[again], repeated)) == pytest.approx(float(loss(rows, batch)), abs=1e-6)
