"""Fresh negatives by an exact search of the live snapshot; knows no wire format.

Shape legend: N = rows of the catalog, Q = queries, D = dimensions, K = negatives of a query,
I = identities.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from miner.errors import RequestError
from miner.types import IdentityTable

__all__ = ["LiveSnapshot", "Negatives", "Queries", "query_negatives"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """The embeddings that the newest mined round was made from.

    Attributes:
        round_id: The round.
        model_step: Optimizer step of its weights.
        embeddings_ND: [N, D] float32 of length 1.
        identities: Of the same rows.
        kin_I: [I] int32, the lowest of the identities that count as one with this one: itself, but
            for those in the round's quarantine.
    """

    round_id: int
    model_step: int
    embeddings_ND: F32
    identities: IdentityTable
    kin_I: I32
    owners_N: I32 = field(init=False)

    def __post_init__(self) -> None:
        """Note whose negatives no row can be."""
        object.__setattr__(self, "owners_N", self.kin_I[self.identities.identity_ids_N])


@dataclass(frozen=True, slots=True)
class Queries:
    """What negatives are asked for: rows of the catalog, or embeddings and whose they are.

    Attributes:
        row_ids_Q: [Q] int64; None where embeddings are given.
        embeddings_QD: [Q, D] float32; None where rows are given.
        identity_ids_Q: [Q] int32, -1 for none; None where rows are given.
    """

    row_ids_Q: I64 | None = None
    embeddings_QD: F32 | None = None
    identity_ids_Q: I32 | None = None

    @property
    def num_queries(self) -> int:
        """Q."""
        given = self.identity_ids_Q if self.row_ids_Q is None else self.row_ids_Q
        return 0 if given is None else len(given)


@dataclass(frozen=True, slots=True)
class Negatives:
    """Of each query the nearest rows of other identities, most similar first.

    Attributes:
        row_ids_QK: [Q, K] int64; -1 where there are fewer.
        identity_ids_QK: [Q, K] int32; -1 likewise.
        similarities_QK: [Q, K] float32; -inf likewise.
    """

    row_ids_QK: I64
    identity_ids_QK: I32
    similarities_QK: F32


def query_negatives(
    live: LiveSnapshot, queries: Queries, num_negatives: int, max_similarity: float = np.inf
) -> Negatives:
    """Search the whole snapshot for each query.

    Guarantee: exact, as :func:`miner.index.sweep.sweep_queries`. No row is of the query's
    identity, nor of one that counts as one with it.

    Raises:
        RequestError: Names the field: a row or identity that is not in the catalog, embeddings of
            other dimensions than the snapshot's, not finite, or of length 0.

    Cost: Q N products of vectors, on all cores.
    """
    from miner.index.sweep import sweep_queries  # FAISS and Numba, only where they are asked for
    from miner.index.threads import workers

    embeddings_QD, owners_Q = _resolved(live, queries)
    with workers(os.cpu_count() or 1) as each:
        similarities_QK, row_ids_QK = sweep_queries(
            live.embeddings_ND,
            live.owners_N,
            embeddings_QD,
            owners_Q,
            num_negatives,
            each,
            max_similarity=max_similarity,
        )
    identity_ids_QK = live.identities.identity_ids_N[row_ids_QK]  # -1 takes the last, mended below
    identity_ids_QK[row_ids_QK < 0] = -1
    return Negatives(row_ids_QK, identity_ids_QK, similarities_QK)


def _resolved(live: LiveSnapshot, queries: Queries) -> tuple[F32, I32]:
    """[Q, D] embeddings of length 1, and [Q] whose rows are no negatives of theirs."""
    num_rows, dim = live.embeddings_ND.shape
    if queries.row_ids_Q is not None:
        _require_inside(queries.row_ids_Q, 0, num_rows, "rows.row_ids")
        taken_QD = np.ascontiguousarray(live.embeddings_ND[queries.row_ids_Q])
        return taken_QD, live.owners_N[queries.row_ids_Q]
    assert queries.embeddings_QD is not None
    assert queries.identity_ids_Q is not None
    if queries.embeddings_QD.shape[1] != dim:
        raise RequestError(
            f"embeddings.dim: must be {dim} as in the snapshot of round {live.round_id}, got "
            f"{queries.embeddings_QD.shape[1]}"
        )
    _require_inside(
        queries.identity_ids_Q, -1, live.identities.num_identities, "embeddings.identity_ids"
    )
    lengths_Q = np.linalg.norm(queries.embeddings_QD.astype(np.float64), axis=1)
    broken = np.flatnonzero(~(np.isfinite(lengths_Q) & (lengths_Q > 0)))
    if len(broken):
        raise RequestError(
            f"embeddings.embeddings: must be finite and of a length above 0, queries "
            f"{broken[:5].tolist()} are not"
        )
    unit_QD = (queries.embeddings_QD / lengths_Q[:, None]).astype(np.float32)
    owners_Q = np.where(queries.identity_ids_Q < 0, -1, live.kin_I[queries.identity_ids_Q])
    return unit_QD, owners_Q.astype(np.int32)


def _require_inside(ids_Q: npt.NDArray[np.integer], low: int, stop: int, field_name: str) -> None:
    outside = ids_Q[(ids_Q < low) | (ids_Q >= stop)]
    if len(outside):
        raise RequestError(f"{field_name}: must be {low} to {stop - 1}, got {outside[:5].tolist()}")
