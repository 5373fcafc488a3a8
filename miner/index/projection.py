"""The leading axes of the rows: most of a product of two rows in a part of its dimensions.

It knows neither lists nor anchors. Shape legend: N = rows, D = dimensions, P = axes,
S = rows of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Projection"]

F32 = npt.NDArray[np.float32]

SAMPLE = 20_000
STEP = 8
"""Axes come in eights, as the processor takes them."""
WORTHWHILE = 0.8
"""With more than this share of the dimensions the products would hardly be cheaper."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Orthonormal axes; with all of them rows are left as they are.

    Attributes:
        axes_DP: [D, P] float32, or None for all dimensions.
        dim: D.
    """

    axes_DP: F32 | None
    dim: int

    @classmethod
    def whole(cls, dim: int) -> Projection:
        """All dimensions."""
        return cls(None, dim)

    @classmethod
    def fit(cls, embeddings_ND: F32, energy: float, seed: int) -> Projection:
        """The fewest leading axes that hold so much of the rows' squared length, in a sample.

        What a product of two rows loses is the product of their remainders, whose squared lengths
        are ``1 - energy`` on average. At least the first eight axes, or all dimensions.

        Source: Pearson, On lines and planes of closest fit (1901), about the origin.
        """
        num_rows, dim = embeddings_ND.shape
        rng = np.random.Generator(np.random.Philox(seed))
        sample = np.sort(rng.choice(num_rows, min(num_rows, SAMPLE), replace=False))
        sample_SD = embeddings_ND[sample]
        energies_D, axes_DD = np.linalg.eigh((sample_SD.T @ sample_SD).astype(np.float64))
        shares_D = np.cumsum(energies_D[::-1]) / energies_D.sum()
        num_axes = STEP * -(-(int(np.searchsorted(shares_D, energy)) + 1) // STEP)
        if num_axes > WORTHWHILE * dim:
            return cls.whole(dim)
        return cls(np.ascontiguousarray(axes_DD[:, : -num_axes - 1 : -1], np.float32), dim)

    @property
    def num_axes(self) -> int:
        """P."""
        return self.dim if self.axes_DP is None else self.axes_DP.shape[1]

    @property
    def is_whole(self) -> bool:
        """Whether all dimensions are kept."""
        return self.axes_DP is None

    def __call__(self, rows_nD: F32) -> F32:
        """[n, P] contiguous float32."""
        if self.axes_DP is None:
            return np.ascontiguousarray(rows_nD)
        projected_nP: F32 = rows_nD @ self.axes_DP
        return projected_nP
