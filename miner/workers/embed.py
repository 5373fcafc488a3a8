"""Makes a snapshot whole on a pool of Ray workers, whatever happens to them.

A worker has one chunk at a time, so a lost worker costs that chunk and no other. Only the workers
load torch. Chunks: see `miner.workers.ledger`; workers: see `miner.workers.crew`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from miner.data.config import DatasetConfig
from miner.data.row_store import RowStore
from miner.embedding.config import EncoderConfig
from miner.embedding.fetch import fetch_weights
from miner.filesystems import is_uri
from miner.workers.config import WorkersConfig
from miner.workers.crew import Crew
from miner.workers.embed_actor import EmbedActor, EmbedSettings
from miner.workers.embed_job import EmbedJob, num_rows_of
from miner.workers.remote import Resources
from miner.workers.snapshot import DataFile, SnapshotKey, Snapshots

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
        self,
        workers: WorkersConfig,
        encoder: EncoderConfig,
        store_path: Path,
        snapshots: Snapshots,
        dataset: DatasetConfig | None = None,
    ) -> None:
        """Ask Ray for the workers; they start while the caller goes on.

        Every machine must reach the snapshots, and the row store under its path: or the dataset, of
        which it then makes a row store of its own.
        """
        settings = EmbedSettings(workers, encoder, store_path.absolute(), snapshots, dataset)
        resources = Resources(workers.cpus_per_worker, workers.gpus_per_worker)
        self._settings = settings
        self._snapshots = snapshots
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
        return float(self._call("validate", self._handed(uri, sha256), sha256))

    def embed(
        self,
        key: SnapshotKey,
        weights_uri: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> EmbedReport:
        """Embed the chunks that are missing; then `Snapshots.open` gives the snapshot.

        Snapshots beyond the ``keep_snapshots`` used last are deleted.

        Args:
            key: From `key`.
            weights_uri: Where the weights of ``key.weights_sha256`` lie. Those of a path are read
                here, and Ray brings them to the workers; from another place each worker reads them.
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
            weights = self._handed(weights_uri, key.weights_sha256) if missing else weights_uri
            job = EmbedJob(self._settings, self._crew, key, weights, missing, known)
            rows_done = key.num_rows - sum(num_rows_of(key, chunk) for chunk in missing)
            for chunk in job.run():
                rows_done += num_rows_of(key, chunk)
                if on_progress is not None:
                    on_progress(rows_done, key.num_rows)
            self._snapshots.sweep(key)
            self._snapshots.prune(self._settings.workers.keep_snapshots, newest=key)
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

    def _handed(self, uri: str, sha256: str) -> Any:
        if is_uri(uri):
            return uri
        content = fetch_weights(uri, sha256, self._settings.encoder)
        return ray.put(np.frombuffer(content, np.uint8))

    def _call(self, method: str, *args: object) -> Any:
        attempts = self._settings.workers.max_chunk_attempts
        return self._crew.call(method, *args, attempts=attempts)
