"""Vectors whose nearest rows are sought, wherever they come from.

Shape legend: D = dimensions, Q = queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Queries"]


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries that need not be rows of what is searched.

    Attributes:
        row_ids_Q: [Q] int64 rows of the catalog, by which the answers are told apart.
        vectors_QD: [Q, D] float32 of length 1, C-contiguous.
        owners_Q: [Q] int32 identities; rows of the same one are no answer.
    """

    row_ids_Q: npt.NDArray[np.int64]
    vectors_QD: npt.NDArray[np.float32]
    owners_Q: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.row_ids_Q)
