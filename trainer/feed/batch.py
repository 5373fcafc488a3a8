"""One batch as the training loop gets it: NumPy columns, and the samples if they were sent along.

It knows the wire format and nothing of connections. Shape legend: R = rows of this rank's share,
G = its groups, T = its triplets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from protos.coalface.v1 import mining_pb2
from trainer.errors import ProtocolError

__all__ = ["TripletBatch", "decode_batch"]

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

DTYPES = {
    "row_ids_R": np.int64,
    "identity_ids_R": np.int32,
    "group_offsets_G1": np.int32,
    "anchors_T": np.int32,
    "positives_T": np.int32,
    "negatives_T": np.int32,
    "similarities_ap_T": np.float32,
    "similarities_an_T": np.float32,
    "tiers_T": np.uint8,
}


@dataclass(frozen=True, slots=True, eq=False)
class TripletBatch:
    """One rank's share of one global batch: whole groups, never a part of one.

    Attributes:
        step: The optimizer step that this batch belongs to.
        round_id: The round that it was taken from.
        model_step: Optimizer step of the weights that mined the round.
        staleness_steps: ``step - model_step``, at least 0.
        over_stale: Whether that is above the run's bound.
        strategy: The round's strategy; "random" before a first round was mined.
        pass_number: How often the run went through this round before.
        global_rows: Rows of the whole batch over all ranks (to weigh the loss by rank).
        global_groups: Groups of the whole batch over all ranks.
        first_group: Position of this share's first group in the whole batch.
        row_ids_R: [R] int64, dataset rows; a row may occur more than once.
        identity_ids_R: [R] int32, what pytorch-metric-learning calls labels.
        group_offsets_G1: [G+1] int32; group ``g`` owns rows ``[offsets[g], offsets[g+1])``.
        anchors_T: [T] int32, positions among the R rows; so are positives and negatives.
        similarities_ap_T: [T] float32 as mined; NaN for a random round; likewise ``_an_``.
        tiers_T: [T] uint8: 0 by the strategy, 1 relaxed, 2 random.
        samples: R rows in the order of ``row_ids_R`` (column row_id and the payload columns), or
            None where the feed was opened without payload.
    """

    step: int
    round_id: int
    model_step: int
    staleness_steps: int
    over_stale: bool
    strategy: str
    pass_number: int
    global_rows: int
    global_groups: int
    first_group: int
    row_ids_R: npt.NDArray[np.int64]
    identity_ids_R: I32
    group_offsets_G1: I32
    anchors_T: I32
    positives_T: I32
    negatives_T: I32
    similarities_ap_T: F32
    similarities_an_T: F32
    tiers_T: npt.NDArray[np.uint8]
    samples: pa.RecordBatch | None = None

    @property
    def num_rows(self) -> int:
        """Rows of this share, R."""
        return len(self.row_ids_R)

    @property
    def num_groups(self) -> int:
        """Groups of this share, G."""
        return len(self.group_offsets_G1) - 1

    @property
    def num_triplets(self) -> int:
        """Triplets of this share, T."""
        return len(self.anchors_T)

    def digest(self) -> str:
        """Sha256 in hex over every field: equal for equal batches, on every read, on every machine.

        Cost: one pass over the columns and, where they were sent along, the samples.
        """
        sha256 = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                content = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
            elif isinstance(value, pa.RecordBatch):
                content = value.schema.serialize().to_pybytes() + value.serialize().to_pybytes()
            else:
                content = repr(value).encode()
            sha256.update(f"{field.name}:{len(content)}:".encode() + content)
        return sha256.hexdigest()


def decode_batch(wire: mining_pb2.Batch) -> TripletBatch:
    """Read one batch off the wire; its arrays are writable copies of their own.

    Raises:
        ProtocolError: If a column's length, an offset or a position does not fit the others, or the
            samples cannot be read.
    """
    values: dict[str, Any] = {name: _column(wire, name) for name in DTYPES}
    _check(wire.step, values)
    values["samples"] = _align(wire, values["row_ids_R"]) if wire.payload else None
    for field in fields(TripletBatch):
        if field.name not in values:
            values[field.name] = getattr(wire, field.name)
    return TripletBatch(**values)


def _column(wire: mining_pb2.Batch, name: str) -> npt.NDArray[Any]:
    dtype = np.dtype(DTYPES[name])
    content: bytes = getattr(wire, name.rpartition("_")[0])
    if len(content) % dtype.itemsize:
        raise ProtocolError(
            f"step {wire.step}: column {name} has {len(content)} bytes, no multiple of "
            f"{dtype.itemsize}: miner and trainer are of different versions"
        )
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)


def _check(step: int, columns: dict[str, npt.NDArray[Any]]) -> None:
    """Every column fits the others, so that no later index can fall outside."""
    lengths = {name: len(column) for name, column in columns.items()}
    num_rows, offsets = lengths["row_ids_R"], columns["group_offsets_G1"]
    same_rows = lengths["identity_ids_R"] == num_rows
    same_triplets = len({lengths[name] for name in DTYPES if name.endswith("_T")}) == 1
    whole = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == num_rows
    inside = all(
        bool(((columns[name] >= 0) & (columns[name] < num_rows)).all())
        for name in ("anchors_T", "positives_T", "negatives_T")
    )
    if not (same_rows and same_triplets and whole and inside and (np.diff(offsets) >= 0).all()):
        raise ProtocolError(
            f"step {step}: the batch's columns do not fit each other (lengths {lengths}, "
            f"group offsets {offsets[:1]}..{offsets[-1:]}): miner and trainer are of "
            "different versions"
        )


def _align(wire: mining_pb2.Batch, row_ids_R: npt.NDArray[Any]) -> pa.RecordBatch:
    """The samples in the order of ``row_ids_R``, from the distinct rows that were sent."""
    try:
        table = pa.ipc.open_stream(wire.payload).read_all()
        table.validate(full=True)  # or a wrong offset would be followed
        (sent,) = table.combine_chunks().to_batches()
        sent_ids = sent.column("row_id").to_numpy().astype(np.int64, casting="safe")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as exc:
        raise ProtocolError(
            f"step {wire.step}: its samples cannot be read ({exc}): miner and trainer are of "
            "different versions"
        ) from exc
    places_R = np.searchsorted(sent_ids, row_ids_R).clip(max=len(sent_ids) - 1)
    if not np.array_equal(sent_ids[places_R], row_ids_R):
        missing = row_ids_R[sent_ids[places_R] != row_ids_R]
        raise ProtocolError(f"step {wire.step}: no sample was sent for rows {missing[:5].tolist()}")
    return sent.take(pa.array(places_R))
