"""What a round is mined from: embeddings, identities and, where given, sample ids, all checked.

It does not know where they came from but by name. Shape legend: N = rows, D = dimensions,
I = identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from miner.app.offline.embeddings import embedding_rows, normalise
from miner.app.offline.sources import Source
from miner.data.fingerprint import fingerprint_dataset
from miner.errors import DatasetError
from miner.types import IdentityTable

__all__ = ["Samples", "check_embeddings", "check_samples", "number_identities"]

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Samples:
    """The rows that a round is mined over; row ``i`` of every array is row id ``i``.

    Attributes:
        identities: Dense identity ids, numbered in ascending order of their names.
        identity_names: [I] int64 or string, the user's own.
        sample_ids: [N] int64 or string, unique; None where the user gave none.
        fingerprint: sha256 in hex over the number of rows, each row's identity and sample id.
    """

    identities: IdentityTable
    identity_names: pa.Array
    sample_ids: pa.Array | None
    fingerprint: str

    def describe(self, rows: npt.NDArray[np.int64]) -> str:
        """Row numbers for a message, with sample ids where there are any."""
        text = f"rows {rows.tolist()}"
        if self.sample_ids is None:
            return text
        return f"{text} (ids {self.sample_ids.take(pa.array(rows)).to_pylist()})"


def check_samples(identities: Source, ids: Source | None) -> Samples:
    """Number the identities, and see that the rows can be trained on.

    Raises:
        DatasetError: Values are missing, of a wrong type or form; ids occur twice; lengths differ;
            there is one identity only, or none with two samples. Names source and first rows.

    Cost: O(N log I) time; identities and ids are held in memory.
    """
    keys = _key_column(identities)
    if len(keys) == 0:
        raise DatasetError(f"{identities.name} is empty: give one identity per sample")
    sample_ids = None if ids is None else _key_column(ids)
    if ids is not None and sample_ids is not None:
        _require_length(ids.name, len(sample_ids), identities.name, len(keys))
        _require_unique(ids.name, sample_ids)
    names, identity_ids_N = number_identities(keys)
    table = IdentityTable.from_ids(identity_ids_N, len(names))
    _require_trainable(identities.name, table, names)
    columns = {"identity": names} | ({} if sample_ids is None else {"id": sample_ids})
    fingerprint = fingerprint_dataset(
        files=[],
        columns=[(name, str(values.type)) for name, values in columns.items()],
        keys=list(columns.values()),
        identity_ids_N=identity_ids_N,
    )
    return Samples(table, names, sample_ids, fingerprint)


def check_embeddings(
    embeddings: Source, samples: Samples, identities: Source
) -> npt.NDArray[np.float32]:
    """[N, D] float32 of length 1; a ``.npy`` file's own memory map if its rows are that already.

    Raises:
        DatasetError: What `embedding_rows` and `normalise` raise; lengths differ.
    """
    rows_ND = embedding_rows(embeddings)
    num_rows = samples.identities.num_rows
    _require_length(embeddings.name, len(rows_ND), identities.name, num_rows)
    return normalise(rows_ND, embeddings.name, samples.describe)


def number_identities(keys: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The distinct keys in ascending order, and for each row the position of its own."""
    encoded = keys.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]


def _key_column(source: Source) -> pa.Array:
    """Identities or ids as int64 or string."""
    values = source.values
    if isinstance(values, np.ndarray):
        values = pa.chunked_array([_to_arrow(source, values)])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    missing = np.flatnonzero(values.is_null(nan_is_null=True).to_numpy())
    if len(missing):
        raise DatasetError(
            f"{source.name}: {len(missing)} rows have no value, the first are rows "
            f"{missing[:SHOWN].tolist()}; give them one, or remove them here and everywhere"
        )
    kind = _key_type(values.type)
    if kind is None:
        raise DatasetError(
            f"{source.name} is of type {values.type}, but identities and ids are integers or text: "
            "convert it, or name another column or file"
        )
    try:
        chunks = values.cast(kind).chunks
    except pa.ArrowInvalid as exc:
        raise DatasetError(f"{source.name} does not fit {kind}: {exc}; convert it") from exc
    return pa.concat_arrays([pa.array([], kind), *chunks])


def _to_arrow(source: Source, values: npt.NDArray[Any]) -> pa.Array:
    if values.ndim != 1:
        raise DatasetError(
            f"{source.name} has shape {values.shape}, but identities and ids are one value per "
            "row: give a one-dimensional array"
        )
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError) as exc:
        raise DatasetError(
            f"{source.name} is of type {values.dtype}, which does not hold integers or text "
            f"throughout: {exc}"
        ) from exc


def _key_type(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(kind):
        return pa.int64()
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    return pa.string() if any(test(kind) for test in tests) else None


def _require_length(name: str, length: int, other: str, expected: int) -> None:
    if length != expected:
        raise DatasetError(
            f"{name} has {length} rows, but {other} has {expected}: row i of each must be the same "
            "sample"
        )


def _require_unique(name: str, sample_ids: pa.Array) -> None:
    encoded = sample_ids.dictionary_encode()
    if len(encoded.dictionary) == len(sample_ids):
        return
    counts = np.bincount(encoded.indices.to_numpy())
    repeated = np.flatnonzero(counts > 1)
    places = [
        f"{encoded.dictionary[int(which)].as_py()!r} in rows "
        f"{np.flatnonzero(encoded.indices.to_numpy() == which)[:SHOWN].tolist()}"
        for which in repeated[:SHOWN]
    ]
    raise DatasetError(
        f"{name} holds {len(repeated)} ids more than once, the first are {'; '.join(places)}; "
        "ids must be unique"
    )


def _require_trainable(name: str, table: IdentityTable, names: pa.Array) -> None:
    if table.num_identities == 1:
        raise DatasetError(
            f"{name} holds one identity only, {names[0].as_py()!r} in all {table.num_rows} rows "
            f"(rows {np.arange(table.num_rows)[:SHOWN].tolist()}...): there is no negative"
        )
    if table.sizes_I.max() < 2:
        raise DatasetError(
            f"{name} holds no identity with two samples: {table.num_identities} identities in "
            f"{table.num_rows} rows, the first are {names[:SHOWN].to_pylist()}: there is no "
            "positive; it may be an id"
        )
