"""Makes the folder of a log what its archive says, whatever the folder holds: nothing, or less.

It knows how neither is written to by a `RoundWriter`; runs are brought back by their own store.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from pathlib import Path

from miner.errors import DamagedRoundError, RoundLogError
from miner.failpoints import reach
from miner.rounds.archive import Archive, Entry
from miner.rounds.checked import encode_number, encode_object
from miner.rounds.durable import locked, publish_folder, replace_file, write_file
from miner.rounds.expire import expire_rounds
from miner.rounds.log import MANIFEST_FILE, RoundLog

__all__ = ["adopt_newest", "adopt_rounds", "restore_log", "two_histories"]

_log = logging.getLogger(__name__)


def restore_log(root: Path, archive: Archive) -> RoundLog:
    """Open the log in ``root`` with all that ``archive`` holds of it.

    If that is empty, it becomes the archive of the log in ``root``, or both of a new one.

    Raises:
        RoundLogError: If folder and archive are of two logs, or of two histories of one.
        DamagedRoundError: If something in the archive is not as it was put.
        DiskError: If store or disk refuse; what was brought stays, and the next try goes on.

    Cost: the bytes of the rounds that the folder lacks.
    """
    try:
        (root / "rounds").mkdir(parents=True, exist_ok=True)
        with locked(root / "LOCK"):
            path = root / "LOG.json"
            known = RoundLog(root).log_id if path.exists() else uuid.uuid4().hex
            entry = archive.newest(known)
            if not path.exists():
                text = encode_object({"schema_version": 1, "log_id": entry.log_id})
                replace_file(path, text)
            log = RoundLog(root)
            if not (root / "GENERATION").exists():
                replace_file(root / "GENERATION", encode_number(entry.generation))
            adopt_newest(log, archive)
    except OSError as exc:
        raise RoundLogError(f"the round log in {root} cannot be restored: {exc}") from exc
    return log


def adopt_newest(log: RoundLog, archive: Archive) -> Entry:
    """As `adopt_rounds` with the newest entry, also while a writer lets rounds expire."""
    entry = archive.newest(log.log_id)
    while True:
        try:
            adopt_rounds(log, archive, entry)
        except DamagedRoundError:
            before, entry = entry, archive.newest(log.log_id)
            if entry == before:
                raise
        else:
            return entry


def adopt_rounds(log: RoundLog, archive: Archive, entry: Entry) -> None:
    """Let rounds expire that have expired in the archive, and bring those that are missing.

    The caller holds the log's lock.

    Raises:
        RoundLogError, DamagedRoundError, DiskError: As `restore_log`.
        OSError: If the disk refuses.
    """
    if log.log_id != entry.log_id:
        raise RoundLogError(
            f"rounds.archive_uri: {archive.objects.uri} holds log {entry.log_id}, {log.root} holds "
            f"log {log.log_id}: name another archive, or start on an empty state_dir to take over "
            "the archived one"
        )
    sealed = log.sealed_ids()
    for round_id in set(sealed) & entry.rounds.keys():
        here, there = log.manifest(round_id).sha256, entry.rounds[round_id].sha256
        if here != there:
            raise two_histories(log, archive, f"both hold a round {round_id}, of other digests")
    known = log.expired_ids()
    if not entry.expired_ids <= known or entry.expired_ids & set(sealed):
        expire_rounds(log, entry.expired_ids)
    for round_id in sorted(entry.rounds.keys() - known - set(sealed)):
        _bring(log, archive, entry, round_id)


def _bring(log: RoundLog, archive: Archive, entry: Entry, round_id: int) -> None:
    place, before = entry.rounds[round_id], entry.rounds.get(round_id - 1)
    manifest, text = archive.manifest(place)
    if before is not None and manifest.previous_sha256 != before.sha256:
        raise archive.damaged(f"rounds/{place.folder}", f"it does not follow {before.sha256}")
    building = log.rounds_dir / f"{round_id:08d}.restored.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for name, content in archive.chunks(place, manifest):
        write_file(building / name, content)
    write_file(building / MANIFEST_FILE, text)
    reach("restore.round.written")
    publish_folder(building, log.folder(round_id))
    _log.info("round %d brought back from the archive", round_id, extra={"round": round_id})


def two_histories(log: RoundLog, archive: Archive, reason: str) -> RoundLogError:
    """The error for a folder that does not lead to the archive, nor the archive to it."""
    return RoundLogError(
        f"rounds.archive_uri: {archive.objects.uri} and {log.root} have gone different ways "
        f"({reason}): start on an empty state_dir to go on with the archive, or name another "
        "archive to go on with the folder"
    )
