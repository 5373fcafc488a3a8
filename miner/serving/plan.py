"""Decides which groups of which round feed which step of a run; knows no disk, lock or clock.

A run's plan is a list of strides. A stride is planned on the newest sealed round, once for ever:

    step     0 ........ 31 | 32 ........ 63 | 64 ....
    round         1        |        1       |    2        a newer round starts at a boundary only
    groups   0 ....... 255 | 256 ...... 511 | 0 .....     of the round's permuted order

Shape legend: G = groups of a round, B = steps.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from miner.core.permutation import group_order
from miner.errors import RequestError, RunConflictError
from miner.types import Groups

__all__ = [
    "RUN_KEYS",
    "PlannedSteps",
    "RoundInfo",
    "RoundRef",
    "RunParameters",
    "Stride",
    "Waiting",
    "next_stride",
    "order_of",
]

_KEPT_GROUPS = 4_000_000
_orders: OrderedDict[tuple[int, int, int, int], npt.NDArray[np.int64]] = OrderedDict()
_orders_lock = threading.Lock()
_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class RunParameters:
    """What a run is opened with; fixed for its life.

    Attributes:
        run_id: 1 to 128 of ``[A-Za-z0-9._-]``, not starting with a dot.
        batch_rows: Upper bound on the rows of a global batch, at least 3.
        seed: Keys the order of the groups, in [0, 2**64).
        exhausted: After the newest round's last group: the round again, or no batch.
        stale: A step above the bound: served and marked, or no batch.
        max_staleness_steps: The bound; 0: none. Rounds made without weights do not get stale.
    """

    run_id: str
    batch_rows: int
    seed: int = 0
    exhausted: Literal["repeat", "wait"] = "repeat"
    stale: Literal["serve", "wait"] = "serve"
    max_staleness_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be a run.

        Raises:
            RequestError: Naming the field and its value.
        """
        if not _RUN_ID.fullmatch(self.run_id):
            raise RequestError(
                f"run_id: {self.run_id!r} is not 1 to 128 of [A-Za-z0-9._-] without a leading dot"
            )
        if self.batch_rows < 3:
            raise RequestError(f"batch_rows: {self.batch_rows} is below 3, the rows of a triplet")
        if not 0 <= self.seed < 2**64:
            raise RequestError(f"seed: {self.seed} is not in [0, 2**64)")
        if self.max_staleness_steps < 0:
            raise RequestError(f"max_staleness_steps: {self.max_staleness_steps} is below 0")


RUN_KEYS = tuple(field.name for field in fields(RunParameters))


@dataclass(frozen=True, slots=True)
class Waiting:
    """No batch can be planned yet.

    Attributes:
        reason: What is being waited for, for a person.
    """

    reason: str


class RoundRef(NamedTuple):
    """Which round feeds some steps; the fields are as in `RoundInfo`."""

    round_id: int
    sha256: str
    model_step: int
    fresh_from: int | None


@dataclass(frozen=True, slots=True)
class PlannedSteps:
    """Consecutive steps of a run that are planned on one round, in columns.

    Attributes:
        run: The run.
        round: The round.
        first_step: The first of the steps.
        batches_B3: [B, 3] int64, of each step ``(pass_number, begin, end)``: it is fed by
            ``order_of(...)[begin:end]`` of the round's groups.
    """

    run: RunParameters
    round: RoundRef
    first_step: int
    batches_B3: npt.NDArray[np.int64]

    @property
    def num_steps(self) -> int:
        """B."""
        return len(self.batches_B3)

    def first(self, num_steps: int) -> PlannedSteps:
        """The first so many of them."""
        return replace(self, batches_B3=self.batches_B3[:num_steps])

    @property
    def steps_B(self) -> npt.NDArray[np.int64]:
        """[B] int64 the steps."""
        return np.arange(self.first_step, self.first_step + self.num_steps)

    @property
    def sizes_B(self) -> npt.NDArray[np.int64]:
        """[B] int64 groups of each."""
        return self.batches_B3[:, 2] - self.batches_B3[:, 1]

    @property
    def staleness_B(self) -> npt.NDArray[np.int64]:
        """[B] int64 ``step - model_step``, at least 0."""
        return np.maximum(0, self.steps_B - self.round.model_step)

    @property
    def over_stale_B(self) -> npt.NDArray[np.bool_]:
        """[B] whether that is above the run's bound."""
        bound, fresh_from = self.run.max_staleness_steps, self.round.fresh_from
        if bound == 0 or fresh_from is None:
            return np.zeros(self.num_steps, np.bool_)
        return self.steps_B - fresh_from > bound


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """A sealed round, as far as planning needs it.

    Attributes:
        round_id: Its number.
        sha256: Digest of its manifest.
        model_step: Optimizer step of the weights that mined it.
        fresh_from: The step from which staleness counts: that of the weights; for a random round
            that stands in for mined ones, the end of the warm-up. None: it is never stale.
        groups: Its groups.
    """

    round_id: int
    sha256: str
    model_step: int
    fresh_from: int | None
    groups: Groups


@dataclass(frozen=True, slots=True)
class Stride:
    """Consecutive steps on one round.

    Attributes:
        first_step: Its first step.
        round_id, round_sha256, model_step, fresh_from: As in `RoundInfo`.
        batches: For each step ``(pass_number, begin, end)``.
    """

    first_step: int
    round_id: int
    round_sha256: str
    model_step: int
    fresh_from: int | None
    batches: tuple[tuple[int, int, int], ...]

    @property
    def end_step(self) -> int:
        """The step after its last."""
        return self.first_step + len(self.batches)

    def planned(self, run: RunParameters) -> PlannedSteps:
        """Its steps, as steps of that run."""
        of = RoundRef(self.round_id, self.round_sha256, self.model_step, self.fresh_from)
        return PlannedSteps(run, of, self.first_step, np.array(self.batches, np.int64))

    def to_json(self) -> dict[str, Any]:
        """The record of this stride; `from_json` gives an equal one back."""
        return {
            "first_step": self.first_step,
            "round_id": self.round_id,
            "round_sha256": self.round_sha256,
            "model_step": self.model_step,
            "fresh_from": self.fresh_from,
            "batches": self.batches,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Stride:
        """The stride of a record."""
        batches = tuple((p, begin, end) for p, begin, end in record["batches"])
        return cls(**{**record, "batches": batches})


def next_stride(
    run: RunParameters, last: Stride | None, newest: RoundInfo, *, stride_steps: int
) -> Stride | Waiting:
    """Plan the steps after ``last`` on the newest round: at most ``stride_steps``, at least one.

    A round that the run is on already is continued, another one is begun at its first group. Every
    pass consumes each group exactly once, and no batch is above ``run.batch_rows``. Fewer steps
    come out where a policy says wait.

    Raises:
        RunConflictError: If one of the round's groups is above ``run.batch_rows``.
    """
    first_step = last.end_step if last else 0
    position = (0, 0)
    if last is not None and last.round_id == newest.round_id:
        position = (last.batches[-1][0], last.batches[-1][2])
    allowed = _steps_before_stale(run, newest, first_step)
    if allowed == 0:
        age_steps = first_step - (newest.fresh_from or 0)
        return Waiting(
            f"step {first_step} would be {age_steps} steps stale, the bound is "
            f"{run.max_staleness_steps}: waiting for a fresher round than {newest.round_id}"
        )
    steps = stride_steps if allowed is None else min(stride_steps, allowed)
    batches = _take_batches(run, newest, position, steps)
    if not batches:
        return Waiting(
            f"all {newest.groups.num_groups} groups of round {newest.round_id} are used up at step "
            f"{first_step}: waiting for a newer round"
        )
    return Stride(
        first_step=first_step,
        round_id=newest.round_id,
        round_sha256=newest.sha256,
        model_step=newest.model_step,
        fresh_from=newest.fresh_from,
        batches=tuple(batches),
    )


def order_of(num_groups: int, seed: int, round_id: int, pass_number: int) -> npt.NDArray[np.int64]:
    """[G] int64, read-only: the order in which a run's pass goes through a round's groups.

    Those asked for last are kept, of four million groups together.
    """
    asked = (num_groups, seed, round_id, pass_number)
    with _orders_lock:
        if asked in _orders:
            _orders.move_to_end(asked)
            return _orders[asked]
    order_G = group_order(num_groups, seed=seed, round_id=round_id, pass_number=pass_number)
    order_G.setflags(write=False)
    with _orders_lock:
        _orders[asked] = order_G
        while len(_orders) > 1 and sum(map(len, _orders.values())) > _KEPT_GROUPS:
            _orders.popitem(last=False)
    return order_G


def _steps_before_stale(run: RunParameters, newest: RoundInfo, first_step: int) -> int | None:
    """Steps from ``first_step`` on that the bound lets pass; None: all."""
    if run.stale == "serve" or run.max_staleness_steps == 0 or newest.fresh_from is None:
        return None
    return max(0, newest.fresh_from + run.max_staleness_steps + 1 - first_step)


def _take_batches(
    run: RunParameters, newest: RoundInfo, position: tuple[int, int], steps: int
) -> list[tuple[int, int, int]]:
    """Up to ``steps`` batches ``(pass_number, begin, end)`` from ``position`` on."""
    sizes_G = np.diff(newest.groups.row_offsets_G1)
    if sizes_G.max() > run.batch_rows:
        raise RunConflictError(
            f"run {run.run_id!r} has batch_rows={run.batch_rows}, but group "
            f"{int(sizes_G.argmax())} of round {newest.round_id} has {int(sizes_G.max())} rows and "
            "is never split: open a run with larger batches, or mine smaller groups"
        )
    pass_number, begin = position
    batches: list[tuple[int, int, int]] = []
    rows_before_G1: npt.NDArray[np.int64] | None = None
    while len(batches) < steps:
        if begin == len(sizes_G):
            if run.exhausted == "wait":
                break
            pass_number, begin, rows_before_G1 = pass_number + 1, 0, None
        if rows_before_G1 is None:
            order_G = order_of(len(sizes_G), run.seed, newest.round_id, pass_number)
            rows_before_G1 = np.concatenate(([0], np.cumsum(sizes_G[order_G])))
        end = _batch_end(rows_before_G1, begin, run.batch_rows)
        batches.append((pass_number, begin, end))
        begin = end
    return batches


def _batch_end(rows_before_G1: npt.NDArray[np.int64], begin: int, batch_rows: int) -> int:
    """Where the batch that starts at ``begin`` ends: as late as its rows allow.

    If two batches are left in the pass, they share its rest as evenly as they can: a lone last
    group could not be shared among ranks.
    """

    def reach(first: int) -> int:
        limit = rows_before_G1[first] + batch_rows
        return int(np.searchsorted(rows_before_G1, limit, side="right")) - 1

    last = len(rows_before_G1) - 1
    end = reach(begin)
    if end == last or reach(end) < last:
        return end
    half = (rows_before_G1[begin] + rows_before_G1[last]) / 2
    middle = int(np.searchsorted(rows_before_G1, half))
    return min(middle, end)
