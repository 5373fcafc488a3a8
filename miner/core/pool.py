"""Candidates of some anchors as one flat list, checked as they are read.

Pure NumPy. Shape legend: A = anchors, K = candidates per anchor, E = entries of a pool,
M = negatives per anchor.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.parallel import cut, do_blocks
from miner.core.rng import RoundSeed
from miner.errors import SelectionError
from miner.types import Candidates, IdentityTable

__all__ = ["Anchors", "MiningTask", "Pool", "check_candidates", "read_pool"]

_BLOCK_ENTRIES = 1 << 20

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors of a round in ascending order of their rows, whatever order they came in.

    Attributes:
        ids_A: [A] int64 row ids, ascending; all other arrays index anchors in this order.
        identities_A: [A] int32.
        positives_A: [A] int64 row ids.
        similarities_ap_A: [A] float32; NaN without embeddings.
        guard_similarities_ap_A: [A] float32, the ``s_ap`` of the margin guards.
        places_A: [A] int64, where each stands in the :class:`~miner.types.Candidates`.
    """

    ids_A: I64
    identities_A: npt.NDArray[np.int32]
    positives_A: I64
    similarities_ap_A: F32
    guard_similarities_ap_A: F32
    places_A: I64


@dataclass(frozen=True, slots=True)
class MiningTask:
    """All that the selection of one round reads.

    Attributes:
        candidates, embeddings_ND, identities, config, keys, anchors: The round's input.
        kin_I: [I] int32, the lowest of the identities that count as one with this one: itself, but
            for those in quarantine.
        target_hardness: For strategy ``curriculum``.
    """

    candidates: Candidates
    embeddings_ND: F32
    identities: IdentityTable
    config: SelectionConfig
    keys: RoundSeed
    anchors: Anchors
    kin_I: npt.NDArray[np.int32]
    target_hardness: float = 0.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of some anchors, by anchor and within it nearest first.

    Attributes:
        anchors_E: [E] int64 positions among the :class:`Anchors`, ascending.
        rows_E: [E] int64 row ids.
        identities_E: [E] int32.
        kin_E: [E] int32, the same number for identities that count as one.
        similarities_E: [E] float32, ``s_an``.
    """

    anchors_E: I64
    rows_E: I64
    identities_E: npt.NDArray[np.int32]
    kin_E: npt.NDArray[np.int32]
    similarities_E: F32

    def take(self, chosen: npt.NDArray[np.bool_] | I64) -> Pool:
        """The entries under a mask, or at the given positions in that order."""
        return Pool(*(getattr(self, field.name)[chosen] for field in fields(self)))


def check_candidates(candidates: Candidates, num_rows: int) -> None:
    """See that candidates come from a search over a catalog of ``num_rows`` rows.

    Raises:
        SelectionError: If a candidate is not a row of the catalog, a similarity is not finite, or
            the candidates of an anchor do not stand nearest first; names the first anchors.
    """

    def work(part: slice) -> None:
        ids_a, rows_aK = candidates.anchor_ids_A[part], candidates.row_ids_AK[part]
        similarities_aK = candidates.similarities_AK[part]
        real_aK = rows_aK != -1
        outside_aK = (rows_aK < -1) | (rows_aK >= num_rows)
        _refuse(outside_aK, ids_a, f"a candidate outside the {num_rows} rows")
        broken_aK = real_aK & ~np.isfinite(similarities_aK)
        _refuse(broken_aK, ids_a, "a candidate with a similarity of NaN or infinity")
        in_order_aK = similarities_aK[:, 1:] <= similarities_aK[:, :-1]
        disorder_aK = real_aK[:, 1:] & ~in_order_aK
        _refuse(disorder_aK, ids_a, "candidates that do not stand nearest first")

    block = max(1, _BLOCK_ENTRIES // max(1, candidates.row_ids_AK.shape[1]))
    do_blocks(work, cut(len(candidates.anchor_ids_A), block))


def read_pool(task: MiningTask, anchors_a: I64) -> Pool:
    """The candidates of the anchors at ``anchors_a``, without the padding."""
    places_a = task.anchors.places_A[anchors_a]
    rows_aK = task.candidates.row_ids_AK[places_a]
    similarities_aK = task.candidates.similarities_AK[places_a]
    real_aK = rows_aK != -1
    anchors_E = np.repeat(anchors_a, real_aK.sum(1))
    rows_E, similarities_E = rows_aK[real_aK], similarities_aK[real_aK]
    identities_E = task.identities.identity_ids_N[rows_E]
    kin_E = task.kin_I[identities_E]
    return Pool(anchors_E, rows_E, identities_E, kin_E, similarities_E)


def _refuse(broken_aK: npt.NDArray[np.bool_], ids_a: I64, fault: str) -> None:
    broken = ids_a[broken_aK.any(1)]
    if len(broken):
        raise SelectionError(
            f"{len(broken)} anchors have {fault}: rows {broken[:5].tolist()}; the candidates do "
            "not come from a search over this catalog, or the embeddings are broken"
        )
