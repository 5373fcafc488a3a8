"""What lists hold of their rows: vectors, or product codes that are decoded list by list.

It knows neither identities nor anchors. Shape legend: N = rows, D = dimensions, P = axes,
L = lists, M = bytes of a code, S = rows of a sample, G = rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from miner.index.inverted_lists import Centroids
from miner.index.projection import Projection
from miner.index.threads import Each

__all__ = ["CodedGallery", "Gallery", "plain_gallery"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

CHUNK = 16_384
SAMPLE = 65_536
AXES_PER_BYTE = 2
BITS = 8


class Gallery(Protocol):
    """Leading axes of rows, in the order of lists."""

    def __getitem__(self, places_G: slice | I64, /) -> F32:
        """[G, P] float32."""


def plain_gallery(embeddings_ND: F32, rows_N: I64, projection: Projection, each: Each) -> F32:
    """[N, P] the leading axes of rows ``rows_N``."""
    vectors_NP = np.empty((len(rows_N), projection.num_axes), np.float32)

    def project(begin: int) -> None:
        part = slice(begin, begin + CHUNK)
        vectors_NP[part] = projection(embeddings_ND[rows_N[part]])

    each(project, range(0, len(rows_N), CHUNK))
    return vectors_NP


@dataclass(frozen=True, slots=True)
class CodedGallery:
    """Rows as product codes of what they lack to their list's centroid: a byte for two axes.

    Decoding costs little, since it is done once for all anchors that probe a list.

    Attributes:
        codes_NM: [N, M] uint8.
        listed_N: [N] int32 the list of each place.
        centroids_LP: [L, P] float32.
        quantizer: ``faiss.ProductQuantizer``.

    Source: Jegou, Douze, Schmid, Product quantization for nearest neighbor search (2011).
    """

    codes_NM: npt.NDArray[np.uint8]
    listed_N: I32
    centroids_LP: F32
    quantizer: Any

    @classmethod
    def build(  # noqa: PLR0913 - rows, their order, their lists, and how it is built
        cls,
        embeddings_ND: F32,
        rows_N: I64,
        listed_N: I32,
        centroids: Centroids,
        each: Each,
        *,
        seed: int,
    ) -> CodedGallery:
        """Train on a seeded sample of rows ``rows_N``, then code all of them."""
        projection, fine_LP = centroids.projection, centroids.fine_LP
        rng = np.random.Generator(np.random.Philox(seed))
        sample = np.sort(rng.choice(len(rows_N), min(SAMPLE, len(rows_N)), replace=False))
        num_bytes = _num_bytes(projection.num_axes)
        quantizer: Any = faiss.ProductQuantizer(projection.num_axes, num_bytes, BITS)
        quantizer.cp.seed = seed % 2**31
        quantizer.cp.min_points_per_centroid = 1
        residuals_SP = projection(embeddings_ND[rows_N[sample]]) - fine_LP[listed_N[sample]]
        # FAISS cannot make 256 centroids of fewer points: repeat them.
        quantizer.train(np.resize(residuals_SP, (max(2**BITS, len(sample)), residuals_SP.shape[1])))
        codes_NM = np.empty((len(rows_N), num_bytes), np.uint8)

        def code(begin: int) -> None:
            part = slice(begin, begin + CHUNK)
            vectors_nP = projection(embeddings_ND[rows_N[part]])
            codes_NM[part] = quantizer.compute_codes(vectors_nP - fine_LP[listed_N[part]])

        each(code, range(0, len(rows_N), CHUNK))
        return cls(codes_NM, listed_N, fine_LP, quantizer)

    def __getitem__(self, places_G: slice | I64) -> F32:
        """[G, P] the decoded rows."""
        residuals_GP: F32 = self.quantizer.decode(np.ascontiguousarray(self.codes_NM[places_G]))
        residuals_GP += self.centroids_LP[self.listed_N[places_G]]
        return residuals_GP


def _num_bytes(num_axes: int) -> int:
    """The least divisor of the number of axes with which a byte stands for at most two."""
    return next(
        num for num in range(max(1, num_axes // AXES_PER_BYTE), num_axes + 1) if num_axes % num == 0
    )
