"""Checks every file of a round log, for a person. Reads only, also beside a running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miner.errors import CoalfaceError
from miner.rounds.checked import decode_number
from miner.rounds.log import RoundLog

__all__ = ["check_log"]


def check_log(log: RoundLog, *, hash_chunks: bool = True) -> Iterator[str]:
    """One line per problem; none if all is well.

    Args:
        log: The log.
        hash_chunks: Otherwise chunks are there and of the right size, which is all that is known.

    Cost: O(bytes of the log); without chunks a manifest per round.
    """
    try:
        before = log.sealed_ids()
        problems = [*_file_problems(log), *log.verify(hash_chunks=hash_chunks)]
    except (CoalfaceError, OSError) as exc:
        yield str(exc)
        return
    expired_meanwhile = (set(before) - set(log.sealed_ids())) & log.expired_ids()
    folders = [str(log.folder(round_id)) for round_id in expired_meanwhile]
    for problem in problems:
        if not any(folder in problem for folder in folders):
            yield problem


def _file_problems(log: RoundLog) -> Iterator[str]:
    sealed, expired = set(log.sealed_ids()), log.expired_ids()
    path = log.root / "EXPIRED.json"
    if path.exists():
        if wrong := sealed & expired:
            yield f"{path} is wrong: it lists rounds that are there, {sorted(wrong)[:5]}"
        if wrong := {i for i in expired if not 1 <= i < max(sealed, default=0)}:
            yield f"{path} is wrong: it lists rounds that never were, {sorted(wrong)[:5]}"
    yield from _generation_problems(log.root / "GENERATION", log, sealed)


def _generation_problems(path: Path, log: RoundLog, sealed: set[int]) -> Iterator[str]:
    if not path.exists() and not sealed:
        return
    try:
        generation = decode_number(path.read_bytes())
        newest = max((log.manifest(i).generation for i in sorted(sealed)[-1:]), default=0)
    except (OSError, ValueError) as exc:
        yield f"{path} cannot be read: {exc}; restore it from a copy"
    except CoalfaceError:  # the manifest's own problem
        return
    else:
        if generation < newest:
            yield f"{path} says {generation}, but a round was sealed by generation {newest}"
