"""Checks everything that a state folder holds. Reads only, also beside a running service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miner.app.accepted import copies_folder, read_accepted
from miner.app.archive_check import check_archive
from miner.data.check import check_store
from miner.errors import CoalfaceError, SnapshotError
from miner.rounds import RoundLog
from miner.rounds.archive import Archive
from miner.rounds.check import check_log
from miner.rounds.objects import Objects
from miner.serving.plan_check import check_run, run_folders
from miner.workers.snapshot import open_snapshots
from miner.workers.snapshot.check import check_snapshots

__all__ = ["CheckedPart", "verify_state"]


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One part of a state folder.

    Attributes:
        what: Its name, with how many of it there are.
        problems: One line each; none if all is well.
    """

    what: str
    problems: list[str]


def verify_state(
    state_dir: Path,
    store_dir: Path | None = None,
    snapshots_dir: str | None = None,
    *,
    archive_uri: str | None = None,
    quick: bool = False,
) -> Iterator[CheckedPart]:
    """Check log, run plans, row store, snapshots and accepted weights, as far as they are there.

    An archive is restored into the temporary folder, and checked there.

    What a service removes meanwhile is passed over; what cannot be read is a problem.

    Every byte is read unless ``quick``, which leaves out the content of chunks, samples, embeddings
    and weights. What can be made again at any time, and is when it is damaged, is left out: the
    notes for a warm search, and reported difficulties.

    Raises:
        RoundLogError: There is no round log in the folder.
        ConfigError: ``snapshots_dir`` is a URI that cannot be understood.

    Cost: some 1 GB/s, 1 MiB of memory beside the largest chunk.
    """
    try:
        log = RoundLog(state_dir, must_exist=True)
    except CoalfaceError as exc:
        if not (state_dir / "LOG.json").exists():
            raise
        yield CheckedPart("round log", [str(exc)])
    else:
        problems = list(check_log(log, hash_chunks=not quick))
        yield CheckedPart(_count(len(log.sealed_ids()), "round"), problems)
        runs = run_folders(state_dir)
        problems = [problem for run in runs for problem in check_run(run, log)]
        yield CheckedPart(_count(len(runs), "run"), problems)
    if archive_uri is not None:
        problems = list(check_archive(state_dir, Archive(Objects(archive_uri))))
        yield CheckedPart("archive", problems)
    store = store_dir or state_dir / "store"
    if store_dir is not None or store.exists():
        yield CheckedPart("row store", list(check_store(store, hash_files=not quick)))
    snapshots = open_snapshots(snapshots_dir or state_dir / "snapshots", state_dir)
    try:
        number, problems = check_snapshots(snapshots, hash_rows=not quick)
    except SnapshotError as exc:
        yield CheckedPart("snapshots", [str(exc)])
    else:
        yield CheckedPart(_count(number, "snapshot"), problems)
    copies = sorted(copies_folder(state_dir).glob("*.safetensors"))
    problems = list(_weights_problems(state_dir, copies, quick=quick))
    yield CheckedPart(_count(len(copies), "copy of weights", "copies of weights"), problems)


def _weights_problems(state_dir: Path, copies: list[Path], *, quick: bool) -> Iterator[str]:
    try:
        accepted = read_accepted(state_dir)
        copy = copies_folder(state_dir) / f"{accepted.sha256 if accepted else ''}.safetensors"
        # Beside a service: these may have made room for newer ones just now.
        if accepted and not copy.exists() and read_accepted(state_dir) == accepted:
            yield f"{copy} is missing: announce weights again"
    except CoalfaceError as exc:
        yield str(exc)
    for path in () if quick else copies:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            continue
        except OSError as exc:
            yield f"{path} cannot be read: {exc.strerror}"
            continue
        if digest != path.stem:
            yield f"{path} does not match its sha256, which is its name: announce weights again"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
