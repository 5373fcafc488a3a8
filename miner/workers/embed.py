"""Makes a snapshot whole on a pool of Ray workers, whatever happens to them.

A worker has one chunk at a time, so a lost worker costs that chunk and no other. Only the workers
load torch. Chunks: see `miner.workers.ledger`; workers: see `miner.workers.crew`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError

from miner.data.row_store import RowStore
from miner.embedding.config import EncoderConfig
from miner.errors import PoisonSampleError, SnapshotError
from miner.workers.config import WorkersConfig
from miner.workers.crew import Crew, Worker
from miner.workers.embed_actor import EmbedActor, EmbedSettings
from miner.workers.ledger import ChunkLedger
from miner.workers.remote import Resources, result_of
from miner.workers.snapshot import DataFile, KnownRows, SnapshotKey, SnapshotStore

__all__ = ["EmbedPool", "EmbedReport"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """What making a snapshot took.

    Attributes:
        num_chunks: Chunks of the snapshot.
        num_embedded: Those that were made.
        num_reused: Those that were there.
        num_lost_workers: Workers that were lost meanwhile.
        num_rows_embedded: Rows that were embedded; those of other snapshots were copied.
    """

    num_chunks: int
    num_embedded: int
    num_reused: int
    num_lost_workers: int
    num_rows_embedded: int


class EmbedPool:
    """Workers that embed one row store with one encoder. Thread-safe; one `embed` at a time."""

    def __init__(
        self, workers: WorkersConfig, encoder: EncoderConfig, store_path: Path, snapshot_root: Path
    ) -> None:
        """Ask Ray for the workers; they start while the caller goes on.

        Row store and snapshots must be reachable under these paths on every machine.
        """
        settings = EmbedSettings(workers, encoder, store_path.absolute(), snapshot_root.absolute())
        resources = Resources(workers.cpus_per_worker, workers.gpus_per_worker)
        self._settings = settings
        self._snapshots = SnapshotStore(settings.snapshot_root)
        self._embedding = threading.Lock()
        self._crew = Crew(
            "embedding worker",
            lambda: resources.start(EmbedActor, settings),
            workers.num_embed_workers or resources.room_for(),
            resources,
            workers.placement_timeout_s,
        )

    def key(self, weights_sha256: str) -> SnapshotKey:
        """The key of the snapshot that these weights make.

        Raises:
            DatasetError, EncoderError: A worker cannot get ready.
            SnapshotError: The cluster has no room for a worker, or workers keep dying.
        """
        key = self._call("key", weights_sha256)
        assert isinstance(key, SnapshotKey)
        return key

    def validate(self, uri: str, sha256: str) -> float:
        """Check announced weights on a worker: place, digest, tensors, canary.

        May be called while `embed` runs; it then waits until a worker has finished its chunk.

        Returns:
            The canary's mean similarity.

        Raises:
            WeightsRefusedError: With the reason, meant for the announcer.
            SnapshotError: As `key`; a `PoisonSampleError` if a row of the canary is to blame.
        """
        return float(self._call("validate", uri, sha256))

    def embed(
        self,
        key: SnapshotKey,
        weights_uri: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> EmbedReport:
        """Embed the chunks that are missing; then `SnapshotStore.open` gives the snapshot.

        Snapshots beyond the ``keep_snapshots`` used last are deleted.

        Args:
            key: From `key`.
            weights_uri: Where the weights of ``key.weights_sha256`` lie; each worker reads them.
            on_progress: Called with (rows done, rows in all) after each chunk.

        Raises:
            PoisonSampleError: A sample cannot be embedded, or takes its worker down with it; names
                row id and sample id.
            NonFiniteError, EncoderError, WeightsRefusedError: As `ChunkEmbedder`.
            SnapshotError: A chunk failed ``max_chunk_attempts`` times, or no worker can start.
        """
        with self._embedding:
            missing = self._snapshots.missing_chunks(key)
            reused = key.num_chunks - len(missing)
            extra = {"snapshot": key.digest, "num_missing": len(missing), "num_there": reused}
            counts = (key.digest, len(missing), reused)
            log.info("snapshot %s: %d chunks to embed, %d there", *counts, extra=extra)
            known = self._snapshots.known_rows(key, self._files()) if missing else []
            job = _Job(self._settings, self._crew, key, weights_uri, missing, known)
            rows_done = key.num_rows - sum(_num_rows(key, chunk) for chunk in missing)
            for chunk in job.run():
                rows_done += _num_rows(key, chunk)
                if on_progress is not None:
                    on_progress(rows_done, key.num_rows)
            self._snapshots.sweep(key)
            self._snapshots.prune(self._settings.workers.keep_snapshots)
            num_rows = job.num_rows_embedded
            log.info("snapshot %s: %d rows embedded", key.digest, num_rows)
            return EmbedReport(key.num_chunks, len(missing), reused, job.num_lost_workers, num_rows)

    def make_room(self) -> None:
        """Kill the workers, while none embeds: they start again when they are needed."""
        log.info("the embedding workers make room")
        self._crew.dismiss()

    def shutdown(self) -> None:
        """Kill the workers; finished chunks stay."""
        self._crew.dismiss()

    def _files(self) -> list[DataFile]:
        manifest = RowStore.open(self._settings.store_path).manifest
        return [
            DataFile(file.num_rows, sha256)
            for file, sha256 in zip(manifest.dataset_files, manifest.payload_sha256s, strict=True)
        ]

    def _call(self, method: str, *args: object) -> Any:
        attempts = self._settings.workers.max_chunk_attempts
        return self._crew.call(method, *args, attempts=attempts)


class _Job:
    """Embeds given chunks of one snapshot."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is needed
        self,
        settings: EmbedSettings,
        crew: Crew,
        key: SnapshotKey,
        uri: str,
        chunks: list[int],
        known: list[KnownRows],
    ) -> None:
        self.num_lost_workers = self.num_rows_embedded = 0
        self._known = known
        self._settings, self._crew, self._key, self._uri = settings, crew, key, uri
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
        ref = worker.actor.embed_chunk.remote(self._key, chunk, self._uri, known, rehearse=rehearse)
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
        snapshots = SnapshotStore(self._settings.snapshot_root)
        begin, end = snapshots.noted_rows(self._key, chunk)
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


def _num_rows(key: SnapshotKey, chunk: int) -> int:
    begin, end = key.rows_of(chunk)
    return end - begin
