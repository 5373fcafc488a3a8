"""The dataset's fingerprint: equal datasets, equal fingerprint, wherever they lie.

It covers file names, sizes and row counts, column names and types, and every id and identity. It
does not cover the bytes of payloads: reading them would cost as much as embedding them. Those have
digests of their own, one a file, which ingestion makes as it reads them.
Shape legend: N = rows.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["PayloadDigest", "fingerprint_dataset"]


DIGEST_ROWS = 256
"""Rows that are hashed at a time; another number makes other digests."""


def fingerprint_dataset(
    files: Sequence[tuple[str, int, int]],
    columns: Sequence[tuple[str, str]],
    keys: Sequence[pa.Array],
    identity_ids_N: npt.NDArray[np.int32],
) -> str:
    """The sha256, in hex, of everything that fixes which row is which sample of which identity.

    Args:
        files: Name, bytes and kept rows of each file, in row order.
        columns: Name and type of each column used.
        keys: Sample ids and identity names, each an array of int64 or string.
        identity_ids_N: [N] int32 identity of each row.

    Cost: O(N) time; some 1 GB/s.
    """
    digest = hashlib.sha256(json.dumps([list(files), list(columns)]).encode())
    for key in keys:
        _hash_array(digest, key)
    digest.update(identity_ids_N.astype("<i4").tobytes())
    return digest.hexdigest()


class PayloadDigest:
    """The sha256 over rows of payload: the same for the same rows, in whatever batches they come.

    It covers the columns' names and types, and the rows one after the other.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._digest = hashlib.sha256(schema.remove_metadata().serialize())
        self._held: list[pa.RecordBatch] = []
        self._num_held = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        while batch.num_rows:
            taken = batch.slice(0, DIGEST_ROWS - self._num_held)
            batch = batch.slice(taken.num_rows)
            self._held.append(taken)
            self._num_held += taken.num_rows
            if self._num_held == DIGEST_ROWS:
                self._hash_held()

    def sha256(self) -> str:
        """Of all rows so far, in hex; no more can be added."""
        if self._num_held:
            self._hash_held()
        return self._digest.hexdigest()

    def _hash_held(self) -> None:
        # Taken anew, rows lie in buffers of their own: what a slice has besides must not matter.
        rows = pa.concat_batches(self._held)
        rows = rows.take(pa.array(range(rows.num_rows))).replace_schema_metadata()
        self._digest.update(rows.serialize())
        self._held, self._num_held = [], 0


def _hash_array(digest: "hashlib._Hash", values: pa.Array) -> None:
    """Feed the values alone: where a slice begins, or how it was read, must not matter."""
    digest.update(f"{values.type}:{len(values)}:".encode())
    if pa.types.is_int64(values.type):
        digest.update(values.to_numpy().astype("<i8").tobytes())
        return
    _, offsets, data = values.buffers()
    if len(values) == 0 or offsets is None:
        return
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    digest.update((bounds - bounds[0]).astype("<i4").tobytes())
    if data is not None:
        digest.update(memoryview(data)[bounds[0] : bounds[-1]])
