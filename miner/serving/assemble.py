"""Makes one rank's shares of planned batches, encoded for the wire; knows no gRPC.

Shape legend: B = batches, G = groups of a round, S = of all these batches, s = of one share, F =
whole numbers of a batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.core.ragged import ragged_arange
from miner.errors import DamagedRoundError, RequestError, RunConflictError
from miner.rounds import RoundLog, RoundManifest
from miner.serving.encode import PAYLOAD_TAG, BatchValues, encode_batches, varint
from miner.serving.plan import PlannedSteps, order_of
from miner.types import Groups

__all__ = ["BatchAssembler", "RowReader"]


class RowReader(Protocol):
    """What the assembler needs of `miner.data.RowStore`."""

    def read(self, row_ids: npt.NDArray[np.int64], /) -> Any:
        """A record batch of column row_id and the payload columns, in the order asked for."""
        ...


class BatchAssembler:
    """Makes batches from a log's rounds; the same bytes for the same plan, whenever asked.

    Attributes:
        log: The log.
        row_store: Where payload comes from; None: no payload can be asked for.
    """

    def __init__(self, log: RoundLog, row_store: RowReader | None) -> None:
        self.log = log
        self.row_store = row_store

    def batches(
        self, steps: PlannedSteps, rank: int, world_size: int, with_payload: bool
    ) -> list[bytes]:
        """One rank's shares of the batches of some planned steps, in the encoding of the wire.

        Guarantee: each has the same bytes whatever other steps are made with it. The ranks' shares
        of a step are whole, consecutive groups, and together they are the batch.

        Raises:
            RoundExpiredError: If the steps' round is not kept any more.
            DamagedRoundError: If it is damaged, or not the one that was planned on.
            RequestError: If the rank is wrong, or payload is asked for without a row store.
            RunConflictError: If a batch has fewer groups than there are ranks.
        """
        manifest, groups = self._round_of(steps)
        groups_S = _groups_of(steps, groups.num_groups)
        sizes_B = steps.batches_B3[:, 2] - steps.batches_B3[:, 1]
        _require_enough(int(sizes_B.min()), rank, world_size)
        begins_B = np.cumsum(sizes_B) - sizes_B
        first_B, stop_B = sizes_B * rank // world_size, sizes_B * (rank + 1) // world_size
        rows_S = np.diff(groups.row_offsets_G1)[groups_S]
        values_BF = np.stack(
            BatchValues(
                step=steps.steps_B,
                round_id=np.full_like(sizes_B, manifest.round_id),
                model_step=np.full_like(sizes_B, steps.stride.model_step),
                staleness_steps=steps.staleness_B,
                over_stale=steps.over_stale_B.astype(np.int64),
                pass_number=steps.batches_B3[:, 0],
                global_rows=np.add.reduceat(rows_S, begins_B),
                global_groups=sizes_B,
                first_group=first_B,
            ),
            axis=1,
        )
        shares_B2 = begins_B[:, None] + np.stack((first_B, stop_B), axis=1)
        encoded = encode_batches(groups, groups_S, shares_B2, values_BF, manifest.strategy)
        if not with_payload:
            return encoded
        return [
            b"".join((content, *self._payload(groups, groups_S[begin:end])))
            for content, (begin, end) in zip(encoded, shares_B2.tolist(), strict=True)
        ]

    def _round_of(self, steps: PlannedSteps) -> tuple[RoundManifest, Groups]:
        stride = steps.stride
        manifest = self.log.manifest(stride.round_id)
        if manifest.sha256 != stride.round_sha256:
            raise DamagedRoundError(
                f"step {steps.first_step} was planned on round {stride.round_id} with digest "
                f"{stride.round_sha256}, the log holds one with {manifest.sha256}: rounds were "
                "replaced; start a run under another run_id"
            )
        return manifest, self.log.read(stride.round_id)

    def _payload(
        self, groups: Groups, groups_s: npt.NDArray[np.int64]
    ) -> tuple[bytes, bytes, memoryview]:
        """The field, encoded, in pieces: an Arrow IPC stream of the distinct rows, ascending."""
        if self.row_store is None:
            raise RequestError("with_payload: this service has no row store to send samples from")
        begins_s = groups.row_offsets_G1[groups_s]
        position, owner = ragged_arange(groups.row_offsets_G1[groups_s + 1] - begins_s)
        rows = self.row_store.read(np.unique(groups.row_ids_R[begins_s[owner] + position]))
        measured = pa.MockOutputStream()
        _write_stream(measured, rows)
        content = pa.allocate_buffer(measured.size())  # one that grows would be copied over
        with pa.FixedSizeBufferWriter(content) as sink:
            _write_stream(sink, rows)
        return varint(PAYLOAD_TAG), varint(content.size), memoryview(content)


def _write_stream(sink: Any, rows: Any) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)


def _groups_of(steps: PlannedSteps, num_groups: int) -> npt.NDArray[np.int64]:
    """[S] int64 the groups of all these batches, one batch after the other."""
    passes_B, begins_B, ends_B = steps.batches_B3.T
    edges = [0, *(np.flatnonzero(np.diff(passes_B)) + 1).tolist(), len(passes_B)]
    stride, parts = steps.stride, []
    for first, stop in pairwise(edges):  # within a pass batches follow one another
        order_G = order_of(num_groups, steps.run.seed, stride.round_id, int(passes_B[first]))
        parts.append(order_G[begins_B[first] : ends_B[stop - 1]])
    return np.concatenate(parts)


def _require_enough(num_groups: int, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise RequestError(f"rank: {rank} is not in [0, world_size={world_size})")
    if num_groups < world_size:
        raise RunConflictError(
            f"a batch of {num_groups} groups cannot be shared among {world_size} ranks, groups are "
            "never split: open a run with larger batch_rows, or train with fewer ranks"
        )
