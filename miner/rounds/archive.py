r"""The archive of a round log: its history as objects that are put once, by whoever comes first.

<uri>/log/0000000012.json             an entry: which rounds there are then, and who may seal
<uri>/rounds/00000008.g4-5e0c77aa-1/  a try of a writer of generation 4 at round 8: chunks, manifest
<uri>/runs/<run_id>/                  a run, see `miner.serving.run_archive`

    building --(chunks and manifest put)--> put --(next entry put if absent)--> sealed --> expired
                                             \--(somebody else's entry is there)--> fenced

An entry says all that there is to say, so the newest is enough. A writer begins with one of its own
and goes on from there without a gap: an older writer's next entry finds its place taken, whatever
it was doing meanwhile. So a round is sealed, and rounds expire, by one put. Entries are never
removed; what no entry names, the next writer removes.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from miner.errors import DamagedRoundError, RoundLogError
from miner.rounds.checked import decode_object, encode_object
from miner.rounds.log import MANIFEST_FILE, id_ranges
from miner.rounds.manifest import RoundManifest, decode_manifest
from miner.rounds.objects import Objects

__all__ = ["Archive", "ArchivedRound", "Entry", "entry_key"]


class ArchivedRound(NamedTuple):
    """Where a round lies in an archive.

    Attributes:
        folder: Name of its folder.
        sha256: Digest of its manifest.
    """

    folder: str
    sha256: str


class Entry(BaseModel):
    """How a log stands, from one entry of its history to the next."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_id: str
    number: int = Field(ge=1, description="They count from 1, without a gap.")
    generation: int = Field(default=0, ge=0, description="Of its writer; 0: of none.")
    writer: str = Field(description="Random name: no two writers make the same entry.")
    rounds: dict[int, ArchivedRound] = Field(default={}, description="Sealed, and not expired.")
    expired: tuple[tuple[int, int], ...] = Field(default=(), description="Inclusive ranges.")

    @property
    def newest(self) -> int:
        """The newest round; 0: none."""
        return max(self.rounds, default=0)

    @property
    def expired_ids(self) -> set[int]:
        """The rounds that have expired."""
        return {i for first, last in self.expired for i in range(first, last + 1)}

    def without(self, round_ids: set[int]) -> Entry:
        """What is left when these have expired as well."""
        kept = {i: place for i, place in self.rounds.items() if i not in round_ids}
        expired = tuple(id_ranges(self.expired_ids | round_ids))
        return self.model_copy(update={"rounds": kept, "expired": expired})


class Archive:
    """Reads an archive; safe among threads.

    Attributes:
        objects: The store.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def newest(self, log_id: str | None = None) -> Entry:
        """The newest entry; an archive that is empty becomes that of the log ``log_id``.

        Raises:
            RoundLogError: If it is empty, and no log was named.
            DiskError: If the store refuses.
            DamagedRoundError: If the entry is not as it was put.
        """
        keys = self.objects.keys("log")
        if keys:
            return self.decode(keys[-1], self.objects.get(keys[-1]) or b"")
        if log_id is None:
            raise RoundLogError(f"there is no archive of a round log in {self.objects.uri}")
        first = Entry(log_id=log_id, number=1, writer=uuid.uuid4().hex)
        content = encode_object(first.model_dump(mode="json"))
        return self.decode(entry_key(1), self.objects.put_new(entry_key(1), content))

    def decode(self, key: str, content: bytes) -> Entry:
        """The entry of a content.

        Raises:
            DamagedRoundError: If it is not as it was put.
        """
        try:
            entry = Entry.model_validate(decode_object(content, Entry.model_fields))
        except (ValueError, ValidationError) as exc:
            raise self.damaged(key, str(exc)) from exc
        if entry_key(entry.number) != key:
            raise self.damaged(key, f"it is entry {entry.number}")
        return entry

    def manifest(self, place: ArchivedRound) -> tuple[RoundManifest, bytes]:
        """The manifest of a round, and its text.

        Raises:
            DamagedRoundError: If it is missing, or not the one that was sealed.
        """
        key = f"rounds/{place.folder}/{MANIFEST_FILE}"
        text = self.objects.get(key) or b""
        try:
            manifest = decode_manifest(text)
        except ValueError as exc:
            raise self.damaged(key, str(exc)) from exc
        if manifest.sha256 != place.sha256:
            raise self.damaged(key, f"its digest is {manifest.sha256}, sealed was {place.sha256}")
        return manifest, text

    def chunks(self, place: ArchivedRound, manifest: RoundManifest) -> Iterator[tuple[str, bytes]]:
        """Name and content of each chunk of a round, as it was sealed.

        Raises:
            DamagedRoundError: If one is missing or not as its manifest says.
        """
        keys = [f"rounds/{place.folder}/{entry.file}" for entry in manifest.chunks]
        contents = self.objects.get_all(keys)
        for key, chunk, content in zip(keys, manifest.chunks, contents, strict=True):
            if hashlib.sha256(content or b"").hexdigest() != chunk.sha256:
                raise self.damaged(key, f"it does not match its sha256 {chunk.sha256}")
            yield chunk.file, content or b""

    def damaged(self, key: str, reason: str) -> DamagedRoundError:
        """The error that names an object."""
        return DamagedRoundError(
            f"{self.objects.uri}/{key} is missing or damaged: {reason}; restore the object from a "
            "copy or an older version of it"
        )


def entry_key(number: int) -> str:
    """Where an entry lies."""
    return f"log/{number:010d}.json"
