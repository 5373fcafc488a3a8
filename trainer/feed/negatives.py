"""Fresh negatives as a training loop gets them.

Shape legend: Q = queries, K = negatives of a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.coalface.v1 import mining_pb2
from trainer.errors import ProtocolError

__all__ = ["FreshNegatives", "decode_negatives"]


@dataclass(frozen=True, slots=True, eq=False)
class FreshNegatives:
    """Of each query the nearest rows of other identities, most similar first.

    Attributes:
        round_id: The newest mined round, whose snapshot was searched.
        model_step: Optimizer step of its weights.
        row_ids_QK: [Q, K] int64; -1 where there are fewer.
        identity_ids_QK: [Q, K] int32; -1 likewise.
        similarities_QK: [Q, K] float32; -inf likewise.
    """

    round_id: int
    model_step: int
    row_ids_QK: npt.NDArray[np.int64]
    identity_ids_QK: npt.NDArray[np.int32]
    similarities_QK: npt.NDArray[np.float32]


def decode_negatives(wire: mining_pb2.QueryNegativesResponse) -> FreshNegatives:
    """Read an answer off the wire; its arrays are writable copies of their own.

    Raises:
        ProtocolError: If lengths do not fit each other.
    """
    try:
        row_ids_QK = np.frombuffer(wire.row_ids, "<i8").reshape(-1, wire.num_negatives)
        identity_ids_QK = np.frombuffer(wire.identity_ids, "<i4").reshape(row_ids_QK.shape)
        similarities_QK = np.frombuffer(wire.similarities, "<f4").reshape(row_ids_QK.shape)
    except ValueError as exc:
        raise ProtocolError(f"an answer to QueryNegatives does not fit itself: {exc}") from exc
    return FreshNegatives(
        wire.round_id,
        wire.model_step,
        row_ids_QK.astype(np.int64),
        identity_ids_QK.astype(np.int32),
        similarities_QK.astype(np.float32),
    )
