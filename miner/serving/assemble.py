"""Makes one rank's shares of planned batches, encoded for the wire; knows no gRPC.

Shape legend: B = batches, G = groups of a round, S = of all these batches, s = of one share, F =
whole numbers of a batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from miner.core.ragged import ragged_arange
from miner.errors import DamagedRoundError, RequestError, RunConflictError
from miner.rounds import RoundLog, RoundManifest
from miner.serving.arrow_stream import stream_pieces
from miner.serving.encode import PAYLOAD_TAG, Batches, BatchValues, RoundBytes, varint
from miner.serving.plan import PlannedSteps, order_of
from miner.serving.wire import messages_of
from miner.types import Groups

__all__ = ["BatchAssembler", "Made", "RowReader"]


class RowReader(Protocol):
    """What the assembler needs of `miner.data.RowStore`."""

    def read(self, row_ids: npt.NDArray[np.int64], /) -> Any:
        """A record batch of column row_id and the payload columns, in the order asked for."""
        ...


class Made(NamedTuple):
    """Some steps, and their messages."""

    steps: PlannedSteps
    messages: list[bytes]


class BatchAssembler:
    """Makes batches from a log's rounds; the same bytes for the same plan, whenever asked.

    Attributes:
        log: The log.
        row_store: Where payload comes from; None: no payload can be asked for.
    """

    def __init__(self, log: RoundLog, row_store: RowReader | None) -> None:
        self.log = log
        self.row_store = row_store

    def messages(  # noqa: PLR0913 - each is needed
        self,
        steps: PlannedSteps,
        rank: int,
        world_size: int,
        with_payload: bool,
        *,
        max_bytes: int,
        enough_bytes: int,
    ) -> Made:
        """One rank's shares of the batches of some planned steps, as a stream's messages.

        Guarantee: a batch has the same bytes whatever other steps are made with it. The ranks'
        shares of a step are whole, consecutive groups, and together they are the batch. No message
        has more than ``max_bytes``.

        Returns:
            Those of the first steps at least: up to one that is impossible, or until their samples
            have ``enough_bytes``.

        Raises:
            RoundExpiredError: If the steps' round is not kept any more.
            DamagedRoundError: If it is damaged, or not the one that was planned on.
            RequestError: If the rank is wrong, or payload is asked for without a row store.
            RunConflictError: If the first batch has fewer groups than there are ranks.
        """
        manifest, groups = self._round_of(steps)
        steps = _possible(steps, rank, world_size)
        groups_S = _groups_of(steps, groups.num_groups)
        sizes_B = steps.sizes_B
        begins_B = np.cumsum(sizes_B) - sizes_B
        first_B, stop_B = sizes_B * rank // world_size, sizes_B * (rank + 1) // world_size
        shares_B2 = begins_B[:, None] + np.stack((first_B, stop_B), axis=1)
        payloads: list[list[memoryview]] = []
        if with_payload:
            payloads = self._payloads(groups, groups_S, shares_B2, enough_bytes)
            steps = steps.first(len(payloads))
        num_steps = steps.num_steps
        rows_S = groups.row_offsets_G1[groups_S + 1] - groups.row_offsets_G1[groups_S]
        values_BF = np.empty((num_steps, len(BatchValues._fields)), np.int64)
        values = BatchValues(*values_BF.T)
        values.step[:] = steps.steps_B
        values.round_id[:] = manifest.round_id
        values.model_step[:] = steps.round.model_step
        values.staleness_steps[:] = steps.staleness_B
        values.over_stale[:] = steps.over_stale_B
        values.pass_number[:] = steps.batches_B3[:, 0]
        values.global_rows[:] = np.add.reduceat(rows_S, begins_B)[:num_steps]
        values.global_groups[:] = sizes_B[:num_steps]
        values.first_group[:] = first_B[:num_steps]
        batches = Batches(
            RoundBytes.of(groups, manifest.strategy),
            groups_S,
            shares_B2[:num_steps],
            values_BF,
            np.array([sum(map(len, field)) for field in payloads], np.int64) if payloads else None,
        )
        return Made(steps, messages_of(batches, payloads, max_bytes))

    def _round_of(self, steps: PlannedSteps) -> tuple[RoundManifest, Groups]:
        planned = steps.round
        manifest, groups = self.log.round(planned.round_id)
        if manifest.sha256 != planned.sha256:
            raise DamagedRoundError(
                f"step {steps.first_step} was planned on round {planned.round_id} with digest "
                f"{planned.sha256}, the log holds one with {manifest.sha256}: rounds were "
                "replaced; start a run under another run_id"
            )
        return manifest, groups

    def _payloads(
        self,
        groups: Groups,
        groups_S: npt.NDArray[np.int64],
        shares_B2: npt.NDArray[np.int64],
        enough_bytes: int,
    ) -> list[list[memoryview]]:
        """Of each batch the field, encoded, in pieces, until they have enough bytes together."""
        fields: list[list[memoryview]] = []
        num_bytes = 0
        for begin, end in shares_B2.tolist():
            if num_bytes >= enough_bytes:
                break
            fields.append(self._payload(groups, groups_S[begin:end]))
            num_bytes += sum(map(len, fields[-1]))
        return fields

    def _payload(self, groups: Groups, groups_s: npt.NDArray[np.int64]) -> list[memoryview]:
        """An Arrow IPC stream of the distinct rows, ascending."""
        if self.row_store is None:
            raise RequestError("with_payload: this service has no row store to send samples from")
        begins_s = groups.row_offsets_G1[groups_s]
        position, owner = ragged_arange(groups.row_offsets_G1[groups_s + 1] - begins_s)
        ascending = np.sort(groups.row_ids_R[begins_s[owner] + position])
        is_first = np.concatenate(([True], ascending[1:] != ascending[:-1]))
        pieces = stream_pieces(self.row_store.read(ascending[is_first]))
        frame = varint(PAYLOAD_TAG) + varint(sum(map(len, pieces)))
        return [memoryview(frame), *pieces]


def _groups_of(steps: PlannedSteps, num_groups: int) -> npt.NDArray[np.int64]:
    """[S] int64 the groups of all these batches, one batch after the other."""
    passes_B, begins_B, ends_B = steps.batches_B3.T
    edges = [0, *(np.flatnonzero(np.diff(passes_B)) + 1).tolist(), len(passes_B)]
    parts = []
    for first, stop in pairwise(edges):  # within a pass batches follow one another
        order_G = order_of(num_groups, steps.run.seed, steps.round.round_id, int(passes_B[first]))
        parts.append(order_G[begins_B[first] : ends_B[stop - 1]])
    return np.concatenate(parts)


def _possible(steps: PlannedSteps, rank: int, world_size: int) -> PlannedSteps:
    """The first of the steps that have a group for each rank."""
    if not 0 <= rank < world_size:
        raise RequestError(f"rank: {rank} is not in [0, world_size={world_size})")
    too_small = np.flatnonzero(steps.sizes_B < world_size)
    if len(too_small) == 0:
        return steps
    if too_small[0] == 0:
        raise RunConflictError(
            f"a batch of {steps.sizes_B[0]} groups cannot be shared among {world_size} ranks, "
            "groups are never split: open a run with larger batch_rows, or train with fewer ranks"
        )
    return steps.first(int(too_small[0]))
