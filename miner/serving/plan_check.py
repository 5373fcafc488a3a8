"""Checks the plans of runs against themselves and their log, for a person. Reads only.

It locks nothing and repairs nothing, unlike whoever opens a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miner.errors import CoalfaceError, RequestError, RoundLogError
from miner.rounds import RoundLog
from miner.rounds.checked import decode_number, decode_object
from miner.rounds.journal import Journal, is_record
from miner.serving.plan import RUN_KEYS, RunParameters, Stride
from miner.serving.run import DAMAGED_FILE

__all__ = ["check_run", "run_folders"]


def run_folders(root: Path) -> list[Path]:
    """The folders of the runs on a log, by name."""
    runs = root / "runs"
    found = runs.iterdir() if runs.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and path.name[0] != ".")


def check_run(folder: Path, log: RoundLog) -> Iterator[str]:
    """One line per problem of one run; none if all is well.

    Checked are the checksums of its files, that its strides follow one another without a gap, and
    that each was planned on a round that the log holds, or held until it expired.

    Cost: O(bytes of the plan), and a manifest per round that it names.
    """
    damage = folder / DAMAGED_FILE
    if damage.exists():
        yield f"{damage}: {damage.read_text('utf-8')}"
    path = folder / "RUN.json"
    try:
        parameters = RunParameters(**decode_object(path.read_bytes(), RUN_KEYS))
    except (OSError, ValueError, TypeError, RequestError) as exc:
        yield f"{path} cannot be read: {exc}; restore it from a copy"
    else:
        if parameters.run_id != folder.name:
            yield f"{path} is of another run, {parameters.run_id!r}"
    yield from _plan_problems(folder, log)


def _plan_problems(folder: Path, log: RoundLog) -> Iterator[str]:
    path = folder / "plan.jsonl"
    try:
        strides, problem = _read_strides(path)
    except OSError as exc:
        yield f"{path} cannot be read: {exc.strerror}"
        return
    if problem:
        yield problem
    planned, reported = 0, set()
    for stride in strides:
        if stride.first_step != planned:
            yield f"{path}: a stride starts at step {stride.first_step}, not at {planned}"
        planned = stride.end_step
        wrong = _round_problem(stride, log)
        if wrong and stride.round_id not in reported:
            reported.add(stride.round_id)
            yield f"{path}: steps {stride.first_step} to {planned - 1} {wrong}"
    if not problem:
        yield from _committed_problems(folder / "COMMITTED", planned)


def _committed_problems(path: Path, planned_steps: int) -> Iterator[str]:
    try:
        committed = decode_number(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as exc:
        yield f"{path} cannot be read: {exc}; remove it, the next commit writes it again"
        return
    if committed > planned_steps:
        yield f"{path} says step {committed}, but only {planned_steps} steps are planned"


def _read_strides(path: Path) -> tuple[list[Stride], str]:
    """The strides up to the first problem, and that problem; an unfinished last line is none."""
    content, journal = path.read_bytes(), Journal(path)
    strides: list[Stride] = []
    *lines, rest = content.split(b"\n")
    offset = 0
    for line in lines:
        try:
            strides.append(Stride.from_json(journal.read(offset)))
        except (RoundLogError, ValueError, TypeError, KeyError) as exc:
            return strides, str(exc)
        offset += len(line) + 1
    # A write that was cut off leaves a piece of a line, never more than the line.
    if is_record(rest[:-1]):
        return strides, f"{path}: the newline at byte {offset + len(rest) - 1} is damaged"
    return strides, ""


def _round_problem(stride: Stride, log: RoundLog) -> str:
    """What is wrong with the round behind a stride; empty: nothing."""
    round_id = stride.round_id
    if not log.folder(round_id).is_dir():
        if any(first <= round_id <= last for first, last in log.expired_ranges()):
            return ""
        return f"were planned on round {round_id}, which the log does not know"
    try:
        manifest = log.manifest(round_id)
    except CoalfaceError:
        return ""  # the round's own problem
    if manifest.sha256 != stride.round_sha256:
        return f"were planned on another round {round_id} than the one that is there"
    if max(end for _, _, end in stride.batches) > manifest.num_groups:
        return f"ask for groups beyond the {manifest.num_groups} of round {round_id}"
    return ""
