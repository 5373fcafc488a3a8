"""The row store on a machine that does not see the driver's: made from the dataset, once."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from miner.data import DatasetConfig, ingest
from miner.data.row_store import MANIFEST
from miner.errors import DatasetError

__all__ = ["has_row_store", "make_row_store"]


def has_row_store(path: Path) -> bool:
    """Whether this machine sees one there, of whichever dataset."""
    return (path / MANIFEST).exists()


def make_row_store(dataset: DatasetConfig, path: Path) -> None:
    """Ingest the dataset unless its row store is there; one process of a machine does it for all.

    Raises:
        DatasetError: As `ingest`.
    """
    if has_row_store(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as exc:
        raise DatasetError(f"row store {path} cannot be written: {exc}") from exc
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not has_row_store(path):
            ingest(dataset, path)
    finally:
        os.close(file)
