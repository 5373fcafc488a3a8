"""Makes one rank's shares of planned batches, encoded for the wire; knows no gRPC.

Shape legend: G = groups of a round, g = of a batch, S = of all shares, R = rows of a share.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.errors import DamagedRoundError, RequestError, RunConflictError
from miner.rounds import RoundLog, RoundManifest
from miner.serving.encode import PAYLOAD_TAG, BatchValues, encode_batches, varint
from miner.serving.plan import StepPlan, order_of
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
        self, plans: Sequence[StepPlan], rank: int, world_size: int, with_payload: bool
    ) -> list[bytes]:
        """One rank's shares of the batches of some planned steps, in the encoding of the wire.

        Guarantee: each has the same bytes whatever other steps are made with it. The ranks' shares
        of a step are whole, consecutive groups, and together they are the batch.

        Args:
            plans: Of steps on one round.
            rank: Whose share.
            world_size: Ranks in all.
            with_payload: Whether the samples come along.

        Raises:
            RoundExpiredError: If the plans' round is not kept any more.
            DamagedRoundError: If it is damaged, or not the one that was planned on.
            RequestError: If the rank is wrong, or payload is asked for without a row store.
            RunConflictError: If a batch has fewer groups than there are ranks.
        """
        manifest, groups = self._round_of(plans[0])
        sizes_G = np.diff(groups.row_offsets_G1)
        taken, edges, values = [], [0], []
        for plan in plans:
            assert plan.round_id == plans[0].round_id, "of one round"
            order_G = order_of(groups.num_groups, plan.seed, plan.round_id, plan.pass_number)
            order_g = order_G[plan.begin : plan.end]
            first, stop = _share_bounds(len(order_g), rank, world_size)
            taken.append(order_g[first:stop])
            edges.append(edges[-1] + stop - first)
            values.append(
                BatchValues(
                    step=plan.step,
                    round_id=plan.round_id,
                    model_step=plan.model_step,
                    staleness_steps=plan.staleness_steps,
                    over_stale=plan.over_stale,
                    pass_number=plan.pass_number,
                    global_rows=int(sizes_G[order_g].sum()),
                    global_groups=len(order_g),
                    first_group=first,
                )
            )
        taken_S = np.concatenate(taken)
        encoded = encode_batches(
            groups, taken_S, np.array(edges), np.array(values, np.int64), manifest.strategy
        )
        if not with_payload:
            return encoded
        return [
            content + self._payload(groups.take(taken_S[begin:end]).row_ids_R)
            for content, (begin, end) in zip(encoded, pairwise(edges), strict=True)
        ]

    def _round_of(self, plan: StepPlan) -> tuple[RoundManifest, Groups]:
        manifest = self.log.manifest(plan.round_id)
        if manifest.sha256 != plan.round_sha256:
            raise DamagedRoundError(
                f"step {plan.step} was planned on round {plan.round_id} with digest "
                f"{plan.round_sha256}, the log holds one with {manifest.sha256}: rounds were "
                "replaced; start a run under another run_id"
            )
        return manifest, self.log.read(plan.round_id)

    def _payload(self, row_ids_R: npt.NDArray[np.int64]) -> bytes:
        """The field, encoded: an Arrow IPC stream of the distinct rows, ascending."""
        if self.row_store is None:
            raise RequestError("with_payload: this service has no row store to send samples from")
        rows = self.row_store.read(np.unique(row_ids_R))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        content = sink.getvalue()
        return b"".join((varint(PAYLOAD_TAG), varint(content.size), memoryview(content)))


def _share_bounds(num_groups: int, rank: int, world_size: int) -> tuple[int, int]:
    if not 0 <= rank < world_size:
        raise RequestError(f"rank: {rank} is not in [0, world_size={world_size})")
    if num_groups < world_size:
        raise RunConflictError(
            f"a batch of {num_groups} groups cannot be shared among {world_size} ranks, groups are "
            "never split: open a run with larger batch_rows, or train with fewer ranks"
        )
    return num_groups * rank // world_size, num_groups * (rank + 1) // world_size
