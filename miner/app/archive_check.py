"""Checks an archive by restoring it: whether a service that has nothing else would come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from miner.errors import CoalfaceError
from miner.rounds import RoundLog
from miner.rounds.archive import Archive
from miner.rounds.check import check_log
from miner.rounds.restore import restore_log
from miner.serving.plan_check import check_run, run_folders
from miner.serving.run import DAMAGED_FILE
from miner.serving.run_archive import RunArchive
from miner.serving.runs import RunStore

__all__ = ["check_archive"]


def check_archive(state_dir: Path, archive: Archive) -> Iterator[str]:
    """One line per problem; none if the archive can be restored and lacks nothing of the folder.

    Changes nothing in either; a service may be using both.

    Cost: every byte of the archive is read, and lies in the temporary folder for a while.
    """
    try:
        digests, plans = _rounds(state_dir), _plans(state_dir)  # first: a service may add to both
        archive.newest()  # or an empty one would become that of a new log
        with TemporaryDirectory() as place:
            yield from _restored_problems(Path(place), archive, digests, plans)
    except (CoalfaceError, OSError) as exc:
        yield str(exc)


def _restored_problems(
    root: Path, archive: Archive, digests: dict[int, str], plans: dict[str, list[bytes]]
) -> Iterator[str]:
    log = restore_log(root, archive)
    yield from check_log(log)
    yield from RunStore(root, 1, RunArchive(archive.objects)).restore()
    for folder in run_folders(root):
        if not (folder / DAMAGED_FILE).exists():
            yield from check_run(folder, log)
    there, uri = _rounds(root), archive.objects.uri
    for round_id in sorted(digests.keys() - log.expired_ids()):
        if there.get(round_id) != digests[round_id]:
            yield f"{uri} lacks round {round_id}, or has another one than the folder"
    archived = _plans(root)
    for run_id, lines in plans.items():
        known = archived.get(run_id, [])
        if lines[: len(known)] != known[: len(lines)]:
            yield f"{uri}: the plan of run {run_id!r} is another one than in the folder"
        elif len(lines) > len(known):
            yield f"{uri} lacks {len(lines) - len(known)} strides of run {run_id!r}"


def _rounds(root: Path) -> dict[int, str]:
    """The digest of each sealed round of a folder."""
    log = RoundLog(root, must_exist=True)
    return {round_id: log.manifest(round_id).sha256 for round_id in log.sealed_ids()}


def _plans(root: Path) -> dict[str, list[bytes]]:
    """The finished lines of each run's plan."""
    paths = [folder / "plan.jsonl" for folder in run_folders(root)]
    return {p.parent.name: p.read_bytes().split(b"\n")[:-1] for p in paths if p.exists()}
