"""Small datasets on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.data import DatasetConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The dataset's folder, empty."""
    (tmp_path / "dataset").mkdir()
    return tmp_path / "dataset"


@pytest.fixture
def write_file(folder: Path) -> Callable[..., Path]:
    """Write one file of the dataset; columns not given are made up of the number of ids."""

    def write(name: str, ids: Any, identities: Any, **columns: Any) -> Path:
        image = columns.pop("image", [f"pixels of {one}".encode() for one in ids])
        table = pa.table({"sample_id": ids, "identity": identities, "image": image, **columns})
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(table, path, row_group_size=3)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
        return path

    return write


@pytest.fixture
def configure(folder: Path) -> Callable[..., DatasetConfig]:
    """A configuration of the dataset's folder."""

    def make(**changes: Any) -> DatasetConfig:
        return DatasetConfig(**{"uri": str(folder), **changes})

    return make
