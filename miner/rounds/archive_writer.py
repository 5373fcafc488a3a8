r"""Writes to the archive of a round log; see `archive` for what lies there.

ready --append--> ready, with one entry more
   \--(another writer's entry is there)--> fenced for ever
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from miner.errors import DiskError, RoundLogError, StaleWriterError
from miner.failpoints import reach
from miner.rounds.archive import Archive, ArchivedRound, Entry, entry_key
from miner.rounds.checked import encode_object
from miner.rounds.log import MANIFEST_FILE
from miner.rounds.manifest import RoundManifest

__all__ = ["ArchiveWriter"]

_FOLDER = re.compile(r"rounds/((\d{8,})\.g(\d+)-[0-9a-f]{8}-\d+)/[^/]+")


class ArchiveWriter:
    """The writer of one generation. One thread at a time, but for `put`.

    Attributes:
        archive: Where it writes.
        generation: Its number; entries of lower ones come before.
        entry: The newest entry that it knows of.
    """

    def __init__(self, archive: Archive, generation: int, entry: Entry) -> None:
        """Prepare to follow ``entry``; nothing is claimed before the first `append`."""
        self.archive = archive
        self.entry = entry
        self.generation = generation
        self._name = uuid.uuid4().hex
        self._tries = 0
        self._is_in_doubt = False

    def new_folder(self, round_id: int) -> str:
        """The name of a folder that nobody else writes to.

        Writers that take over at once may have the same generation until one of them wins.
        """
        self._tries += 1
        return f"{round_id:08d}.g{self.generation}-{self._name[:8]}-{self._tries}"

    def put(self, folder: str, name: str, content: bytes) -> None:
        """Put a file of a round that is being built.

        Raises:
            DiskError: If the store refuses.
        """
        reach("archive.put.begin")
        self.archive.objects.put(f"rounds/{folder}/{name}", content)

    def append(self, change: Callable[[Entry], Entry]) -> None:
        """Put the next entry: what ``change`` makes of the newest one.

        If the store seemed to refuse an earlier entry of this writer, and has it all the same, then
        the change is made to that one.

        Raises:
            StaleWriterError: If another writer's entry is there; nothing has changed.
            DiskError: If the store refuses; the entry may be there or not.
        """
        while True:
            number = self.entry.number + 1
            mine = {"number": number, "generation": self.generation, "writer": self._name}
            entry = change(self.entry).model_copy(update=mine)
            content = encode_object(entry.model_dump(mode="json"))
            self._is_in_doubt = True
            try:
                reach("archive.entry.begin")
                there = self.archive.objects.put_new(entry_key(number), content)
                reach("archive.entry.put")
            except OSError as exc:
                raise DiskError(f"{entry_key(number)} cannot be put: {exc}") from exc
            self._is_in_doubt = False
            found = self.archive.decode(entry_key(number), there)
            if found.writer != self._name:
                raise StaleWriterError(
                    f"generation {self.generation} may not write any more: generation "
                    f"{found.generation} has taken over the log in {self.archive.objects.uri}; "
                    "this process should end"
                )
            self.entry = found
            if there == content:
                return

    def remove_leftovers(self) -> None:
        """Remove the files that no reader needs; after the first `append` only.

        They are those of expired rounds, and of tries that have not been sealed.

        Raises:
            DiskError: If the store refuses; the next call removes what is left.
        """
        named = {place.folder for place in self.entry.rounds.values()}
        reach("archive.remove.begin")
        objects, leftovers = self.archive.objects, []
        for key in objects.keys("rounds"):
            found = _FOLDER.fullmatch(key)
            if found is None or found[1] in named:
                continue
            # A newer writer may be building already, a later round; an older one cannot seal.
            if int(found[3]) < self.generation or int(found[2]) <= self.entry.newest:
                leftovers.append(key)
        objects.remove(leftovers)

    def settle(self) -> None:
        """Learn of an entry that was put and got no answer.

        Raises:
            DiskError: If the store refuses.
        """
        if not self._is_in_doubt:
            return
        key = entry_key(self.entry.number + 1)
        content = self.archive.objects.get(key)
        found = self.archive.decode(key, content) if content is not None else None
        if found is not None and found.writer == self._name:
            self.entry = found
        self._is_in_doubt = False

    def seal(self, folder: str, manifest: RoundManifest, text: bytes) -> None:
        """Seal the round whose chunks have been put into ``folder``.

        Raises:
            RoundLogError: If it is sealed already, by an earlier try that seemed to fail.
            StaleWriterError, DiskError: As `append`.
        """
        self.put(folder, MANIFEST_FILE, text)
        round_id, place = manifest.round_id, ArchivedRound(folder, manifest.sha256)

        def with_round(entry: Entry) -> Entry:
            if round_id in entry.rounds:
                raise RoundLogError(
                    f"round {round_id} is in the archive already: an earlier try at it, which "
                    "seemed to fail, has succeeded; the next round follows that one"
                )
            return entry.model_copy(update={"rounds": {**entry.rounds, round_id: place}})

        self.append(with_round)

    def expire(self, round_ids: set[int]) -> None:
        """Let rounds expire; their files are left to `remove_leftovers` of this or a later writer.

        Raises:
            StaleWriterError, DiskError: As `append`.
        """
        self.append(lambda entry: entry.without(round_ids))
