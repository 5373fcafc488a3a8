"""How a writer begins on an archive: folder and archive are made the same, older writers fenced."""

from __future__ import annotations

from functools import partial

from miner.errors import RoundLogError, StaleWriterError
from miner.rounds.archive import Archive, ArchivedRound, Entry
from miner.rounds.archive_writer import ArchiveWriter
from miner.rounds.log import MANIFEST_FILE, RoundLog
from miner.rounds.restore import adopt_newest, two_histories

__all__ = ["take_over"]

_CLAIMS = 5


def take_over(log: RoundLog, archive: Archive, generation: int) -> ArchiveWriter:
    """Make folder and archive hold the same, and fence all other writers of either.

    The caller holds the log's lock, and ``generation`` is above that of the folder's last writer;
    the new writer's is also above the archive's.

    Raises:
        RoundLogError: If folder and archive do not fit, or others keep taking over.
        DamagedRoundError, DiskError: If what one lacks cannot be had from the other.
        OSError: If the disk refuses.

    Cost: the bytes of the rounds that one of the two lacks.
    """
    for _ in range(_CLAIMS):
        entry = adopt_newest(log, archive)
        generation = max(generation, entry.generation + 1)
        writer = ArchiveWriter(archive, generation, entry)
        places = {i: _put_round(log, writer, i) for i in _unknown_rounds(log, archive, entry)}
        try:
            writer.append(partial(_with, places, log.expired_ids()))
        except StaleWriterError:
            continue  # another one has been faster: take over from that one
        return writer
    raise RoundLogError(
        f"the log in {archive.objects.uri} is being taken over by others again and again: end the "
        "other services that use it"
    )


def _with(places: dict[int, ArchivedRound], expired: set[int], before: Entry) -> Entry:
    rounds = {**before.rounds, **places}
    return before.model_copy(update={"rounds": rounds}).without(expired)


def _unknown_rounds(log: RoundLog, archive: Archive, entry: Entry) -> list[int]:
    """The sealed rounds that the archive does not know, all later than its newest.

    Raises:
        RoundLogError: If they do not continue what the archive holds.
    """
    unknown = [i for i in log.sealed_ids() if i not in entry.rounds]
    if unknown and unknown[0] <= max(entry.newest, *entry.expired_ids, 0):
        raise two_histories(log, archive, f"the archive does not know round {unknown[0]}")
    return unknown


def _put_round(log: RoundLog, writer: ArchiveWriter, round_id: int) -> ArchivedRound:
    """Put the files of a sealed round; where they lie, for an entry to name.

    Raises:
        DamagedRoundError: If the round is.
        DiskError: If store or disk refuse.
    """
    log.read(round_id)
    folder = writer.new_folder(round_id)
    manifest = log.manifest(round_id)
    for name in (*(chunk.file for chunk in manifest.chunks), MANIFEST_FILE):
        writer.put(folder, name, (log.folder(round_id) / name).read_bytes())
    return ArchivedRound(folder, manifest.sha256)
