"""Writes the row store once: payload copied into memory-mappable Arrow IPC, catalog beside it.

(nothing) -> out.partial-<random> -> out        a killed ingestion leaves `out` as it was
"""

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from miner.data.catalog import Catalog, catalog_of
from miner.data.config import DatasetConfig
from miner.data.fingerprint import PayloadDigest
from miner.data.row_store import (
    IDENTITIES,
    MANIFEST,
    PAYLOAD,
    SAMPLES,
    RowStore,
    StoredFile,
    StoreManifest,
    manifest_text,
    sha256_of,
)
from miner.data.source import Source, SourceFile, open_source, reading
from miner.errors import DatasetError

__all__ = ["IngestReport", "ingest"]

logger = logging.getLogger(__name__)

# A record batch is the unit of mapping, not of reading: large ones cost a random read nothing.
MAX_BATCH_ROWS = 8192
MAX_BATCH_BYTES = 64 * 2**20
READ_ROWS = 256


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What the row store holds."""

    path: Path
    reused: bool
    """The store was there already, of the same dataset."""
    fingerprint: str
    num_rows: int
    num_identities: int
    num_singletons: int
    """Identities with one sample: negatives, never anchors."""
    max_identity_rows: int
    """Samples of the largest identity."""
    num_files: int
    num_bytes: int
    """Bytes of the stored payload."""


def ingest(
    config: DatasetConfig,
    out: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Write the dataset's row store into folder ``out``, or find it there.

    ``out`` appears whole or not at all. A store of the same dataset (same fingerprint) is reused.

    Args:
        config: Which dataset and columns.
        out: A folder that does not exist, is empty, or holds a row store.
        on_progress: Called with (rows written, rows to write).

    Raises:
        DatasetError: What `miner.data.catalog.scan_catalog` and `RowStore.open` raise; ``out``
            holds another dataset's store or other files, lies within the dataset's folder, or
            cannot be written; or a file changed meanwhile.

    Cost: reads the payload once, writes it once, reads it again for the digest. Holds up to
    64 MiB and one of the dataset's row groups in memory.
    """
    out = out.absolute()
    source = open_source(config)
    _check_place(source, out)
    catalog = catalog_of(source, config)
    if (out / MANIFEST).exists():
        return _reuse(catalog, out)
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        payload_sha256s = _write_payload(source, catalog, partial / PAYLOAD, on_progress)
        _write_catalog(catalog, payload_sha256s, partial)
        partial.rename(out)
        _sync(out.parent)
    except OSError as exc:
        if (out / MANIFEST).exists():
            return _reuse(catalog, out)
        raise DatasetError(
            f"row store {out} cannot be written: {exc}; choose a folder that is new or empty, "
            "writable, and with room for the payload"
        ) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("row store written: path=%s rows=%d", out, catalog.num_rows)
    return _report(catalog, out, reused=False)


def _check_place(source: Source, out: Path) -> None:
    root = source.local_root
    if root is not None and out.resolve().is_relative_to(root.resolve()):
        raise DatasetError(
            f"row store {out} lies within the dataset {root}, whose next scan would read it as "
            "data; choose a folder beside it"
        )
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_free and not (out / MANIFEST).exists():
        raise DatasetError(
            f"row store {out} cannot be written there: it is a file, or a folder with other "
            f"content and no {MANIFEST}; choose a folder that is new or empty"
        )


def _reuse(catalog: Catalog, out: Path) -> IngestReport:
    store = RowStore.open(out)
    if store.fingerprint != catalog.fingerprint:
        raise DatasetError(
            f"row store {out} holds another dataset (fingerprint {store.fingerprint[:12]}, "
            f"{store.num_rows} rows) than the one configured ({catalog.fingerprint[:12]}, "
            f"{catalog.num_rows} rows); choose another folder, or delete this one"
        )
    logger.info("row store reused: path=%s rows=%d", out, catalog.num_rows)
    return _report(catalog, out, reused=True)


def _report(catalog: Catalog, out: Path, *, reused: bool) -> IngestReport:
    sizes_I = catalog.identities.sizes_I
    return IngestReport(
        path=out,
        reused=reused,
        fingerprint=catalog.fingerprint,
        num_rows=catalog.num_rows,
        num_identities=catalog.identities.num_identities,
        num_singletons=int((sizes_I == 1).sum()),
        max_identity_rows=int(sizes_I.max()),
        num_files=len(catalog.files),
        num_bytes=(out / PAYLOAD).stat().st_size,
    )


def _write_payload(
    source: Source,
    catalog: Catalog,
    path: Path,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[str, ...]:
    """Write the payload of all files; return the digest of each file's."""
    done, digests = 0, [PayloadDigest(source.payload_schema) for _ in source.files]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, source.payload_schema) as writer:
        for batch in _rebatch(_payload_batches(source, catalog, digests)):
            writer.write_batch(batch)
            done += batch.num_rows
            if on_progress is not None:
                on_progress(done, catalog.num_rows)
    _sync(path)
    return tuple(digest.sha256() for digest in digests)


def _payload_batches(
    source: Source, catalog: Catalog, digests: list[PayloadDigest]
) -> Iterator[pa.RecordBatch]:
    for file, scanned, digest in zip(source.files, catalog.files, digests, strict=True):
        num_rows = 0
        for batch in _file_batches(file, source):
            num_rows += batch.num_rows
            digest.update(batch)
            yield batch
        if num_rows != scanned.num_rows:
            raise DatasetError(
                f"file {file.path} changed while it was ingested: {scanned.num_rows} rows were "
                f"scanned, {num_rows} read; ingest again when nobody writes to the dataset"
            )


def _file_batches(file: SourceFile, source: Source) -> Iterator[pa.RecordBatch]:
    schema = source.payload_schema
    with reading(file):
        batches = file.fragment.to_batches(
            columns=schema.names,
            filter=source.row_filter.expression if source.row_filter else None,
            batch_size=READ_ROWS,
            batch_readahead=4,
        )
        for batch in batches:
            columns = [batch[field.name].cast(field.type) for field in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _rebatch(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    held: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        is_full = num_rows + batch.num_rows > MAX_BATCH_ROWS
        if held and (is_full or num_bytes + batch.nbytes > MAX_BATCH_BYTES):
            yield pa.concat_batches(held)
            held, num_rows, num_bytes = [], 0, 0
        held.append(batch)
        num_rows += batch.num_rows
        num_bytes += batch.nbytes
    if held:
        yield pa.concat_batches(held)


def _write_catalog(catalog: Catalog, payload_sha256s: tuple[str, ...], folder: Path) -> None:
    samples = {"sample_id": catalog.sample_ids, "identity_id": catalog.identities.identity_ids_N}
    for name, columns in (
        (SAMPLES, samples),
        (IDENTITIES, {"identity_name": catalog.identity_names}),
    ):
        table = pa.table(columns)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as to:
            to.write_table(table)
        _sync(folder / name)
    manifest = StoreManifest(
        fingerprint=catalog.fingerprint,
        num_rows=catalog.num_rows,
        num_identities=catalog.identities.num_identities,
        dataset_files=catalog.files,
        payload_sha256s=payload_sha256s,
        stored_files={
            name: StoredFile(
                num_bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name)
            )
            for name in (PAYLOAD, SAMPLES, IDENTITIES)
        },
    )
    (folder / MANIFEST).write_text(manifest_text(manifest))
    _sync(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    """Make a file, or a folder's list of names, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
