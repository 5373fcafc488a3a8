"""Confidence intervals by resampling identities: rows of one identity are not independent.

Pure NumPy. Shape legend: I = identities, S = resamples, C = columns of figures that are summed over
identities, L = levels of the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "LevelCounts", "Resamples"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LevelCounts:
    """Ordered pairs of rows by the identity of their first row.

    Attributes:
        positives_IL: [I, L] same-identity pairs accepted at each level; the threshold falls
            from level to level.
        negatives_IL: [I, L] the same of pairs of two identities.
        positives_I: [I] all same-identity pairs.
        negatives_I: [I] all pairs of two identities.
    """

    positives_IL: I64
    negatives_IL: I64
    positives_I: I64
    negatives_I: I64


@dataclass(frozen=True, slots=True)
class Resamples:
    """``NUM_RESAMPLES`` draws of I identities with replacement; equal seeds give equal draws."""

    num_identities: int
    seed: int

    def ratio(self, numerator_I: F64, denominator_I: npt.NDArray[np.generic]) -> Interval:
        """Interval of ``sum(numerator) / sum(denominator)``, both sums over identities."""
        columns_IC = np.stack([numerator_I, denominator_I], axis=1).astype(np.float64)
        total_SC = self._totals(columns_IC)
        usable_SC = total_SC[total_SC[:, 1] > 0]
        value = columns_IC[:, 0].sum() / columns_IC[:, 1].sum()
        return _interval(float(value), usable_SC[:, 0] / usable_SC[:, 1])

    def tar(self, value: float, counts: LevelCounts, far: float) -> Interval:
        """Interval of the true-accept rate at the false-accept rate ``far``.

        Each resample has a threshold of its own. An impostor pair belongs to two identities, so its
        weight is a product, w_i w_j, of which the terms of first order, w_i + w_j - 1, are kept
        (the Hajek projection); between the levels the rates are interpolated.
        """
        genuine_SC = self._totals(np.column_stack([counts.positives_I, counts.positives_IL]))
        impostor_IC = np.column_stack([counts.negatives_I, counts.negatives_IL])
        impostor_SC = 2 * self._totals(impostor_IC) - impostor_IC.sum(axis=0)
        usable_S = (genuine_SC[:, 0] > 0) & (impostor_SC[:, 0] > 0)
        tar_SL = genuine_SC[usable_S, 1:] / genuine_SC[usable_S, :1]
        far_SL = np.maximum.accumulate(
            impostor_SC[usable_S, 1:] / impostor_SC[usable_S, :1], axis=1
        )
        pairs = zip(far_SL, tar_SL, strict=True)
        return _interval(value, np.array([np.interp(far, f, t) for f, t in pairs]))

    def _totals(self, columns_IC: npt.NDArray[np.generic]) -> F64:
        """[S, C] sums over each resample's identities."""
        generator = np.random.default_rng(self.seed)
        summed_IC: F64 = columns_IC.astype(np.float64)
        total_SC = np.empty((NUM_RESAMPLES, summed_IC.shape[1]))
        for total_C in total_SC:
            drawn = generator.integers(self.num_identities, size=self.num_identities)
            total_C[:] = np.bincount(drawn, minlength=self.num_identities) @ summed_IC
        return total_SC


def _interval(value: float, resampled_S: F64) -> Interval:
    low, high = np.percentile(resampled_S, [2.5, 97.5])
    return Interval(value, float(low), float(high))
