"""Reads the labelled samples that an evaluation runs on: one split of a Parquet or Arrow dataset.

It knows neither encoders nor metrics.

Shape legend: N = rows of the split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pa_dataset

from trainer.errors import EvaluationError

__all__ = ["SampleSet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """Where labelled samples lie.

    Attributes:
        path: A file or folder of Parquet or Arrow IPC files.
        split_column: With ``split``, only rows whose ``split_column`` equals ``split`` (compared as
            text); None for all rows.
        split: See ``split_column``.
        id_column: Names samples in errors.
        identity_column: Who or what a sample shows.
        payload_columns: What the preprocessing needs.
    """

    path: Path
    split_column: str | None = None
    split: str = ""
    id_column: str = "sample_id"
    identity_column: str = "identity"
    payload_columns: tuple[str, ...] = ("image",)

    def identities(self) -> npt.NDArray[np.int64]:
        """[N] dense identity numbers, in the order in which :meth:`batches` gives the rows.

        Raises:
            EvaluationError: A null identity, or no rows.
        """
        names = self._scan([self.identity_column], 65_536).to_table().column(0)
        if not len(names):
            wanted = f" with {self.split_column} == {self.split!r}" if self.split_column else ""
            raise EvaluationError(f"{self.path} has no rows{wanted}")
        if names.null_count:
            raise EvaluationError(
                f"{self.path}: {names.null_count} rows have no {self.identity_column}"
            )
        numbers = names.combine_chunks().dictionary_encode().indices
        return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.int64)

    def batches(self, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows in order: the payload columns, the id column, and ``row_id`` counting from 0."""
        columns = list(dict.fromkeys((*self.payload_columns, self.id_column)))
        begin = 0
        for batch in self._scan(columns, batch_rows).to_batches():
            row_ids = pa.array(np.arange(begin, begin + batch.num_rows))
            begin += batch.num_rows
            if batch.num_rows:
                yield batch.append_column("row_id", row_ids)

    def _scan(self, columns: list[str], batch_rows: int) -> Any:
        # One thread and no read-ahead of fragments keep the order and bound the memory.
        dataset = _open(self)
        chosen = None
        if self.split_column is not None:
            text = pa_dataset.field(self.split_column).cast(pa.string())
            chosen = text == self.split
        return dataset.scanner(
            columns=columns, filter=chosen, batch_size=batch_rows, use_threads=False
        )


def _open(samples: SampleSet) -> Any:
    """The dataset behind ``samples``, files in sorted order.

    Raises:
        EvaluationError: No such path, unreadable files, or a column is missing.
    """
    path = samples.path
    if not path.exists():
        raise EvaluationError(f"no such dataset: {path}")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_data(p))
    if not found:
        raise EvaluationError(f"{path} holds no .parquet, .arrow or .feather file")
    kind = "parquet" if found[0].suffix == ".parquet" else "ipc"
    try:
        dataset = pa_dataset.dataset([str(file) for file in found], format=kind)
    except (OSError, pa.ArrowException) as exc:
        raise EvaluationError(f"cannot read {path} as {kind}: {exc}") from exc
    needed = {samples.id_column, samples.identity_column, *samples.payload_columns}
    if samples.split_column is not None:
        needed.add(samples.split_column)
    missing = sorted(needed - set(dataset.schema.names))
    if missing:
        raise EvaluationError(f"{path} has no column {missing[0]!r}, only {dataset.schema.names}")
    return dataset


def _is_data(path: Path) -> bool:
    return path.suffix in {".parquet", ".arrow", ".feather"} and path.is_file()
