"""Logs with an archive, for tests."""

from __future__ import annotations

from pathlib import Path

from miner.rounds import RoundLog, RoundsConfig, RoundWriter
from miner.rounds.archive import Archive
from miner.rounds.restore import restore_log
from tests.miner.rounds.round_samples import bytes_of, make_draft, make_groups

CONFIG = RoundsConfig(chunk_groups=4)


def open_archived(root: Path, archive: Archive) -> RoundWriter:
    """As a service does at its start: restore, then take over."""
    return RoundWriter.open(restore_log(root, archive), CONFIG, archive)


def seal_next(writer: RoundWriter, seed: int | None = None) -> int:
    """Seal a round made of its own number, or of a seed."""
    seed = writer.next_round_id if seed is None else seed
    return writer.seal(make_groups(10, seed=seed), make_draft(seed=seed)).round_id


def content_of(log: RoundLog) -> tuple[object, ...]:
    """Everything that a reader can be told of a log: equal only for equal ones."""
    rounds = [(log.manifest(i), log.manifest(i).sha256, bytes_of(log.read(i))) for i in ids(log)]
    files = [(p.name, p.read_bytes()) for i in ids(log) for p in sorted(log.folder(i).iterdir())]
    return log.log_id, rounds, files, sorted(log.expired_ids())


def ids(log: RoundLog) -> list[int]:
    return log.sealed_ids()


def files_of(root: Path) -> list[str]:
    """Names of all files but the lock and the generation, which follow the writers."""
    names = (str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return sorted(name for name in names if name not in ("LOCK", "GENERATION"))
