"""Makes one rank's shares of planned batches, encoded for the wire; knows no gRPC.

Shape legend: B = batches, G = groups of a round, S = of all these batches, s = of one share, F =
whole numbers of a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.compiled import compiled, copy_pieces, int64_at, read_only
from miner.data import Scattered
from miner.errors import DamagedRoundError, RequestError, RunConflictError
from miner.rounds import RoundLog
from miner.serving.arrow_stream import streams_of
from miner.serving.encode import PAYLOAD_TAG, Batches, BatchValues, GroupRecords, varint
from miner.serving.plan import PlannedSteps, order_of
from miner.serving.wire import Copy, messages_of, size_of

__all__ = ["BatchAssembler", "Made", "RowReader"]

_ROUNDS_IN_MEMORY = 3
_ROW_BITS = 44
"""A row id has fewer, and the number of a batch goes above it: both are sorted at once."""


class RowReader(Protocol):
    """What the assembler needs of `miner.data.RowStore`."""

    def read(self, row_ids: npt.NDArray[np.int64], /) -> Any:
        """A record batch of column row_id and the payload columns, in the order asked for."""
        ...

    def lay_out(
        self, row_ids: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], /
    ) -> tuple[list[Any], Scattered]:
        """Of some rows after others each part, from one end to the next, and what they lack yet."""
        ...

    def row_bytes(self, row_ids: npt.NDArray[np.int64], /) -> npt.NDArray[np.int64]:
        """About the bytes of each row, without reading it."""
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
        self._packing: defaultdict[int, Lock] = defaultdict(Lock)
        self._packed = lru_cache(_ROUNDS_IN_MEMORY)(self._pack)

    def messages(  # noqa: PLR0913 - each is needed
        self,
        steps: PlannedSteps,
        rank: int,
        world_size: int,
        with_payload: bool,
        *,
        max_bytes: int,
        enough_bytes: int,
        before_copying: Callable[[], None] | None = None,
    ) -> Made:
        """One rank's shares of the batches of some planned steps, as a stream's messages.

        Guarantee: a batch has the same bytes whatever other steps are made with it. The ranks'
        shares of a step are whole, consecutive groups, and together they are the batch. No message
        has more than ``max_bytes``.

        ``before_copying`` is called when what needs the interpreter's lock is done for some time.

        Returns:
            Those of the first steps at least: up to one that is impossible, or until their samples
            have ``enough_bytes``.

        Raises:
            RoundExpiredError: If the steps' round is not kept any more, and not in memory.
            DamagedRoundError: Likewise, if it is damaged or not the one that was planned on.
            RequestError: If the rank is wrong, or payload is asked for without a row store.
            RunConflictError: If the first batch has fewer groups than there are ranks.
        """
        records = self._records(steps)
        steps = _possible(steps, rank, world_size)
        groups_S = _groups_of(steps, records.num_groups)
        sizes_B = steps.sizes_B
        begins_B1 = np.zeros(len(sizes_B) + 1, np.int64)
        np.cumsum(sizes_B, out=begins_B1[1:])
        first_B = sizes_B * rank // world_size
        shares_B2 = np.empty((len(sizes_B), 2), np.int64)
        shares_B2[:, 0] = begins_B1[:-1] + first_B
        shares_B2[:, 1] = begins_B1[:-1] + sizes_B * (rank + 1) // world_size
        payloads: list[list[Any]] = []
        copy: Copy = copy_pieces
        if with_payload:
            rows_R, ends_B1 = self._payload_rows(records, groups_S, shares_B2, enough_bytes)
            payloads, copy = self._payloads(rows_R, ends_B1)
            steps = steps.first(len(payloads))
        num_steps = steps.num_steps
        values_BF = np.empty((num_steps, len(BatchValues._fields)), np.int64)
        values = BatchValues(*values_BF.T)
        values.step[:] = steps.steps_B
        values.round_id[:] = steps.round.round_id
        values.model_step[:] = steps.round.model_step
        values.staleness_steps[:] = steps.staleness_B
        values.over_stale[:] = steps.over_stale_B
        values.pass_number[:] = steps.batches_B3[:, 0]
        values.global_rows[:] = records.rows_of(groups_S, begins_B1[: num_steps + 1])
        values.global_groups[:] = sizes_B[:num_steps]
        values.first_group[:] = first_B[:num_steps]
        batches = Batches(
            records,
            groups_S,
            shares_B2[:num_steps],
            values_BF,
            np.array([size_of(field) for field in payloads], np.int64) if payloads else None,
        )
        return Made(steps, messages_of(batches, payloads, max_bytes, copy, before_copying))

    def _records(self, steps: PlannedSteps) -> GroupRecords:
        """Those of the steps' round."""
        planned = steps.round
        with self._packing[planned.round_id]:  # or all who ask for it at once would pack it
            return self._packed(planned.round_id, planned.sha256)

    def _pack(self, round_id: int, sha256: str) -> GroupRecords:
        manifest, groups = self.log.round(round_id)
        if manifest.sha256 != sha256:
            raise DamagedRoundError(
                f"the run was planned on round {round_id} with digest {sha256}, the log holds one "
                f"with {manifest.sha256}: rounds were replaced; start a run under another run_id"
            )
        return GroupRecords(groups, manifest.strategy)

    def _payload_rows(
        self,
        records: GroupRecords,
        groups_S: npt.NDArray[np.int64],
        shares_B2: npt.NDArray[np.int64],
        enough_bytes: int,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first batches' distinct rows, ascending, until their samples have enough bytes.

        Returns:
            The row ids of one batch after the other, and [B + 1] where those of each begin.
        """
        if self.row_store is None:
            raise RequestError("with_payload: this service has no row store to send samples from")
        rows_R, ends_B1 = _distinct_rows(records, groups_S, shares_B2)
        num_bytes_R = self.row_store.row_bytes(rows_R)
        before_R1 = np.concatenate(([0], np.cumsum(num_bytes_R)))
        num_batches = 1 + int(np.searchsorted(before_R1[ends_B1[1:-1]], enough_bytes))
        ends_B1 = ends_B1[: num_batches + 1]
        return rows_R[: ends_B1[-1]], ends_B1

    def _payloads(
        self, rows_R: npt.NDArray[np.int64], ends_B1: npt.NDArray[np.int64]
    ) -> tuple[list[list[Any]], Copy]:
        """Of each batch the field, encoded, in pieces: an Arrow IPC stream of its rows.

        They are to be copied by what comes with them, samples lie elsewhere yet.
        """
        assert self.row_store is not None
        parts, scattered = self.row_store.lay_out(rows_R, ends_B1)
        fields = []
        for stream in streams_of(parts):
            frame = varint(PAYLOAD_TAG) + varint(size_of(stream))
            fields.append([pa.py_buffer(frame), *stream])
        return fields, scattered.copy


def _distinct_rows(
    records: GroupRecords, groups_S: npt.NDArray[np.int64], shares_B2: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The row ids of each share, each once, ascending; [B + 1] where those of each begin."""
    gather: Any = _marked_rows
    marked = gather(records.groups_G3, records.address, groups_S, shares_B2)
    marked.sort()
    marked = marked[np.diff(marked, prepend=-1) != 0]
    ends_B1 = np.searchsorted(marked, np.arange(len(shares_B2) + 1) << _ROW_BITS)
    return marked & (1 << _ROW_BITS) - 1, ends_B1


@compiled
def _marked_rows(
    groups_G3: npt.NDArray[np.int64],
    records: int,
    groups_S: npt.NDArray[np.int64],
    shares_B2: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The row ids of all shares, the number of the share above them."""
    num_rows = 0
    for begin, end in shares_B2:
        for place in range(begin, end):
            num_rows += groups_G3[groups_S[place], 1]
    marked = np.empty(num_rows, np.int64)
    at = 0
    for share in range(len(shares_B2)):
        for place in range(shares_B2[share, 0], shares_B2[share, 1]):
            source = records + groups_G3[groups_S[place], 0]
            for row in range(groups_G3[groups_S[place], 1]):
                marked[at] = share << _ROW_BITS | int64_at(source + 8 * row)
                at += 1
    return marked


def _groups_of(steps: PlannedSteps, num_groups: int) -> npt.NDArray[np.int64]:
    """[S] int64 the groups of all these batches, one batch after the other."""
    passes_B, begins_B, ends_B = steps.batches_B3.T
    first_pass, last_pass = int(passes_B[0]), int(passes_B[-1])
    parts = []
    for number in range(first_pass, last_pass + 1):  # within a pass batches follow one another
        order_G = order_of(num_groups, steps.run.seed, steps.round.round_id, number)
        begin = int(begins_B[0]) if number == first_pass else 0
        end = int(ends_B[-1]) if number == last_pass else num_groups
        parts.append(order_G[begin:end])
    return read_only(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _possible(steps: PlannedSteps, rank: int, world_size: int) -> PlannedSteps:
    """The first of the steps that have a group for each rank."""
    if not 0 <= rank < world_size:
        raise RequestError(f"rank: {rank} is not in [0, world_size={world_size})")
    if steps.sizes_B.min() >= world_size:
        return steps
    too_small = np.flatnonzero(steps.sizes_B < world_size)
    if too_small[0] == 0:
        raise RunConflictError(
            f"a batch of {steps.sizes_B[0]} groups cannot be shared among {world_size} ranks, "
            "groups are never split: open a run with larger batch_rows, or train with fewer ranks"
        )
    return steps.first(int(too_small[0]))
