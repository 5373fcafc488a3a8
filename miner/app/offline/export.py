"""A sealed round as one flat file: Parquet or JSON lines, for any trainer.

Shape legend: T = triplets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.app.offline.folder import publishing
from miner.app.offline.names import RowNames, find_round, open_names
from miner.app.offline.sources import Source, open_source
from miner.app.offline.tables import pair_table, suspects_table, triplet_table, tuple_table
from miner.app.offline.triplets import FlatTriplets, flatten
from miner.errors import CoalfaceError, DatasetError
from miner.types import Groups

__all__ = ["ExportReport", "ExportRequest", "export_round"]

Form = Literal["triplet", "n-tuple", "labeled-pair", "suspects"]
Format = Literal["parquet", "jsonl"]

GROUPS_AT_ONCE = 1 << 14
"""Groups turned into rows together: some 50,000 triplets, a few MB without texts."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        root: Folder of offline rounds, or the state folder of a service.
        out: File to write; replaced if it is there.
        round_id: None: the newest.
        form: One row per triplet; per anchor and positive; per pair of rows; or per pair of
            identities that look like one.
        format: Of the file.
        num_negatives: Of an n-tuple. None: as many as the best filled pair of the round has.
        text: Source whose value ``i`` stands in place of row id ``i``.
        store: Row store of a service, where it is not ``store`` in its state folder.
    """

    root: Path
    out: Path
    round_id: int | None = None
    form: Form = "triplet"
    format: Format = "parquet"
    num_negatives: int | None = None
    text: str | None = None
    store: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        round_id: The round.
        num_rows: Rows of the file.
        num_left_out: For n-tuples: pairs of anchor and positive that have too few negatives.
    """

    round_id: int
    num_rows: int
    num_left_out: int = 0


def export_round(request: ExportRequest) -> ExportReport:
    """Write a round's triplets to one file, which appears whole or not at all.

    Guarantee: every triplet of the round is in the file once, in the round's order (in the form
    n-tuple: of every anchor and positive with enough negatives; in the form suspects: the pairs
    that the round's quarantine lists). Similarities that are not known, as in random rounds, are
    null.

    Raises:
        RoundExpiredError: There is no such round, or none at all.
        RoundLogError: There is no round log, or the round is damaged.
        DatasetError: The text does not fit the rows; the row store is of another dataset.
        CoalfaceError: The file cannot be written, or no pair has enough negatives.

    Cost: the round in memory, and some MB beside it; the text column in memory.
    """
    log, manifest = find_round(request.root, request.round_id)
    names = open_names(request.root, manifest.dataset_fingerprint, request.store)
    if request.form == "suspects":
        table = suspects_table(manifest, names)
        _write(request, [table])
        return ExportReport(manifest.round_id, table.num_rows)
    groups = log.read(manifest.round_id)
    values = None
    if request.text is not None:
        values = _read_values(request.text, request.format, groups, names)
    if request.form == "n-tuple":
        most = _most_negatives(groups)
        if (request.num_negatives or 1) > most:
            raise CoalfaceError(
                f"no pair of round {manifest.round_id} has {request.num_negatives} negatives, the "
                f"most that one has is {most}"
            )
        request = replace(request, num_negatives=request.num_negatives or most)
    tables = (_tabulate(request, flat, names, values) for flat in _pieces(groups))
    num_rows = _write(request, tables)
    if request.form != "n-tuple":
        return ExportReport(manifest.round_id, num_rows)
    num_pairs = sum(len(flat.counts_P) for flat in _pieces(groups))
    return ExportReport(manifest.round_id, num_rows, num_pairs - num_rows)


def _write(request: ExportRequest, tables: Iterable[pa.Table]) -> int:
    """Write the file, whole or not at all; gives the number of its rows."""
    num_rows = 0
    try:
        with publishing(request.out) as temporary, _opened(request.format, temporary) as write:
            for table in tables:
                write(table)
                num_rows += table.num_rows
    except OSError as exc:
        raise CoalfaceError(f"{request.out} cannot be written: {exc}") from exc
    return num_rows


def _pieces(groups: Groups) -> Iterator[FlatTriplets]:
    for begin in range(0, groups.num_groups, GROUPS_AT_ONCE):
        stop = min(begin + GROUPS_AT_ONCE, groups.num_groups)
        yield flatten(groups.take(np.arange(begin, stop, dtype=np.int64)))


def _most_negatives(groups: Groups) -> int:
    return max(int(flat.counts_P.max(initial=1)) for flat in _pieces(groups))


def _tabulate(
    request: ExportRequest,
    flat: FlatTriplets,
    names: RowNames | None,
    values: pa.Array | None,
) -> pa.Table:
    if request.form == "n-tuple":
        return tuple_table(flat, request.num_negatives or 1, values)
    if request.form == "labeled-pair":
        return pair_table(flat, values)
    return triplet_table(flat, names, values)


def _read_values(text: str, form: Format, groups: Groups, names: RowNames | None) -> pa.Array:
    """The column whose values stand in place of row ids."""
    source = open_source(text, "text")
    values = _to_column(source)
    kind = values.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if form == "jsonl" and not (is_text or pa.types.is_integer(kind)):
        raise DatasetError(
            f"{source.name} is of type {kind}, but JSON lines hold text or integers in place of "
            "row ids: export to Parquet"
        )
    num_rows = int(groups.row_ids_R.max()) + 1 if names is None else names.num_rows
    if len(values) < num_rows or (names is not None and len(values) > num_rows):
        raise DatasetError(
            f"{source.name} has {len(values)} rows, but the round was mined over "
            f"{'at least ' if names is None else ''}{num_rows}: row i must be the text of row id i"
        )
    missing = np.flatnonzero(values.is_null().to_numpy())
    if len(missing):
        raise DatasetError(
            f"{source.name} is null in {len(missing)} rows, the first are rows "
            f"{missing[:SHOWN].tolist()}; a trainer cannot read those"
        )
    if is_text:
        values = values.cast(pa.large_string())  # more than 2 GB of text in one array
    return pa.concat_arrays(values.chunks)


def _to_column(source: Source) -> pa.ChunkedArray:
    values = source.values
    if not isinstance(values, np.ndarray):
        is_encoded = pa.types.is_dictionary(values.type)
        return values.cast(values.type.value_type) if is_encoded else values
    try:
        return pa.chunked_array([pa.array(values)])
    except pa.ArrowException as exc:
        raise DatasetError(f"{source.name} is not one value per row: {exc}") from exc


Write = Callable[[pa.Table], None]


@contextmanager
def _opened(form: Format, path: Path) -> Iterator[Write]:
    """Gives what writes one table after another, all of one schema."""
    if form == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            yield lambda table: file.writelines(_to_lines(table))
        return
    with ExitStack() as stack:
        writers: list[pq.ParquetWriter] = []

        def write(table: pa.Table) -> None:
            if not writers:
                file = stack.enter_context(path.open("wb"))
                writers.append(stack.enter_context(pq.ParquetWriter(file, table.schema)))
            writers[0].write_table(table)

        yield write


def _to_lines(table: pa.Table) -> Iterator[str]:
    for name in ("s_ap", "s_an"):
        if name in table.column_names:  # by way of text: 0.1 rather than 0.10000000149011612
            short = table[name].cast(pa.string()).cast(pa.float64())
            table = table.set_column(table.column_names.index(name), name, short)
    for row in table.to_pylist():
        yield json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
