"""What clients and writers of a chaos run write down, and how it is looked up.

Records are dicts, one JSON object a line in files:

    launched    reader, run: a process was started; it has to go on from the newest checkpoint
    start       reader, run, rank, world_size, first_step, stale, max_staleness_steps: what the
                process itself found, the step being that of the checkpoint it loaded
    batch       reader, run, step, rank, world_size, digest, round, model_step, staleness_steps,
                over_stale, pass, rows, triplets, global_rows, global_groups, first_group,
                groups (a digest of each), negatives (row ids), clashes (negatives of the anchor's
                own identity, with it)
    checkpoint  run, step: steps [0, step) are trained, whatever happens now
    sealed      round, sha256: a writer was told so
    damaged     round, begin_s, end_s: a file of it was damaged for that time
    refused     reader, error, text, at_s: what a client was told in place of a batch
    memory      num_clients, num_bytes: what the miner holds more than without clients

A reader is one process of one rank, from its start to its death. The order of the records of one
reader, and that of launches and checkpoints of one run, is that of the events. Times are of the
machine's monotonic clock.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["History", "Record", "Rounds", "SealedRound", "read_records"]

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SealedRound:
    """What a round's manifest and chunks say; ``groups`` counts the digests of its groups."""

    round_id: int
    sha256: str
    generation: int
    model_step: int
    num_groups: int
    num_rows: int
    num_triplets: int
    groups: Counter[str]
    max_uses_per_sample: int | None = None


Rounds = dict[int, SealedRound]


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """The records of files, in order; a last line that a kill cut short is passed over."""
    for path in paths:
        for line in path.read_bytes().split(b"\n")[:-1]:
            record: Record = json.loads(line)
            yield record


@dataclass(slots=True)
class History:
    """The records, sorted by what they are about."""

    starts: dict[str, Record] = field(default_factory=dict)
    by_reader: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    by_step: dict[tuple[str, int], list[Record]] = field(default_factory=lambda: defaultdict(list))
    marks: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    sealed: list[Record] = field(default_factory=list)
    damaged: list[Record] = field(default_factory=list)
    refused: list[Record] = field(default_factory=list)
    memory: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "batch":
            self.by_reader[record["reader"]].append(record)
            self.by_step[record["run"], record["step"]].append(record)
        elif kind == "start":
            self.starts[record["reader"]] = record
        elif kind in ("launched", "checkpoint"):
            self.marks[record["run"]].append(record)
        else:
            others = {
                "sealed": self.sealed,
                "damaged": self.damaged,
                "refused": self.refused,
                "memory": self.memory,
            }
            others[kind].append(record)

    def shares(self, run: str, step: int) -> dict[int, dict[int, Record]]:
        """World size -> rank -> what it read."""
        worlds: dict[int, dict[int, Record]] = defaultdict(dict)
        for record in self.by_step.get((run, step), ()):
            worlds[record["world_size"]][record["rank"]] = record
        return worlds

    def whole(self, run: str, step: int) -> list[Record] | None:
        """The shares of all ranks of a world size that read the step whole, in order."""
        for world_size, ranks in sorted(self.shares(run, step).items()):
            if len(ranks) == world_size:
                return [ranks[rank] for rank in range(world_size)]
        return None

    def runs(self) -> dict[str, list[int]]:
        """Run -> the steps that anybody read, ascending."""
        steps: dict[str, list[int]] = defaultdict(list)
        for run, step in sorted(self.by_step):
            steps[run].append(step)
        return steps
