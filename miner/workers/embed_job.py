"""Chunks handed to workers until all are embedded, whatever happens to the workers.

Chunks: see `miner.workers.ledger`; workers: see `miner.workers.crew`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from ray.exceptions import RayError, RayTaskError

from miner.data.row_store import RowStore
from miner.errors import PoisonSampleError, SnapshotError
from miner.workers.crew import Crew, Worker
from miner.workers.embed_actor import EmbedSettings
from miner.workers.ledger import ChunkLedger
from miner.workers.remote import result_of
from miner.workers.snapshot import KnownRows, SnapshotKey

__all__ = ["EmbedJob", "num_rows_of"]

log = logging.getLogger(__name__)


class EmbedJob:
    """Embeds given chunks of one snapshot; what it counts is of the chunks yielded so far."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is needed
        self,
        settings: EmbedSettings,
        crew: Crew,
        key: SnapshotKey,
        weights: Any,
        chunks: list[int],
        known: list[KnownRows],
    ) -> None:
        self.num_lost_workers = self.num_rows_embedded = 0
        self._known = known
        self._settings, self._crew, self._key, self._weights = settings, crew, key, weights
        workers = settings.workers
        self._ledger = ChunkLedger(
            chunks, workers.max_chunk_attempts, workers.late_factor, workers.chunk_timeout_s
        )
        self._idle: list[Worker] = []
        # A worker at its chunk, or at getting ready (None).
        self._in_flight: dict[Any, tuple[Worker, int | None]] = {}
        self._lost_starts = 0

    def run(self) -> Iterator[int]:
        """Yield each chunk as it is written."""
        if not self._ledger.finished:
            for worker in self._crew.workers:
                self._start(worker)
        while not self._ledger.finished:
            while self._idle and self._ledger.has_pending:
                self._hand_out(self._idle.pop())
            workers = {ref: worker for ref, (worker, _) in self._in_flight.items()}
            overdue = self._ledger.next_overdue(is_anyone_idle=bool(self._idle))
            at_most_s = None if overdue is None else max(0.0, overdue[1] - time.monotonic())
            ref = self._crew.wait_for_any(workers, at_most_s)
            if ref is None:
                assert overdue is not None
                self._take_back(overdue[0])
                continue
            worker, chunk = self._in_flight.pop(ref)
            try:
                num_rows = result_of(ref)
            except RayTaskError as exc:
                if chunk is None:
                    raise
                self._idle.append(worker)
                self._retry(chunk, exc)
            except RayError as exc:
                self.num_lost_workers += 1
                self._start(self._crew.replace(worker))
                self._retry(chunk, exc)
            else:
                worker.started = True
                self._idle.append(worker)
                if chunk is not None:
                    self.num_rows_embedded += num_rows
                    self._ledger.done(chunk, time.monotonic())
                    yield chunk

    def _start(self, worker: Worker) -> None:
        self._in_flight[worker.actor.start.remote()] = (worker, None)

    def _hand_out(self, worker: Worker) -> None:
        chunk = self._ledger.take(time.monotonic())
        rehearse = self._ledger.is_last_retry(chunk)
        begin, end = self._key.rows_of(chunk)
        known = [rows for rows in self._known if rows.begin < end and begin < rows.end]
        ref = worker.actor.embed_chunk.remote(
            self._key, chunk, self._weights, known, rehearse=rehearse
        )
        self._in_flight[ref] = (worker, chunk)

    def _take_back(self, overdue: int) -> None:
        """Have another worker do a chunk; its own, which may hang, is killed first."""
        ref, worker = next(
            (ref, worker) for ref, (worker, chunk) in self._in_flight.items() if chunk == overdue
        )
        del self._in_flight[ref]
        log.warning("chunk %d is late: its worker %d is replaced", overdue, worker.slot)
        self.num_lost_workers += 1
        self._start(self._crew.replace(worker))
        if not self._ledger.overdue(overdue):
            raise self._explain(overdue, "took too long")

    def _retry(self, chunk: int | None, loss: RayError) -> None:
        attempts = self._settings.workers.max_chunk_attempts
        if chunk is None:
            self._lost_starts += 1
            if self._lost_starts >= attempts * self._crew.size:
                raise SnapshotError(
                    f"{self._lost_starts} workers died before they could embed: {loss}"
                ) from loss
        elif not self._ledger.lost(chunk):
            if isinstance(loss, RayTaskError):
                failed = f"failed {attempts} times, at last with {loss.cause!r}"
                raise SnapshotError(f"{self._where(chunk)} {failed}") from loss
            raise self._explain(chunk, "took its worker down") from loss

    def _where(self, chunk: int) -> str:
        begin, end = self._key.rows_of(chunk)
        return f"chunk {chunk} (rows {begin} to {end - 1})"

    def _explain(self, chunk: int, what: str) -> SnapshotError:
        """The error about a chunk that did so each time, with the rows that were being embedded."""
        where, attempts = self._where(chunk), self._settings.workers.max_chunk_attempts
        begin, end = self._settings.snapshots.noted_rows(self._key, chunk)
        catalog = RowStore.open(self._settings.store_path).catalog
        first, last = (catalog.sample_ids[row].as_py() for row in (begin, end - 1))
        if end - begin == 1:
            return PoisonSampleError(
                f"row {begin} (sample id {first!r}) {what}: {where} was tried "
                f"{attempts} times; mend the sample or filter it out, then ingest again"
            )
        return SnapshotError(
            f"{where} {what} {attempts} times, at last while rows {begin} to {end - 1} (sample ids "
            f"{first!r} to {last!r}) were embedded; is memory short, or workers.chunk_timeout_s?"
        )


def num_rows_of(key: SnapshotKey, chunk: int) -> int:
    """Rows of a chunk."""
    begin, end = key.rows_of(chunk)
    return end - begin
