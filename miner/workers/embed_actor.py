"""Ray's shell around `ChunkEmbedder`. Until it works it loads no torch: the driver imports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from miner.data.config import DatasetConfig
from miner.embedding.config import EncoderConfig
from miner.logs import LogFormat, chosen_format, set_up_worker_logs
from miner.workers.config import WorkersConfig
from miner.workers.remote import lower_priority
from miner.workers.row_store_here import has_row_store, make_row_store
from miner.workers.snapshot import KnownRows, SnapshotKey, Snapshots

if TYPE_CHECKING:
    from miner.workers.embed_worker import ChunkEmbedder, Weights

__all__ = ["EmbedActor", "EmbedSettings"]


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """What a worker must know; paths are the same on every machine.

    A machine without the row store makes it from ``dataset``, if that is given.
    """

    workers: WorkersConfig
    encoder: EncoderConfig
    store_path: Path
    snapshots: Snapshots
    dataset: DatasetConfig | None = None
    log_format: LogFormat = field(default_factory=chosen_format)


class EmbedActor:
    """Builds its embedder at first use rather than at creation: errors then keep their class."""

    def __init__(self, settings: EmbedSettings) -> None:
        lower_priority(settings.workers.nice)
        set_up_worker_logs(settings.log_format, "embed")
        self._settings = settings
        self._built: ChunkEmbedder | None = None

    def start(self) -> None:
        """Get ready to embed; does nothing the second time.

        A row store that this machine still has to make can wait until it is needed: the time within
        which workers must have started is not for that.
        """
        settings = self._settings
        if settings.dataset is None or has_row_store(settings.store_path):
            self._embedder()

    def key(self, weights_sha256: str) -> SnapshotKey:
        """As `ChunkEmbedder.key`."""
        return self._embedder().key(weights_sha256, self._settings.workers.chunk_rows)

    def validate(self, weights: Weights, sha256: str) -> float:
        """As `ChunkEmbedder.validate`."""
        return self._embedder().validate(weights, sha256)

    def embed_chunk(
        self,
        key: SnapshotKey,
        chunk: int,
        weights: Weights,
        known: list[KnownRows],
        *,
        rehearse: bool,
    ) -> int:
        """Load the weights unless they are, and embed the chunk: safe to repeat.

        Returns:
            Rows that were embedded; the others were known.
        """
        embedder = self._embedder()
        embedder.load(weights, key.weights_sha256)
        return embedder.embed_chunk(key, chunk, known=known, rehearse=rehearse)

    def _embedder(self) -> ChunkEmbedder:
        if self._built is None:
            import torch

            from miner.workers.embed_worker import ChunkEmbedder

            settings = self._settings
            if settings.dataset is not None:
                make_row_store(settings.dataset, settings.store_path)
            torch.set_num_threads(max(1, int(settings.workers.cpus_per_worker)))
            self._built = ChunkEmbedder(
                settings.store_path,
                settings.encoder,
                settings.snapshots,
                settings.workers.decode_ahead,
            )
        return self._built
