"""A machine that has no row store makes it once, whoever needs it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from miner.data import DatasetConfig, RowStore, ingest
from miner.errors import DatasetError
from miner.workers import row_store_here
from miner.workers.row_store_here import has_row_store, make_row_store


def test_of_many_that_need_it_at_once_one_makes_it(
    workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = DatasetConfig(uri=str(workshop.root / "data.parquet"), payload_columns=("vector",))
    path, made, all_there = tmp_path / "new" / "store", [], threading.Barrier(3)

    def counted(config: DatasetConfig, out: Path) -> object:
        made.append(out)
        return ingest(config, out)

    def need_it(_: int) -> str:
        all_there.wait(30)
        make_row_store(dataset, path)
        return RowStore.open(path).fingerprint

    monkeypatch.setattr(row_store_here, "ingest", counted)
    assert not has_row_store(path)
    with ThreadPoolExecutor(3) as threads:
        fingerprints = set(threads.map(need_it, range(3)))
    assert fingerprints == {RowStore.open(workshop.store).fingerprint}
    assert made == [path]
    make_row_store(dataset.model_copy(update={"uri": "/nowhere"}), path)


def test_a_place_that_cannot_be_written_is_an_error(workshop: Any, tmp_path: Path) -> None:
    dataset = DatasetConfig(uri=str(workshop.root / "data.parquet"), payload_columns=("vector",))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetError, match="file/store cannot be written"):
        make_row_store(dataset, tmp_path / "file" / "store")
