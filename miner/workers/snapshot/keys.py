"""What names a snapshot and vouches for its chunks, wherever they lie.

It reads and writes nothing. Shape legend: C = rows of a chunk, D = dimensions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from miner.errors import SnapshotError

__all__ = [
    "FILES_FILE",
    "KEY_FILE",
    "ROW_DTYPE",
    "ChunkReceipt",
    "SnapshotKey",
    "incomplete",
    "note_name",
    "receipt_name",
]

ROW_DTYPE = np.dtype("<f4")
KEY_FILE, FILES_FILE = "KEY.json", "FILES.json"


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """All that the content of a snapshot depends on: another value is another snapshot."""

    weights_sha256: str
    preprocessing_fingerprint: str
    dataset_fingerprint: str
    num_rows: int
    chunk_rows: int

    @property
    def digest(self) -> str:
        """sha256 over the fields, hex: the snapshot's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def num_chunks(self) -> int:
        """Chunks, the last one may be shorter."""
        return -(-self.num_rows // self.chunk_rows)

    def makes_rows_of(self, other: SnapshotKey) -> bool:
        """Whether a sample has the same embedding in both snapshots."""
        return (self.weights_sha256, self.preprocessing_fingerprint) == (
            other.weights_sha256,
            other.preprocessing_fingerprint,
        )

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """Half-open range of the chunk's row ids."""
        assert 0 <= chunk < self.num_chunks, f"no {chunk=} in {self.num_chunks}"
        return chunk * self.chunk_rows, min(self.num_rows, (chunk + 1) * self.chunk_rows)

    def chunks_of(self, rows: range) -> range:
        """The chunks that hold successive rows, at least one."""
        assert rows, "no rows"
        assert rows.step == 1, f"{rows=} are not successive"
        return range(rows.start // self.chunk_rows, rows[-1] // self.chunk_rows + 1)

    def encode(self) -> bytes:
        """As `KEY_FILE` holds it."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def decode(cls, content: bytes) -> SnapshotKey | None:
        """None unless it is a key."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class ChunkReceipt:
    """What was written as one chunk."""

    chunk: int
    num_rows: int
    dim: int
    sha256: str

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return self.dim * ROW_DTYPE.itemsize

    @property
    def num_bytes(self) -> int:
        """Size of the chunk."""
        return self.num_rows * self.row_bytes

    @classmethod
    def of(
        cls, key: SnapshotKey, chunk: int, embeddings_CD: npt.NDArray[np.float32]
    ) -> tuple[ChunkReceipt, memoryview]:
        """The receipt of a chunk's rows, and their bytes.

        Raises:
            SnapshotError: The rows are not as many as the chunk has, or have no dimensions.
        """
        begin, end = key.rows_of(chunk)
        if embeddings_CD.ndim != 2 or len(embeddings_CD) != end - begin or not embeddings_CD.size:
            raise SnapshotError(
                f"chunk {chunk} has rows {begin} to {end - 1}, got an array "
                f"{list(embeddings_CD.shape)}"
            )
        data = np.ascontiguousarray(embeddings_CD, ROW_DTYPE).data.cast("B")
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(chunk, end - begin, embeddings_CD.shape[1], sha256), data

    def rows(self, data: bytes) -> npt.NDArray[np.float32] | None:
        """[C, D] rows; None unless they are those that were written."""
        if len(data) != self.num_bytes or hashlib.sha256(data).hexdigest() != self.sha256:
            return None
        return np.frombuffer(data, ROW_DTYPE).reshape(self.num_rows, self.dim)

    def encode(self) -> bytes:
        """As the file of `receipt_name` holds it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes, key: SnapshotKey, chunk: int) -> ChunkReceipt | None:
        """None unless it is a receipt of this chunk."""
        try:
            receipt = cls(**json.loads(content))
            is_whole = isinstance(receipt.dim, int) and receipt.num_bytes > 0
        except (ValueError, TypeError):
            return None
        begin, end = key.rows_of(chunk)
        is_its = (receipt.chunk, receipt.num_rows) == (chunk, end - begin)
        return receipt if is_whole and is_its else None


def receipt_name(chunk: int) -> str:
    """Of the file that vouches for a chunk."""
    return f"chunk-{chunk:08d}.json"


def note_name(chunk: int) -> str:
    """Of the file that says which rows are at work."""
    return f"chunk-{chunk:08d}.at"


def incomplete(key: SnapshotKey, place: object, chunk: int, what: str) -> SnapshotError:
    """That a snapshot cannot be read, and by the fault of which chunk."""
    begin, end = key.rows_of(chunk)
    return SnapshotError(
        f"snapshot {place} cannot be read: chunk {chunk} of {key.num_chunks} (rows {begin} to "
        f"{end - 1}) {what}; embed it again, only missing chunks are made"
    )
