"""How many of the nearest rows of other identities a search has found.

Shape legend: S = anchors of a sample, K = candidates of an anchor, R = nearest rows that count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miner.types import Candidates

__all__ = ["Recall", "measure_recall"]

TIE = np.float32(1e-6)
"""Rounding of a similarity in float32 between two products of other shapes. More would count rows
as found that are not, where all rows are alike."""
Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall measured on a sample of anchors.

    Attributes:
        at: How many nearest rows count, R.
        value: Mean over anchors of the share of these that were found.
        low, high: 95 % interval of the mean over all anchors.
        num_anchors: Of the sample.
    """

    at: int
    value: float
    low: float
    high: float
    num_anchors: int

    def __str__(self) -> str:
        return (
            f"recall@{self.at} {self.value:.4f} (95 % interval {self.low:.4f} to {self.high:.4f}, "
            f"{self.num_anchors} anchors)"
        )


def measure_recall(found: Candidates, exact: Candidates, at: int) -> Recall:
    """Compare what was found with an exact search of the same anchors.

    A row counts as found if the search gave one at least as similar in its place, so rows of equal
    similarity stand for each other. Anchors without any row of another identity count as found.

    The interval is Wilson's for ``num_anchors`` trials; the share found of an anchor varies no more
    than such a trial, so the interval is not too narrow, even where all are found.

    Args:
        found: [S, K] of the search.
        exact: [S, R or more] of the same anchors in the same order.
        at: R.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    best_SR = exact.similarities_AK[:, :at]
    wanted_S = np.count_nonzero(best_SR > -np.inf, axis=1)
    least_S = np.where(np.isneginf(best_SR), np.inf, best_SR).min(axis=1, initial=np.inf)
    is_found_SR = found.similarities_AK[:, :at] >= least_S[:, None] - TIE
    shares_S = is_found_SR.sum(axis=1) / np.maximum(wanted_S, 1)
    shares_S[wanted_S == 0] = 1.0
    value, num = float(shares_S.mean()), len(shares_S)
    centre = (value + Z_95**2 / (2 * num)) / (1 + Z_95**2 / num)
    half = (value * (1 - value) / num + Z_95**2 / (4 * num**2)) ** 0.5 * Z_95 / (1 + Z_95**2 / num)
    return Recall(at, value, max(0.0, centre - half), min(1.0, centre + half), num)
