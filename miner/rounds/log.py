"""The sealed rounds of one folder, read and checked; knows neither how they are made nor served.

<root>/LOG.json                         id of the log
<root>/LOCK                             held while a generation is taken, a round sealed or removed
<root>/GENERATION                       of the writer that may seal
<root>/EXPIRED.json                     ranges of rounds that retention has removed
<root>/rounds/00000007/                 a sealed round: MANIFEST.json and its chunks
<root>/rounds/00000008.g3.building/     of generation 3, not sealed: nobody reads it
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from threading import Lock

from miner.errors import DamagedRoundError, DiskError, RoundExpiredError, RoundLogError
from miner.rounds.checked import decode_object, encode_object
from miner.rounds.chunks import decode_chunk
from miner.rounds.durable import locked, replace_file
from miner.rounds.manifest import ChunkEntry, RoundManifest, decode_manifest
from miner.types import Groups

__all__ = ["MANIFEST_FILE", "RoundLog", "id_ranges"]

MANIFEST_FILE = "MANIFEST.json"
LOG_KEYS = ("schema_version", "log_id")
_SEALED_NAME = re.compile(r"\d{8,}")
_ROUNDS_IN_MEMORY = 3
_MANIFESTS_IN_MEMORY = 64


class RoundLog:
    """Reads the rounds of a log; safe among threads, and while another process writes.

    A round that is listed is whole. Its digests are checked when it is first read, and what was
    checked is what is given: a round's content never changes between two reads.

    Attributes:
        root: Folder of the log.
        log_id: Random name of the log, written when it was made.
    """

    def __init__(self, root: Path, *, must_exist: bool = False) -> None:
        """Open the log in ``root``; make an empty one there unless ``must_exist``.

        Raises:
            RoundLogError: If there is no log although there must be, or `LOG.json` is damaged.
        """
        self.root = root
        self.rounds_dir = root / "rounds"
        path = root / "LOG.json"
        if not path.exists():
            if must_exist:
                raise RoundLogError(f"there is no round log in {root}: {path} is missing")
            self._create(path)
        try:
            self.log_id: str = decode_object(path.read_bytes(), LOG_KEYS)["log_id"]
        except (OSError, ValueError, KeyError) as exc:
            raise RoundLogError(f"{path} cannot be read: {exc}; restore it from a copy") from exc
        self._manifest = lru_cache(_MANIFESTS_IN_MEMORY)(self._load_manifest)
        self._groups = lru_cache(_ROUNDS_IN_MEMORY)(self._load_groups)
        self._loading: defaultdict[int, Lock] = defaultdict(Lock)

    def _create(self, path: Path) -> None:
        try:
            self.rounds_dir.mkdir(parents=True, exist_ok=True)
            with locked(self.root / "LOCK"):
                if not path.exists():
                    text = encode_object({"schema_version": 1, "log_id": uuid.uuid4().hex})
                    replace_file(path, text)
        except OSError as exc:
            raise RoundLogError(f"a round log cannot be made in {self.root}: {exc}") from exc

    def folder(self, round_id: int) -> Path:
        """Where a sealed round lies, or would lie."""
        return self.rounds_dir / f"{round_id:08d}"

    def sealed_ids(self) -> list[int]:
        """The sealed rounds that are kept, ascending."""
        try:
            names = [path.name for path in self.rounds_dir.iterdir()]
        except FileNotFoundError as exc:
            raise RoundLogError(f"the rounds of {self.root} cannot be listed: {exc}") from exc
        except OSError as exc:
            raise DiskError(f"the rounds of {self.root} cannot be listed for now: {exc}") from exc
        return sorted(int(name) for name in names if _SEALED_NAME.fullmatch(name))

    def newest(self) -> int | None:
        """The newest sealed round; None before the first."""
        return max(self.sealed_ids(), default=None)

    def expired_ranges(self) -> list[tuple[int, int]]:
        """Rounds that retention has removed, as inclusive ranges, ascending."""
        path = self.root / "EXPIRED.json"
        try:
            content = path.read_bytes()
            # Earlier versions wrote the ranges alone.
            is_plain = content.startswith(b"[")
            ranges = (
                json.loads(content) if is_plain else decode_object(content, ("ranges",))["ranges"]
            )
            return [(int(first), int(last)) for first, last in ranges]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, OverflowError) as exc:
            raise RoundLogError(f"{path} cannot be read: {exc}; restore it from a copy") from exc
        except OSError as exc:
            raise DiskError(f"{path} cannot be read for now: {exc}") from exc

    def expired_ids(self) -> set[int]:
        """The rounds of `expired_ranges`."""
        return {i for first, last in self.expired_ranges() for i in range(first, last + 1)}

    def manifest(self, round_id: int) -> RoundManifest:
        """What is written about a round.

        Raises:
            RoundExpiredError: If it was removed by retention or is not sealed yet.
            DamagedRoundError: If the manifest is missing, damaged, or another log's.
        """
        self._require(round_id)
        return self._manifest(round_id)

    def read(self, round_id: int) -> Groups:
        """All groups of a round, read-only; the same on every read, or an error.

        Raises:
            RoundExpiredError: If it was removed by retention or is not sealed yet.
            DamagedRoundError: If a file of the round is missing or not as it was written.

        Cost: O(bytes of the round) the first time; the last few rounds stay in memory.
        """
        return self.round(round_id)[1]

    def round(self, round_id: int) -> tuple[RoundManifest, Groups]:
        """What `manifest` and `read` give, with one look at the disk."""
        self._require(round_id)
        with self._loading[round_id]:  # or all who ask for it at once would load it
            return self._manifest(round_id), self._groups(round_id)

    def verify(self, *, hash_chunks: bool = True) -> list[str]:
        """Check every file and the chain of manifests; one line per problem, none if all is well.

        Without ``hash_chunks`` chunks are only there and of the right size.

        Cost: O(bytes of the log).
        """
        problems: list[str] = []
        sealed = self.sealed_ids()
        known = set(sealed) | self.expired_ids()
        problems += [
            f"{self.folder(i)} is missing, and retention did not remove it"
            for i in range(1, max(sealed, default=0))
            if i not in known
        ]
        previous: RoundManifest | None = None
        for round_id in sealed:
            try:
                manifest = self._load_manifest(round_id)
            except (DamagedRoundError, DiskError) as exc:
                problems.append(str(exc))
                previous = None
                continue
            if not _continues(manifest, previous):
                problems.append(
                    f"{self.folder(round_id) / MANIFEST_FILE} breaks the chain: it follows "
                    f"{manifest.previous_sha256 or 'no round'}, but the round before is "
                    f"{previous.sha256 if previous else 'missing'}"
                )
            problems += self._chunk_problems(manifest, hash_chunks)
            previous = manifest
        return problems

    def _chunk_problems(self, manifest: RoundManifest, hash_chunks: bool) -> Iterator[str]:
        for entry in manifest.chunks:
            try:
                if hash_chunks:
                    self._load_chunk(manifest.round_id, entry)
                else:
                    self._require_size(manifest.round_id, entry)
            except (DamagedRoundError, DiskError) as exc:
                yield str(exc)

    def _require(self, round_id: int) -> None:
        try:
            if self.folder(round_id).is_dir():
                return
        except OSError as exc:
            raise DiskError(f"round {round_id} cannot be read for now: {exc}") from exc
        kept = id_ranges(self.sealed_ids())
        text = ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in kept)
        one = len(kept) == 1 and kept[0][0] == kept[0][1]
        rounds = f"round {text} is kept" if one else f"rounds {text} are kept"
        rounds = rounds if kept else "no round is kept"
        newest = self.newest() or 0
        if any(first <= round_id <= last for first, last in self.expired_ranges()):
            raise RoundExpiredError(
                f"round {round_id} has expired: {rounds}; open a run under another run_id to "
                "start from the newest"
            )
        if not 1 <= round_id <= newest:
            raise RoundExpiredError(f"round {round_id} has not been sealed: {rounds}")
        raise DamagedRoundError(
            f"{self.folder(round_id)} is missing, and retention did not remove it: {rounds}; "
            "restore the folder from a copy"
        )

    def _load_manifest(self, round_id: int) -> RoundManifest:
        path = self.folder(round_id) / MANIFEST_FILE
        try:
            manifest = decode_manifest(_read(path, round_id))
        except ValueError as exc:
            raise _damaged(path, round_id, str(exc)) from exc
        if (manifest.log_id, manifest.round_id) != (self.log_id, round_id):
            raise _damaged(
                path,
                round_id,
                f"it is of round {manifest.round_id} of log {manifest.log_id}, "
                f"not of log {self.log_id}",
            )
        return manifest

    def _load_groups(self, round_id: int) -> Groups:
        manifest = self._load_manifest(round_id)
        parts = [self._load_chunk(round_id, entry) for entry in manifest.chunks]
        groups = Groups.concatenate(parts)
        for field in fields(groups):
            getattr(groups, field.name).setflags(write=False)
        return groups

    def _require_size(self, round_id: int, entry: ChunkEntry) -> None:
        path = self.folder(round_id) / entry.file
        num_bytes = path.stat().st_size if path.is_file() else 0
        if num_bytes != entry.num_bytes:
            reason = f"it has {num_bytes} bytes, the manifest says {entry.num_bytes}"
            raise _damaged(path, round_id, reason)

    def _load_chunk(self, round_id: int, entry: ChunkEntry) -> Groups:
        path = self.folder(round_id) / entry.file
        content = _read(path, round_id)
        if len(content) != entry.num_bytes:
            reason = f"it has {len(content)} bytes, the manifest says {entry.num_bytes}"
            raise _damaged(path, round_id, reason)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise _damaged(path, round_id, f"it does not match its sha256 {entry.sha256}")
        return decode_chunk(content)


def id_ranges(round_ids: Iterable[int]) -> list[tuple[int, int]]:
    """Inclusive ranges that hold exactly these ids.

    Example:
        >>> id_ranges({1, 2, 3, 7})
        [(1, 3), (7, 7)]
    """
    ranges: list[tuple[int, int]] = []
    for round_id in sorted(round_ids):
        if ranges and ranges[-1][1] == round_id - 1:
            ranges[-1] = (ranges[-1][0], round_id)
        else:
            ranges.append((round_id, round_id))
    return ranges


def _continues(manifest: RoundManifest, previous: RoundManifest | None) -> bool:
    if manifest.round_id == 1:
        return manifest.previous_sha256 == ""
    if previous is None or previous.round_id != manifest.round_id - 1:
        return manifest.previous_sha256 != ""  # the round before has expired or is reported already
    return manifest.previous_sha256 == previous.sha256


def _read(path: Path, round_id: int) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        raise _damaged(path, round_id, f"it cannot be read ({exc.strerror})") from exc
    except OSError as exc:  # of the disk, or of too many open files: it may be well again
        raise DiskError(f"round {round_id} cannot be read for now: {exc}") from exc


def _damaged(path: Path, round_id: int, reason: str) -> DamagedRoundError:
    return DamagedRoundError(
        f"round {round_id} is damaged at {path}: {reason}; restore the file from a copy, "
        f"runs planned on this round cannot go on without it"
    )
