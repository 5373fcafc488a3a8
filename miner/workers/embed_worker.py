"""One embedding worker: turns chunks of the row store into chunks of a snapshot.

A plain class; Ray's actor around it is in `miner.workers.embed`. It keeps no state but the loaded
weights, so any worker may do any chunk, again if need be.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from miner.data.row_store import RowStore
from miner.embedding.canary import check_canary
from miner.embedding.config import EncoderConfig
from miner.embedding.encoder import BatchFailedError, Encoder, load_encoder
from miner.embedding.entry_points import preprocessing_fingerprint
from miner.embedding.fetch import fetch_weights
from miner.embedding.weights import load_weights
from miner.errors import CoalfaceError, EncoderError, PoisonSampleError, SnapshotError
from miner.workers.decode import DecodeAhead
from miner.workers.snapshot import KnownRows, SnapshotKey, Snapshots

__all__ = ["ChunkEmbedder"]

log = logging.getLogger(__name__)

Weights = str | npt.NDArray[np.uint8]


class ChunkEmbedder:
    """Embeds chunks of one row store with one encoder. Not thread-safe."""

    def __init__(
        self,
        store_path: Path,
        config: EncoderConfig,
        snapshots: Snapshots,
        decode_threads: int = 0,
    ) -> None:
        """Open the row store and build the encoder; batches are decoded on so many threads.

        Raises:
            DatasetError: There is no sound row store.
            EncoderError: The encoder cannot be built.
        """
        self._config = config
        self._store = RowStore.open(store_path)
        self._snapshots = snapshots
        self._encoder = load_encoder(config)
        self._together = DecodeAhead(self._encoder.decode, decode_threads)
        self._alone = DecodeAhead(self._encoder.decode, 0)
        self._loaded_sha256 = ""
        payload_columns = [name for name in self._store.schema.names if name != "row_id"]
        self._fingerprint = preprocessing_fingerprint(config, payload_columns)

    def key(self, weights_sha256: str, chunk_rows: int) -> SnapshotKey:
        """The key of the snapshot that these weights make of this store with this encoder."""
        return SnapshotKey(
            weights_sha256=weights_sha256.lower(),
            preprocessing_fingerprint=self._fingerprint,
            dataset_fingerprint=self._store.fingerprint,
            num_rows=self._store.num_rows,
            chunk_rows=chunk_rows,
        )

    def load(self, weights: Weights, sha256: str) -> None:
        """Load weights, unless they are loaded already.

        Args:
            weights: Where they lie, or the bytes themselves, verified.
            sha256: Of the bytes.

        Raises:
            WeightsRefusedError: As `fetch_weights` and `load_weights`.
        """
        if self._loaded_sha256 != sha256.lower():
            load_weights(self._encoder.module, self._content(weights, sha256))
            self._loaded_sha256 = sha256.lower()
            log.info("loaded weights %s", sha256)

    def validate(self, weights: Weights, sha256: str) -> float:
        """Try weights on a second encoder: those loaded stay as they are.

        Returns:
            The canary's mean similarity; the canary is one row of each of up to ``canary_rows``
            identities, evenly spaced.

        Raises:
            WeightsRefusedError: As `fetch_weights`, `load_weights` and `check_canary`.
            PoisonSampleError: A row of the canary cannot be embedded, whatever the weights.
        """
        encoder = load_encoder(self._config)
        load_weights(encoder.module, self._content(weights, sha256))
        identities = self._store.catalog.identities
        num_rows = min(self._config.canary_rows, identities.num_identities)
        chosen = np.linspace(0, identities.num_identities - 1, num_rows).astype(np.int64)
        batch = self._store.read(identities.rows_N[identities.offsets_I1[chosen]])
        try:
            return check_canary(encoder, batch, self._config)
        except BatchFailedError as exc:
            raise self._blame(encoder, batch, exc) from exc

    def embed_chunk(
        self,
        key: SnapshotKey,
        chunk: int,
        *,
        known: Sequence[KnownRows] = (),
        rehearse: bool = False,
    ) -> int:
        """Embed one chunk with the loaded weights and write it.

        Args:
            key: The snapshot's key.
            chunk: Which of its chunks.
            known: Rows that other snapshots have; they are copied if they are sound there.
            rehearse: First embed each row alone and forget it, with its number noted beside the
                snapshot: if that kills the process, the row is known.

        Returns:
            How many of its rows were embedded.

        Raises:
            PoisonSampleError: A sample cannot be embedded; names row id and sample id.
            NonFiniteError: Embeddings hold NaN or infinity; names the row ids.
            EncoderError: The encoder fails on whole batches, or its output has the wrong form.
            SnapshotError: The key is of other weights, another dataset or another preprocessing
                than this worker's, or the disk or store refuses.
        """
        self._check(key)
        parts, num_embedded = [], 0
        for begin, end, there in self._spans(key, chunk, known):
            if there is not None:
                parts.append(there)
                continue
            if rehearse:
                self._embed_rows(key, chunk, begin, end, batch_rows=1)
            parts.append(self._embed_rows(key, chunk, begin, end, self._config.batch_rows))
            num_embedded += end - begin
        self._snapshots.write_chunk(key, chunk, np.concatenate(parts))
        return num_embedded

    def _content(self, weights: Weights, sha256: str) -> bytes:
        if isinstance(weights, str):
            return fetch_weights(weights, sha256, self._config)
        return weights.tobytes()

    def _spans(
        self, key: SnapshotKey, chunk: int, known: Sequence[KnownRows]
    ) -> Iterator[tuple[int, int, npt.NDArray[np.float32] | None]]:
        """The chunk's rows in ranges, each with its embeddings if another snapshot has them."""
        begin, end = key.rows_of(chunk)
        for there in known:
            first, stop = max(begin, there.begin), min(end, there.end)
            if first >= stop:
                continue
            moved = there.first - there.begin
            rows = self._snapshots.read_rows(there.key, first + moved, stop + moved)
            if rows is None:
                continue
            if begin < first:
                yield begin, first, None
            yield first, stop, rows
            begin = stop
        if begin < end:
            yield begin, end, None

    def _check(self, key: SnapshotKey) -> None:
        own = self.key(self._loaded_sha256, key.chunk_rows)
        if own != key:
            raise SnapshotError(
                f"this worker would make another snapshot than it is asked for: {own} instead of "
                f"{key}; all machines need the same code, row store and weights"
            )

    def _embed_rows(
        self, key: SnapshotKey, chunk: int, begin: int, end: int, batch_rows: int
    ) -> npt.NDArray[np.float32]:
        first, last = begin, begin  # of the rows that are decoded or embedded

        def note(batch: pa.RecordBatch) -> None:
            nonlocal last
            last += batch.num_rows
            self._snapshots.note_rows(key, chunk, first, last)

        ahead = self._together if batch_rows > 1 else self._alone  # a rehearsed row is noted alone
        parts = []
        with closing(ahead.of(self._store.scan(begin, end, batch_rows), note)) as batches:
            for batch, decode in batches:
                try:
                    parts.append(self._encoder.embed_decoded(batch, decode()))
                except BatchFailedError as exc:
                    batches.close()
                    raise self._blame(self._encoder, batch, exc) from exc
                first += batch.num_rows
        return np.concatenate(parts)

    def _blame(
        self, encoder: Encoder, batch: pa.RecordBatch, failure: BatchFailedError
    ) -> CoalfaceError:
        """Halve a failing batch until one row is left; at most 2 log2(rows) further attempts."""
        while batch.num_rows > 1:
            middle = batch.num_rows // 2
            for part in (batch.slice(0, middle), batch.slice(middle)):
                try:
                    encoder.embed(part)
                except BatchFailedError as exc:
                    batch, failure = part, exc
                    break
            else:
                rows = batch.column("row_id")
                return EncoderError(
                    f"rows {rows[0]} to {rows[-1]} fail together, but not in two halves: {failure};"
                    " if memory is short, lower encoder.batch_rows"
                )
        row_id = batch.column("row_id")[0].as_py()
        sample_id = self._store.catalog.sample_ids[row_id].as_py()
        return PoisonSampleError(
            f"row {row_id} (sample id {sample_id!r}) cannot be embedded: {failure}; mend the "
            "sample or filter it out, then ingest again"
        )
