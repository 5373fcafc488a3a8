r"""Seals rounds into a log and removes old ones; the only code that writes there.

    building --(chunks, manifest, fsync, rename)--> sealed --(retention)--> expired
        \--(error, kill, newer writer)--> failed: removed, now or by the next writer

Generations fence writers: opening one takes the next number under the log's lock, and sealing
checks the number under the same lock, so an older writer can never add a round afterwards. With an
archive the folder is a working copy, and one put into the archive decides, see `archive`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.core.parallel import cut, map_blocks
from miner.errors import RoundLogError, StaleWriterError
from miner.failpoints import reach
from miner.rounds.archive import Archive
from miner.rounds.archive_writer import ArchiveWriter
from miner.rounds.checked import decode_number, encode_number
from miner.rounds.chunks import encode_chunk
from miner.rounds.config import RoundsConfig
from miner.rounds.durable import locked, publish_folder, replace_file, sync_folder, write_file
from miner.rounds.expire import expire_rounds
from miner.rounds.log import MANIFEST_FILE, RoundLog
from miner.rounds.manifest import (
    ChunkEntry,
    RoundDraft,
    RoundManifest,
    decode_manifest,
    encode_manifest,
)
from miner.rounds.restore import adopt_rounds
from miner.rounds.takeover import take_over
from miner.types import Groups

__all__ = ["RoundWriter"]

_log = logging.getLogger(__name__)


class RoundWriter:
    """The writer of one generation. One thread at a time.

    Attributes:
        log: The log it writes to.
        generation: Its number; the highest ever taken may write.
    """

    def __init__(
        self,
        log: RoundLog,
        generation: int,
        config: RoundsConfig,
        archive: ArchiveWriter | None = None,
    ) -> None:
        self.log = log
        self.generation = generation
        self._chunk_groups = config.chunk_groups
        self._archive = archive

    @classmethod
    def open(
        cls, log: RoundLog, config: RoundsConfig | None = None, archive: Archive | None = None
    ) -> RoundWriter:
        """Take over the log: older writers cannot seal any more, what they left is removed.

        With an archive, this fences writers on every disk, and folder and archive hold the same
        rounds when it returns.

        Raises:
            RoundLogError: If the log cannot be written, or folder and archive do not fit.
        """
        with _log_lock(log):
            generation = _newest_generation(log) + 1
            archive_writer = None
            if archive is not None:
                archive_writer = take_over(log, archive, generation)
                generation = archive_writer.generation
            replace_file(log.root / "GENERATION", encode_number(generation))
            reach("writer.open.fenced")
            for leftover in log.rounds_dir.iterdir():
                if leftover.suffix in (".building", ".expired"):
                    shutil.rmtree(leftover, ignore_errors=True)
            sync_folder(log.rounds_dir)  # a writer killed after its rename may not have done so
        _log.info("generation %d writes the round log in %s", generation, log.root)
        writer = cls(log, generation, config or RoundsConfig(), archive_writer)
        writer._remove_leftovers()
        return writer

    @property
    def next_round_id(self) -> int:
        """The number of the next round; they count from 1."""
        return (self.log.newest() or 0) + 1

    def seal(self, groups: Groups, draft: RoundDraft) -> RoundManifest:
        """Make a round visible, whole and durably, as the newest one; or raise and leave nothing.

        Killed at any point, the log holds the whole round or nothing of it. If the disk refuses
        after the round has appeared, this raises and the round, which is whole, stays. So does one
        that the archive took while it seemed to refuse: the next call brings it to the folder.

        Raises:
            StaleWriterError: If a newer writer has taken over the log.
            RoundLogError: If there are no groups, or the disk refuses.
        """
        if groups.num_groups == 0:
            raise RoundLogError("a round without groups cannot be sealed: nothing could be served")
        self._adopt()
        round_id = self.next_round_id
        archived = self._archive.new_folder(round_id) if self._archive else ""
        building = self.log.rounds_dir / f"{round_id:08d}.g{self.generation}.building"
        try:
            building.mkdir()
            reach("writer.seal.begun")
            chunks = tuple(self._write_chunks(building, groups, archived))
            with _log_lock(self.log):
                self._check_generation(f"seal round {round_id}")
                manifest = self._manifest(round_id, groups, draft, chunks)
                reach("writer.manifest.begin")
                text = encode_manifest(manifest)
                write_file(building / MANIFEST_FILE, text)
                reach("writer.manifest.written")
                if self._archive:
                    self._archive.seal(archived, decode_manifest(text), text)
                publish_folder(building, self.log.folder(round_id))
                reach("writer.seal.published")
        except OSError as exc:
            self._check_generation(f"seal round {round_id}")
            raise RoundLogError(f"round {round_id} cannot be sealed: {exc}") from exc
        finally:
            shutil.rmtree(building, ignore_errors=True)
        extra = {"round": round_id, "num_groups": groups.num_groups}
        _log.info("round %d sealed: %d groups", round_id, groups.num_groups, extra=extra)
        return self.log.manifest(round_id)

    def retain(self, keep: int, needed: set[int]) -> list[int]:
        """Remove all rounds but the newest ``keep`` (at least 1) and those in ``needed``.

        Returns:
            The rounds that were removed, ascending.

        Raises:
            StaleWriterError: If a newer writer has taken over the log.
            RoundLogError: If the disk refuses.
        """
        with _log_lock(self.log):
            self._check_generation("remove rounds")
            sealed = self.log.sealed_ids()
            surplus = sorted(set(sealed[: -max(keep, 1)]) - needed)
            if not surplus:
                return []
            if self._archive:
                self._archive.expire(set(surplus))
            expire_rounds(self.log, set(surplus))
        self._remove_leftovers()
        _log.info("rounds %s expired", surplus, extra={"rounds": surplus})
        return surplus

    def _write_chunks(self, building: Path, groups: Groups, archived: str) -> Iterator[ChunkEntry]:
        """Several at once: one is encoded while the disk is waited for with another."""

        def write(part: slice) -> ChunkEntry:
            chunk = groups.between(part.start, part.stop)
            content = encode_chunk(chunk)
            name = f"chunk-{part.start // self._chunk_groups:05d}.arrow"
            reach("writer.chunk.begin")
            write_file(building / name, content)
            reach("writer.chunk.written")
            if self._archive:
                self._archive.put(archived, name, content)
            return ChunkEntry(
                file=name,
                first_group=part.start,
                num_groups=chunk.num_groups,
                num_rows=chunk.num_rows,
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )

        return map_blocks(write, cut(groups.num_groups, self._chunk_groups))

    def _adopt(self) -> None:
        """Bring the folder up to the archive, after tries whose end nobody has seen."""
        if self._archive is None:
            return
        self._archive.settle()
        if self._archive.entry.newest < self.next_round_id:
            return
        with _log_lock(self.log):
            adopt_rounds(self.log, self._archive.archive, self._archive.entry)

    def _remove_leftovers(self) -> None:
        if self._archive is None:
            return
        try:
            self._archive.remove_leftovers()
        except (RoundLogError, OSError) as exc:
            _log.warning("leftovers stay in the archive for now: %s", exc)

    def _manifest(
        self, round_id: int, groups: Groups, draft: RoundDraft, chunks: tuple[ChunkEntry, ...]
    ) -> RoundManifest:
        return RoundManifest(
            **draft.model_dump(),
            log_id=self.log.log_id,
            round_id=round_id,
            generation=self.generation,
            num_groups=groups.num_groups,
            num_rows=groups.num_rows,
            num_triplets=groups.num_triplets,
            chunks=chunks,
            previous_sha256=self.log.manifest(round_id - 1).sha256 if round_id > 1 else "",
        )

    def _check_generation(self, action: str) -> None:
        newest = _newest_generation(self.log)
        if newest != self.generation:
            raise StaleWriterError(
                f"generation {self.generation} may not {action}: generation {newest} has taken "
                f"over the log in {self.log.root}; this process should end"
            )


@contextmanager
def _log_lock(log: RoundLog) -> Iterator[None]:
    """Hold the log's lock; refusals of the disk become a `RoundLogError`."""
    try:
        with locked(log.root / "LOCK"):
            yield
    except OSError as exc:
        raise RoundLogError(f"the round log in {log.root} cannot be written: {exc}") from exc


def _newest_generation(log: RoundLog) -> int:
    path = log.root / "GENERATION"
    try:
        return decode_number(path.read_bytes())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as exc:
        raise RoundLogError(f"{path} cannot be read: {exc}; restore it from a copy") from exc
