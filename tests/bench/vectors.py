"""Clustered unit vectors with identities of power-law size and planted duplicate identities.

What a partly trained encoder gives, without one: look-alike identities lie in families, identities
are of different tightness, and some identities are two names of one. Shape legend: N = rows,
I = identities, F = families, D = dimensions, Q = planted pairs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Clustered", "clustered", "moved", "power_law_sizes"]

FAMILY = 16
"""Identities of a family, on average."""
FAMILY_SPREAD = 1.0
LOOSENESS = 0.2
"""Standard deviation of the logarithm of an identity's spread."""
BLOCK = 1 << 16

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clustered:
    """A generated set; rows stand in random order.

    Attributes:
        embeddings_ND: [N, D] float32 unit rows.
        identity_ids_N: [N] int32, dense; unrelated to size.
        duplicates_Q2: [Q, 2] int32, pairs of identities with the same centre and spread.
    """

    embeddings_ND: F32
    identity_ids_N: npt.NDArray[np.int32]
    duplicates_Q2: npt.NDArray[np.int32]


def clustered(
    num_rows: int,
    num_identities: int,
    dim: int,
    power: float,
    seed: int,
    num_duplicates: int = 0,
    spread: float = 0.8,
    decay: float = 0.0,
) -> Clustered:
    """Draw a set.

    A row is ``unit(centre + s_i g)`` with ``g`` Gaussian of expected squared length 1 and
    ``s_i = spread * exp(LOOSENESS * normal)`` of its identity, so two rows of an identity are
    similar by about ``1 / (1 + s_i^2)``. A centre is ``unit(family + FAMILY_SPREAD g)``.

    Args:
        num_rows: N.
        num_identities: I, at most N / 2.
        dim: D.
        power: Sizes go with ``rank ** -power``, at least 2; 0 for equal sizes.
        seed: Same seed, same set.
        num_duplicates: Q, at most I / 2; no identity is in two pairs.
        spread: Median spread of an identity.
        decay: Standard deviations of all Gaussians go with ``axis ** -decay``. At 0 every direction
            is alike, and what lies beyond an identity's family is noise that no index can order; at
            0.8 the intrinsic dimension of 128 is about 14 to 17 (Levina and Bickel's estimate).
    """
    rng = np.random.default_rng(seed)
    scale_D = np.arange(1, dim + 1) ** -decay
    scale_D = (scale_D / np.linalg.norm(scale_D)).astype(np.float32)
    families_FD = _noise(rng, max(1, num_identities // FAMILY), scale_D)
    family_I = rng.integers(len(families_FD), size=num_identities)
    centres_ID = _unit(families_FD)[family_I] + FAMILY_SPREAD * _noise(rng, num_identities, scale_D)
    centres_ID = _unit(centres_ID)
    spread_I = spread * np.exp(LOOSENESS * rng.standard_normal(num_identities))
    pairs = rng.permutation(num_identities)[: 2 * num_duplicates].reshape(-1, 2)
    centres_ID[pairs[:, 1]], spread_I[pairs[:, 1]] = centres_ID[pairs[:, 0]], spread_I[pairs[:, 0]]
    sizes_I = rng.permutation(power_law_sizes(num_rows, num_identities, power))
    identity_ids_N = rng.permutation(np.repeat(np.arange(num_identities, dtype=np.int32), sizes_I))
    embeddings_ND = np.empty((num_rows, dim), np.float32)
    for begin in range(0, num_rows, BLOCK):
        ids_b = identity_ids_N[begin : begin + BLOCK]
        noise_bD = _noise(rng, len(ids_b), scale_D) * spread_I[ids_b, None].astype(np.float32)
        embeddings_ND[begin : begin + BLOCK] = _unit(centres_ID[ids_b] + noise_bD)
    return Clustered(embeddings_ND, identity_ids_N, np.sort(pairs, axis=1).astype(np.int32))


def moved(embeddings_ND: F32, by: float, seed: int) -> F32:
    """The rows after some training: all turned by one linear map, each a little by itself.

    At 0.1 a row keeps a similarity of 0.995 to itself on average, at 0.3 of 0.96.
    """
    rng = np.random.default_rng(seed)
    dim = embeddings_ND.shape[1]
    turn_DD = np.eye(dim) + by * rng.standard_normal((dim, dim)) / dim**0.5
    rows_ND = embeddings_ND @ turn_DD.astype(np.float32)
    for begin in range(0, len(rows_ND), BLOCK):
        noise_bD = rng.standard_normal(rows_ND[begin : begin + BLOCK].shape, np.float32)
        rows_ND[begin : begin + BLOCK] += noise_bD * np.float32(0.3 * by / dim**0.5)
    return _unit(rows_ND)


def power_law_sizes(num_rows: int, num_identities: int, power: float) -> npt.NDArray[np.int64]:
    """[I] descending sizes of at least 2 that sum to ``num_rows``."""
    weights_I = np.arange(1, num_identities + 1, dtype=np.float64) ** -power
    share_I = weights_I / weights_I.sum() * (num_rows - 2 * num_identities)
    sizes_I = 2 + np.floor(share_I).astype(np.int64)
    sizes_I[np.argsort(np.floor(share_I) - share_I)[: num_rows - sizes_I.sum()]] += 1
    return -np.sort(-sizes_I)


def _noise(rng: np.random.Generator, num: int, scale_D: F32) -> F32:
    """Gaussian vectors of expected squared length 1."""
    return rng.standard_normal((num, len(scale_D)), np.float32) * scale_D


def _unit(vectors_nD: F32) -> F32:
    return vectors_nD / np.linalg.norm(vectors_nD, axis=1, keepdims=True)
