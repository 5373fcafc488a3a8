"""Makes one rank's share of a planned batch, in the columns of the wire; knows no gRPC.

Shape legend: R = rows, G = groups, T = triplets, all of the share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.errors import DamagedRoundError, RequestError, RunConflictError
from miner.rounds import RoundLog
from miner.serving.plan import StepPlan, order_of
from miner.types import Groups

__all__ = ["BatchAssembler", "BatchColumns", "RowReader", "rank_share"]


class RowReader(Protocol):
    """What the assembler needs of `miner.data.RowStore`."""

    def read(self, row_ids: npt.NDArray[np.int64], /) -> Any:
        """A record batch of column row_id and the payload columns, in the order asked for."""
        ...


@dataclass(frozen=True, slots=True)
class BatchColumns:
    """The fields of the wire's ``Batch``, with its names; arrays little-endian in C order.

    Attributes:
        row_ids: int64 [R].
        identity_ids: int32 [R].
        group_offsets: int32 [G+1], into the rows.
        anchors, positives, negatives: int32 [T], positions among the R rows.
        similarities_ap, similarities_an: float32 [T].
        tiers: uint8 [T].
        payload: Arrow IPC stream of the distinct rows, ascending by row_id; empty: not asked for.
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
    row_ids: bytes
    identity_ids: bytes
    group_offsets: bytes
    anchors: bytes
    positives: bytes
    negatives: bytes
    similarities_ap: bytes
    similarities_an: bytes
    tiers: bytes
    payload: bytes


def rank_share(groups: Groups, rank: int, world_size: int) -> Groups:
    """The whole, consecutive groups of one rank; the ranks' shares together are ``groups``.

    Raises:
        RequestError: If ``rank`` is not in [0, world_size).
        RunConflictError: If there are fewer groups than ranks.
    """
    first, stop = _share_bounds(groups.num_groups, rank, world_size)
    return groups.take(np.arange(first, stop, dtype=np.int64))


class BatchAssembler:
    """Makes batches from a log's rounds; the same bytes for the same plan, whenever asked.

    Attributes:
        log: The log.
        row_store: Where payload comes from; None: no payload can be asked for.
    """

    def __init__(self, log: RoundLog, row_store: RowReader | None) -> None:
        self.log = log
        self.row_store = row_store

    def batch(self, plan: StepPlan, rank: int, world_size: int, with_payload: bool) -> BatchColumns:
        """One rank's share of the batch of a planned step.

        Raises:
            RoundExpiredError: If the plan's round is not kept any more.
            DamagedRoundError: If it is damaged, or not the one that was planned on.
            RequestError: If the rank is wrong, or payload is asked for without a row store.
            RunConflictError: If the batch has fewer groups than there are ranks.
        """
        manifest = self.log.manifest(plan.round_id)
        if manifest.sha256 != plan.round_sha256:
            raise DamagedRoundError(
                f"step {plan.step} was planned on round {plan.round_id} with digest "
                f"{plan.round_sha256}, the log holds one with {manifest.sha256}: rounds were "
                "replaced; start a run under another run_id"
            )
        groups = self.log.read(plan.round_id)
        order_G = order_of(groups.num_groups, plan.seed, plan.round_id, plan.pass_number)
        batch = groups.take(order_G[plan.begin : plan.end])
        share = rank_share(batch, rank, world_size)
        return BatchColumns(
            step=plan.step,
            round_id=plan.round_id,
            model_step=plan.model_step,
            staleness_steps=plan.staleness_steps,
            over_stale=plan.over_stale,
            strategy=manifest.strategy,
            pass_number=plan.pass_number,
            global_rows=batch.num_rows,
            global_groups=batch.num_groups,
            first_group=_share_bounds(batch.num_groups, rank, world_size)[0],
            **_columns(share),
            payload=self._payload(share) if with_payload else b"",
        )

    def _payload(self, share: Groups) -> bytes:
        if self.row_store is None:
            raise RequestError("with_payload: this service has no row store to send samples from")
        rows = self.row_store.read(np.unique(share.row_ids_R))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        content: bytes = sink.getvalue().to_pybytes()
        return content


def _columns(share: Groups) -> dict[str, Any]:
    """The wire's columns; positions within a group become positions among the share's rows."""
    shift_T = np.repeat(share.row_offsets_G1[:-1], np.diff(share.triplet_offsets_G1))
    return {
        "row_ids": share.row_ids_R.astype("<i8").tobytes(),
        "identity_ids": share.identity_ids_R.astype("<i4").tobytes(),
        "group_offsets": share.row_offsets_G1.astype("<i4").tobytes(),
        "anchors": (share.anchors_T + shift_T).astype("<i4").tobytes(),
        "positives": (share.positives_T + shift_T).astype("<i4").tobytes(),
        "negatives": (share.negatives_T + shift_T).astype("<i4").tobytes(),
        "similarities_ap": share.similarities_ap_T.astype("<f4").tobytes(),
        "similarities_an": share.similarities_an_T.astype("<f4").tobytes(),
        "tiers": share.tiers_T.astype("u1").tobytes(),
    }


def _share_bounds(num_groups: int, rank: int, world_size: int) -> tuple[int, int]:
    if not 0 <= rank < world_size:
        raise RequestError(f"rank: {rank} is not in [0, world_size={world_size})")
    if num_groups < world_size:
        raise RunConflictError(
            f"a batch of {num_groups} groups cannot be shared among {world_size} ranks, groups are "
            "never split: open a run with larger batch_rows, or train with fewer ranks"
        )
    return num_groups * rank // world_size, num_groups * (rank + 1) // world_size
