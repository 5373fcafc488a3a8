"""Embeddings as users have them into rows of length 1 in float32, or a message that names rows.

Knows no identities. Shape legend: N = rows, D = dimensions, B = rows of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from miner.app.offline.sources import Source
from miner.errors import DatasetError

__all__ = ["digest_of", "embedding_rows", "normalise"]

BLOCK_VALUES = 2**21
"""Values looked at together: 16 MB in float64, whatever the number of dimensions."""
UNIT_TOLERANCE = 1e-5
"""What is nearer to length 1 was normalised in float32; half precision alone is off by more."""
SHOWN = 5

Tell = Callable[[npt.NDArray[np.int64]], str]


def embedding_rows(source: Source) -> npt.NDArray[Any]:
    """[N, D] float16, float32 or float64, not copied where its source is one contiguous piece.

    Raises:
        DatasetError: It is not two-dimensional, empty, of another type, or a column of lists with
            nulls or unequal lengths; names the source and the first rows.
    """
    rows_ND = source.values if isinstance(source.values, np.ndarray) else _unnest(source)
    if rows_ND.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        raise DatasetError(
            f"{source.name} is of type {rows_ND.dtype}, but embeddings are float16, float32 or "
            "float64: convert it, or name another column or file"
        )
    if rows_ND.ndim != 2:
        raise DatasetError(
            f"{source.name} has shape {rows_ND.shape}, but embeddings are [rows, dimensions]: "
            "give one vector per sample"
        )
    if not rows_ND.size:
        raise DatasetError(f"{source.name} is empty: its shape is {rows_ND.shape}")
    return rows_ND


def normalise(rows_ND: npt.NDArray[Any], name: str, tell: Tell) -> npt.NDArray[np.float32]:
    """The rows at length 1 in float32: ``rows_ND`` itself if they are so already and contiguous.

    Args:
        rows_ND: As from :func:`embedding_rows`.
        name: Of their source, for messages.
        tell: Puts row numbers in words, with sample ids where there are any.

    Raises:
        DatasetError: Rows hold NaN or infinity, or are zero and so have no direction; says how many
            and names the first.

    Cost: one pass and 16 MB where nothing has to be converted; else two, and [N, D] float32.
    """
    is_ready = rows_ND.dtype.itemsize == 4
    broken: list[npt.NDArray[np.int64]] = []
    zero: list[npt.NDArray[np.int64]] = []
    for begin, block_BD in _blocks(rows_ND):
        peaks_B, lengths_B = _measure(block_BD)
        broken.append(begin + np.flatnonzero(~np.isfinite(peaks_B)))
        zero.append(begin + np.flatnonzero(peaks_B == 0))
        is_ready = is_ready and bool((np.abs(peaks_B * lengths_B - 1) <= UNIT_TOLERANCE).all())
    _refuse(np.concatenate(broken), name, tell, "hold NaN or infinity", "mend or remove them")
    _refuse(np.concatenate(zero), name, tell, "are zero and have no direction", "remove them")
    if is_ready:
        return np.asanyarray(rows_ND, np.float32, order="C")
    embeddings_ND = np.empty(rows_ND.shape, np.float32)
    for begin, block_BD in _blocks(rows_ND):
        peaks_B, lengths_B = _measure(block_BD)
        scaled_BD = block_BD.astype(np.float64) / peaks_B[:, None]
        embeddings_ND[begin : begin + len(block_BD)] = scaled_BD / lengths_B[:, None]
    return embeddings_ND


def digest_of(embeddings_ND: npt.NDArray[np.float32]) -> str:
    """The sha256 of the rows' bytes, in hex: equal embeddings, equal digest."""
    digest = hashlib.sha256()
    for _, block_BD in _blocks(embeddings_ND):
        digest.update(np.ascontiguousarray(block_BD, "<f4").data)
    return digest.hexdigest()


def _blocks(rows_ND: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    rows = max(1, BLOCK_VALUES // rows_ND.shape[1])
    for begin in range(0, len(rows_ND), rows):
        yield begin, rows_ND[begin : begin + rows]


def _measure(
    block_BD: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each row's greatest value, and its length in units of that: plain squares can overflow."""
    wide_BD = block_BD.astype(np.float64)
    peaks_B = np.abs(wide_BD).max(axis=1)
    usable_B = np.isfinite(peaks_B) & (peaks_B > 0)
    wide_BD[~usable_B] = 0
    wide_BD /= np.where(usable_B, peaks_B, 1.0)[:, None]
    lengths_B = np.sqrt(np.einsum("bd,bd->b", wide_BD, wide_BD))
    return peaks_B, np.where(usable_B, lengths_B, 1.0)


def _unnest(source: Source) -> npt.NDArray[Any]:
    """A column of lists as a matrix."""
    column: Any = source.values
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind)) or pa.types.is_nested(kind.value_type):
        raise DatasetError(
            f"{source.name} is of type {kind}, but embeddings are a column of lists of float16, "
            "float32 or float64: name another column"
        )
    _refuse(_rows(column.is_null()), source.name, _plain, "are null", "give each an embedding")
    widths_N = pc.list_value_length(column).to_numpy()
    dim = int(widths_N[0]) if len(widths_N) else 0
    _refuse(
        np.flatnonzero(widths_N != dim),
        source.name,
        _plain,
        f"are not of length {dim}, as row 0 is",
        "all embeddings need the same dimensions",
    )
    pieces = [chunk.flatten() for chunk in column.chunks]
    flat = pa.chunked_array(pieces, kind.value_type)
    missing = np.unique(_rows(flat.is_null()) // max(dim, 1))
    _refuse(missing, source.name, _plain, "hold nulls", "mend or remove them")
    arrays = [piece.to_numpy(zero_copy_only=False) for piece in pieces if len(piece)]
    if len(arrays) != 1:
        arrays = [np.concatenate(arrays or [np.empty(0, np.float32)])]
    rows_ND: npt.NDArray[Any] = arrays[0].reshape(len(widths_N), dim)
    return rows_ND


def _rows(mask: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.flatnonzero(mask.to_numpy())


def _plain(rows: npt.NDArray[np.int64]) -> str:
    return f"rows {rows.tolist()}"


def _refuse(rows: npt.NDArray[np.int64], name: str, tell: Tell, fault: str, advice: str) -> None:
    if len(rows):
        raise DatasetError(
            f"{name}: {len(rows)} rows {fault}, the first are {tell(rows[:SHOWN])}; {advice}"
        )
