"""Checks the promises P1 to P8 on what clients and writers wrote down, as far as they show there.

It knows no miner, process or fault: only records and rounds, so a run of any length and with any
faults is judged by the same rules. `tests.chaos.records` says what is written down.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.records import History, Record, Rounds, SealedRound

__all__ = ["Violation", "check_history"]

MARGIN_S = 3.0
"""For so long after a round is restored, answers to earlier requests may still be on their way."""

AGREED = (
    *("round", "model_step", "staleness_steps", "over_stale"),
    *("pass", "global_rows", "global_groups"),
)


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and what shows it."""

    promise: str
    evidence: str


def check_history(
    records: Iterable[Record],
    rounds: Rounds,
    *,
    max_bytes_per_client: int | None = None,
) -> list[Violation]:
    """Every violation that the records show, each with its evidence; none if all is well.

    Args:
        records: Of all clients and writers.
        rounds: Every round that was ever sealed.
        max_bytes_per_client: What the miner may hold for each.

    Cost: O(records) time and memory.
    """
    history = History()
    for record in records:
        history.add(record)
    return [
        *_check_bytes(history),
        *_check_order(history),
        *_check_resumption(history),
        *_check_agreement(history),
        *_check_progress(history),
        *_check_shares(history),
        *_check_staleness(history),
        *_check_rounds(history, rounds),
        *_check_passes(history, rounds),
        *_check_negatives(history),
        *_check_log(history, rounds),
        *_check_refusals(history),
        *_check_memory(history, max_bytes_per_client),
    ]


def _check_bytes(history: History) -> Iterator[Violation]:
    """P1: the same (step, rank, world size) has the same bytes on every read."""
    for (run, step), records in history.by_step.items():
        read: dict[tuple[int, int, bool], Record] = {}
        for record in records:
            key = record["rank"], record["world_size"], record.get("payload", False)
            first = read.setdefault(key, record)
            if first["digest"] != record["digest"]:
                yield Violation(
                    "P1",
                    f"run {run} step {step} rank {key[0]} of {key[1]}: {first['reader']} read "
                    f"{first['digest']}, {record['reader']} read {record['digest']}",
                )


def _check_order(history: History) -> Iterator[Violation]:
    """P2: within a stream no gap and no repeat, from the step asked for."""
    for reader, records in history.by_reader.items():
        due = history.starts[reader]["first_step"]
        for record in records:
            if record["step"] != due:
                yield Violation("P2", f"{reader} got step {record['step']} where {due} was due")
            due = record["step"] + 1


def _check_resumption(history: History) -> Iterator[Violation]:
    """P3: trained is each step, whole, and every reader finds the newest checkpoint."""
    for run, marks in history.marks.items():
        checkpoint = 0
        for mark in marks:
            if mark["kind"] == "checkpoint":
                checkpoint = max(checkpoint, mark["step"])
                continue
            start = history.starts.get(mark["reader"])  # none if it was killed before
            if start is not None and start["first_step"] != checkpoint:
                yield Violation(
                    "P3",
                    f"{mark['reader']} of run {run} began at step {start['first_step']}, the "
                    f"checkpoint was at {checkpoint}",
                )
        for step in range(checkpoint):
            if history.whole(run, step) is None:
                who = [(r["rank"], r["world_size"]) for r in history.by_step.get((run, step), [])]
                yield Violation(
                    "P3", f"run {run} step {step} is trained, but was read by (rank, of) {who} only"
                )


def _check_agreement(history: History) -> Iterator[Violation]:
    """P4: whoever reads a step gets it from the same round, and of the same global batch."""
    for (run, step), records in history.by_step.items():
        first = records[0]
        for record in records[1:]:
            wrong = [name for name in AGREED if first[name] != record[name]]
            if wrong:
                yield Violation(
                    "P4",
                    f"run {run} step {step}: {first['reader']} and {record['reader']} differ in "
                    + ", ".join(f"{name} ({first[name]}, {record[name]})" for name in wrong),
                )


def _check_progress(history: History) -> Iterator[Violation]:
    """P4: a run never goes back to an older round."""
    for run, steps in history.runs().items():
        rounds = [history.by_step[run, step][0]["round"] for step in steps]
        for step, (before, now) in zip(steps[1:], pairwise(rounds), strict=False):
            if now < before:
                yield Violation("P4", f"run {run} step {step}: round {now} came after {before}")


def _check_shares(history: History) -> Iterator[Violation]:
    """P4: ranks get whole groups that together are the global batch, at every world size."""
    for run, step in list(history.by_step):
        unions: dict[int, list[str]] = {}
        for world_size, ranks in history.shares(run, step).items():
            if len(ranks) < world_size:
                continue
            shares = [ranks[rank] for rank in range(world_size)]
            due, rows = 0, sum(share["rows"] for share in shares)
            for share in shares:
                if share["first_group"] != due or not share["groups"]:
                    yield Violation(
                        "P4",
                        f"run {run} step {step} rank {share['rank']} of {world_size}: its "
                        f"{len(share['groups'])} groups begin at {share['first_group']}, not {due}",
                    )
                due += len(share["groups"])
            if (due, rows) != (shares[0]["global_groups"], shares[0]["global_rows"]):
                yield Violation(
                    "P4",
                    f"run {run} step {step}: {world_size} ranks got {due} groups and {rows} rows "
                    f"of {shares[0]['global_groups']} and {shares[0]['global_rows']}",
                )
            unions[world_size] = [digest for share in shares for digest in share["groups"]]
        for (one, groups), (other, others) in pairwise(sorted(unions.items())):
            if groups != others:
                yield Violation(
                    "P3", f"run {run} step {step} has other groups at world size {one} and {other}"
                )


def _check_staleness(history: History) -> Iterator[Violation]:
    """Staleness is told rightly, and within the bound where the run rather waits."""
    for reader, records in history.by_reader.items():
        start = history.starts[reader]
        bound = start["max_staleness_steps"]
        for record in records:
            staleness = max(0, record["step"] - record["model_step"])
            is_over = bound > 0 and staleness > bound
            where = f"{reader} step {record['step']}"
            if record["staleness_steps"] != staleness:
                yield Violation(
                    "staleness",
                    f"{where}: told {record['staleness_steps']}, the round's weights are of step "
                    f"{record['model_step']}",
                )
            if record["over_stale"] != is_over:
                yield Violation(
                    "staleness",
                    f"{where}: over_stale is {record['over_stale']} for {staleness} steps and the "
                    f"bound {bound}",
                )
            if is_over and start["stale"] == "wait":
                yield Violation("staleness", f"{where}: {staleness} is above {bound}")


def _check_rounds(history: History, rounds: Rounds) -> Iterator[Violation]:
    """P5: what is served is of a sealed round, with its content."""
    for reader, records in history.by_reader.items():
        for record in records:
            sealed = rounds.get(record["round"])
            where = f"{reader} step {record['step']}"
            if sealed is None:
                yield Violation("P5", f"{where}: round {record['round']} was never sealed")
                continue
            foreign = [digest for digest in record["groups"] if digest not in sealed.groups]
            if foreign or record["model_step"] != sealed.model_step:
                yield Violation(
                    "P5",
                    f"{where}: model step {record['model_step']}, groups {foreign} are not those "
                    f"of round {sealed.round_id} (model step {sealed.model_step})",
                )


def _check_passes(history: History, rounds: Rounds) -> Iterator[Violation]:
    """P5 and P7: a pass has each group once, its sums are the manifest's, and the cap holds."""
    for run, steps in history.runs().items():
        passes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for step in steps:
            record = history.by_step[run, step][0]
            passes[record["round"], record["pass"]].append(step)
        for (round_id, number), members in passes.items():
            shares = [history.whole(run, step) for step in members]
            if round_id in rounds and None not in shares:
                records = [record for share in shares if share for record in share]
                ended = (round_id, number + 1) in passes
                where = f"run {run}, pass {number} of round {round_id}"
                yield from _check_pass(where, records, rounds[round_id], ended)


def _check_pass(
    where: str, records: list[Record], sealed: SealedRound, ended: bool
) -> Iterator[Violation]:
    groups = Counter(digest for record in records for digest in record["groups"])
    if repeated := groups - sealed.groups:
        yield Violation("P2", f"{where}: groups come too often: {dict(repeated)}")
    found = (
        groups.total(),
        sum(record["rows"] for record in records),
        sum(record["triplets"] for record in records),
    )
    if ended and found != (sealed.num_groups, sealed.num_rows, sealed.num_triplets):
        yield Violation(
            "P5",
            f"{where} has {found} groups, rows and triplets, the manifest "
            f"{(sealed.num_groups, sealed.num_rows, sealed.num_triplets)}",
        )
    uses = Counter(row for record in records for row in record["negatives"])
    cap = sealed.max_uses_per_sample
    if cap is not None and (over := {row: n for row, n in uses.items() if n > cap}):
        yield Violation("P7", f"{where}: rows are negatives more than {cap} times: {over}")


def _check_negatives(history: History) -> Iterator[Violation]:
    """P7: no negative shares its anchor's identity."""
    for reader, records in history.by_reader.items():
        for record in records:
            if record["clashes"]:
                yield Violation(
                    "P7",
                    f"{reader} step {record['step']}: negatives of the anchor's identity: "
                    f"(anchor, negative) {record['clashes']}",
                )


def _check_log(history: History, rounds: Rounds) -> Iterator[Violation]:
    """P6: what was reported as sealed is there, and no writer sealed after its successor."""
    for record in history.sealed:
        sealed = rounds.get(record["round"])
        if sealed is None or sealed.sha256 != record["sha256"]:
            found = sealed.sha256 if sealed else "no such round"
            yield Violation(
                "P6", f"round {record['round']} was sealed as {record['sha256']}, found: {found}"
            )
    for before, after in pairwise(sorted(rounds)):
        if rounds[after].generation < rounds[before].generation:
            yield Violation(
                "P6",
                f"round {after} is of generation {rounds[after].generation}, the one before of "
                f"{rounds[before].generation}: a stale writer has sealed",
            )


def _check_refusals(history: History) -> Iterator[Violation]:
    """Clients are refused for a round that is damaged just then, and never for anything else."""
    for record in history.refused:
        lost = re.search(r"round (\d+) is damaged.*DATA_LOSS", record["text"])
        excused = lost and any(
            int(lost[1]) == damage["round"]
            and damage["begin_s"] <= record["at_s"] <= damage["end_s"] + MARGIN_S
            for damage in history.damaged
        )
        if not excused:
            yield Violation(
                "refusal", f"{record['reader']} got {record['error']}: {record['text']}"
            )


def _check_memory(history: History, max_bytes: int | None) -> Iterator[Violation]:
    """P8: what the miner holds for each client is bounded."""
    for record in history.memory:
        if max_bytes is not None and record["num_bytes"] > max_bytes * record["num_clients"]:
            yield Violation(
                "P8",
                f"{record['num_bytes']} bytes are held for {record['num_clients']} clients, the "
                f"bound is {max_bytes} for each",
            )
