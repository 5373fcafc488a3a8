"""Inner products of pairs of rows, in blocks: the one place where this package reads embeddings.

Shape legend: N = rows of the catalog, D = dimensions, P = pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, read_only
from miner.core.parallel import cut, do_blocks

__all__ = ["pair_similarities"]

_BLOCK_FLOATS = 1 << 18


def pair_similarities(
    embeddings_ND: npt.NDArray[np.float32],
    left_P: npt.NDArray[np.int64],
    right_P: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """[P] float32, the inner product of rows ``left_P[p]`` and ``right_P[p]``.

    Cost: O(P D) time, no memory beside the result; ``embeddings_ND`` may be a memory map.

    Example:
        >>> pair_similarities(np.eye(2, dtype=np.float32), np.array([0, 1]), np.array([0, 0]))
        array([1., 0.], dtype=float32)
    """
    similarities_P = np.empty(len(left_P), np.float32)

    rows_ND = read_only(embeddings_ND)

    def work(part: slice) -> None:
        _multiply(rows_ND, left_P[part], right_P[part], similarities_P[part])

    do_blocks(work, cut(len(left_P), max(1, _BLOCK_FLOATS // max(1, embeddings_ND.shape[1]))))
    return similarities_P


@compiled
def _multiply(
    embeddings_ND: npt.NDArray[np.float32],
    left_P: npt.NDArray[np.int64],
    right_P: npt.NDArray[np.int64],
    products_P: npt.NDArray[np.float32],
) -> None:
    for pair in range(len(left_P)):
        left_D, right_D = embeddings_ND[left_P[pair]], embeddings_ND[right_P[pair]]
        product = np.float32(0)
        for axis in range(len(left_D)):
            product += left_D[axis] * right_D[axis]
        products_P[pair] = product
