r"""Seals rounds into a log and removes old ones; the only code that writes there.

    building --(chunks, manifest, fsync, rename)--> sealed --(retention)--> expired
        \--(error, kill, newer writer)--> failed: removed, now or by the next writer

Generations fence writers: opening one takes the next number under the log's lock, and sealing
checks the number under the same lock, so an older writer can never add a round afterwards.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.core.parallel import cut, map_blocks
from miner.errors import RoundLogError, StaleWriterError
from miner.failpoints import reach
from miner.rounds.checked import decode_number, encode_number, encode_object
from miner.rounds.chunks import encode_chunk
from miner.rounds.config import RoundsConfig
from miner.rounds.durable import locked, publish_folder, replace_file, sync_folder, write_file
from miner.rounds.log import MANIFEST_FILE, RoundLog, id_ranges
from miner.rounds.manifest import ChunkEntry, RoundDraft, RoundManifest, encode_manifest
from miner.types import Groups

__all__ = ["RoundWriter"]

_log = logging.getLogger(__name__)


class RoundWriter:
    """The writer of one generation. One thread at a time.

    Attributes:
        log: The log it writes to.
        generation: Its number; the highest ever taken may write.
    """

    def __init__(self, log: RoundLog, generation: int, config: RoundsConfig) -> None:
        self.log = log
        self.generation = generation
        self._chunk_groups = config.chunk_groups

    @classmethod
    def open(cls, log: RoundLog, config: RoundsConfig | None = None) -> RoundWriter:
        """Take over the log: older writers cannot seal any more, what they left is removed.

        Raises:
            RoundLogError: If the log cannot be written.
        """
        with _log_lock(log):
            generation = _newest_generation(log) + 1
            replace_file(log.root / "GENERATION", encode_number(generation))
            reach("writer.open.fenced")
            for leftover in log.rounds_dir.iterdir():
                if leftover.suffix in (".building", ".expired"):
                    shutil.rmtree(leftover, ignore_errors=True)
            sync_folder(log.rounds_dir)  # a writer killed after its rename may not have done so
        _log.info("generation %d writes the round log in %s", generation, log.root)
        return cls(log, generation, config or RoundsConfig())

    @property
    def next_round_id(self) -> int:
        """The number of the next round; they count from 1."""
        return (self.log.newest() or 0) + 1

    def seal(self, groups: Groups, draft: RoundDraft) -> RoundManifest:
        """Make a round visible, whole and durably, as the newest one; or raise and leave nothing.

        Killed at any point, the log holds the whole round or nothing of it. If the disk refuses
        after the round has appeared, this raises and the round, which is whole, stays.

        Raises:
            StaleWriterError: If a newer writer has taken over the log.
            RoundLogError: If there are no groups, or the disk refuses.
        """
        if groups.num_groups == 0:
            raise RoundLogError("a round without groups cannot be sealed: nothing could be served")
        round_id = self.next_round_id
        building = self.log.rounds_dir / f"{round_id:08d}.g{self.generation}.building"
        try:
            building.mkdir()
            reach("writer.seal.begun")
            chunks = tuple(self._write_chunks(building, groups))
            with _log_lock(self.log):
                self._check_generation(f"seal round {round_id}")
                manifest = self._manifest(round_id, groups, draft, chunks)
                reach("writer.manifest.begin")
                write_file(building / MANIFEST_FILE, encode_manifest(manifest))
                reach("writer.manifest.written")
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
            known = {i for a, b in self.log.expired_ranges() for i in range(a, b + 1)}
            text = encode_object({"ranges": id_ranges(known | set(surplus))})
            replace_file(self.log.root / "EXPIRED.json", text)
            reach("writer.retain.listed")
            for round_id in surplus:
                folder = self.log.folder(round_id)
                os.rename(folder, folder.with_suffix(".expired"))
            reach("writer.retain.renamed")
            sync_folder(self.log.rounds_dir)
            reach("writer.retain.removing")
        for round_id in surplus:
            shutil.rmtree(self.log.folder(round_id).with_suffix(".expired"), ignore_errors=True)
        _log.info("rounds %s expired", surplus, extra={"rounds": surplus})
        return surplus

    def _write_chunks(self, building: Path, groups: Groups) -> Iterator[ChunkEntry]:
        """Several at once: one is encoded while the disk is waited for with another."""

        def write(part: slice) -> ChunkEntry:
            chunk = groups.between(part.start, part.stop)
            content = encode_chunk(chunk)
            name = f"chunk-{part.start // self._chunk_groups:05d}.arrow"
            reach("writer.chunk.begin")
            write_file(building / name, content)
            reach("writer.chunk.written")
            return ChunkEntry(
                file=name,
                first_group=part.start,
                num_groups=chunk.num_groups,
                num_rows=chunk.num_rows,
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )

        return map_blocks(write, cut(groups.num_groups, self._chunk_groups))

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
