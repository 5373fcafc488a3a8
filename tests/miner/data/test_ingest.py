"""Ingestion: whole or not at all, once for each dataset."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from miner.data import DatasetConfig, RowStore, ingest
from miner.data.catalog import Catalog, catalog_of
from miner.data.source import Source
from miner.errors import DatasetError

WriteFile = Callable[..., Path]
Configure = Callable[..., DatasetConfig]
INGEST = importlib.import_module("miner.data.ingest")  # its function hides it in miner.data


@pytest.fixture
def dataset(write_file: WriteFile, configure: Configure) -> DatasetConfig:
    write_file("a.parquet", list("abcd"), list("xxyz"), use=[1, 1, 1, 0])
    write_file("b.arrow", list("efghi"), list("xyywv"), use=[1, 0, 1, 1, None])
    return configure()


def stored(path: Path) -> list[bytes]:
    store = RowStore.open(path)
    images: list[bytes] = store.read(np.arange(store.num_rows))["image"].to_pylist()
    return images


def test_the_report_counts_what_is_stored(dataset: DatasetConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = ingest(
        dataset, tmp_path / "deep" / "store", on_progress=lambda *call: seen.append(call)
    )
    assert report.path == tmp_path / "deep" / "store"
    assert not report.reused
    assert (report.num_rows, report.num_files) == (9, 2)
    assert (report.num_identities, report.num_singletons, report.max_identity_rows) == (5, 3, 3)
    assert report.num_bytes == (report.path / "payload.arrow").stat().st_size
    assert seen[-1] == (9, 9)
    assert stored(report.path) == [f"pixels of {one}".encode() for one in "abcdefghi"]
    assert {path.name for path in report.path.parent.iterdir()} == {"store"}


def test_the_payload_is_filtered_as_the_catalog_is(dataset: DatasetConfig, tmp_path: Path) -> None:
    config = dataset.model_copy(update={"filter": "use == 1"})
    report = ingest(config, tmp_path / "store")
    assert stored(report.path) == [f"pixels of {one}".encode() for one in "abcegh"]
    assert RowStore.open(report.path).catalog.sample_ids.to_pylist() == list("abcegh")


def test_large_payloads_are_cut_into_batches_of_bounded_bytes(
    write_file: WriteFile,
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(INGEST, "READ_ROWS", 1)
    monkeypatch.setattr(INGEST, "MAX_BATCH_BYTES", 2500)
    images = [bytes([i]) * size for i, size in enumerate([1000, 1000, 1000, 9000, 10, 10])]
    write_file("a.parquet", list("abcdef"), list("xxyyzz"), image=images)
    path = ingest(configure(), tmp_path / "store").path
    reader = pa.ipc.open_file(path / "payload.arrow")
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert sizes == [2, 1, 1, 2]
    assert stored(path) == images


def test_a_store_of_the_same_dataset_is_reused_untouched(
    dataset: DatasetConfig, tmp_path: Path
) -> None:
    first = ingest(dataset, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    again = ingest(dataset, tmp_path / "store")
    assert again.reused
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == before
    assert (again.fingerprint, again.num_bytes) == (first.fingerprint, first.num_bytes)


def test_a_store_of_another_dataset_is_kept_and_refused(
    dataset: DatasetConfig, write_file: WriteFile, tmp_path: Path
) -> None:
    path = ingest(dataset, tmp_path / "store").path
    write_file("c.parquet", ["j"], ["x"])
    with pytest.raises(DatasetError, match=r"holds another dataset .* 9 rows\).*, 10 rows\)"):
        ingest(dataset, tmp_path / "store")
    assert len(stored(path)) == 9


def test_a_damaged_store_is_not_reused(dataset: DatasetConfig, tmp_path: Path) -> None:
    path = ingest(dataset, tmp_path / "store").path
    (path / "samples.arrow").unlink()
    with pytest.raises(DatasetError, match=r"damaged: samples\.arrow"):
        ingest(dataset, path)


def test_an_empty_folder_is_filled_and_one_with_other_content_refused(
    dataset: DatasetConfig, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert not ingest(dataset, tmp_path / "empty").reused
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("do not lose this")
    for place in (tmp_path / "full", tmp_path / "full" / "thesis.tex"):
        with pytest.raises(DatasetError, match=r"cannot be written there.*new or empty"):
            ingest(dataset, place)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "do not lose this"


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_store_within_the_dataset_is_refused(
    dataset: DatasetConfig, folder: Path, as_uri: bool
) -> None:
    config = dataset.model_copy(update={"uri": folder.as_uri()}) if as_uri else dataset
    with pytest.raises(DatasetError, match="lies within the dataset"):
        ingest(config, folder / "store")
    assert not (folder / "store").exists()


def test_a_failing_disk_leaves_nothing_behind(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(INGEST, "_write_catalog", full)
    with pytest.raises(DatasetError, match="No space left on device; choose a folder"):
        ingest(dataset, tmp_path / "work" / "store")
    assert list((tmp_path / "work").iterdir()) == []


def test_damage_that_only_the_payload_shows_names_the_file(
    dataset: DatasetConfig, folder: Path, tmp_path: Path
) -> None:
    data = (folder / "a.parquet").read_bytes()
    hole = data.index(b"pixels of a")
    (folder / "a.parquet").write_bytes(data[: hole - 20] + b"\xff" * 40 + data[hole + 20 :])
    with pytest.raises(DatasetError, match=r"file .*a\.parquet cannot be read"):
        ingest(dataset, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_file_that_changes_meanwhile_is_refused(
    dataset: DatasetConfig,
    write_file: WriteFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scan_then_change(source: Source, config: DatasetConfig) -> Catalog:
        catalog = catalog_of(source, config)
        write_file("b.arrow", list("ef"), list("xy"), use=[1, 1])
        return catalog

    monkeypatch.setattr(INGEST, "catalog_of", scan_then_change)
    with pytest.raises(DatasetError, match=r"b\.arrow (changed while|cannot be read)"):
        ingest(dataset, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_of_two_writers_the_later_one_finds_the_store_of_the_first(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(source: Source, config: DatasetConfig) -> Catalog:
        monkeypatch.undo()
        ingest(dataset, tmp_path / "store")
        (tmp_path / "store").rename(tmp_path / "first")
        return catalog_of(source, config)

    def arrive(done: int, total: int) -> None:
        (tmp_path / "first").rename(tmp_path / "store")

    monkeypatch.setattr(INGEST, "catalog_of", meanwhile)
    report = ingest(dataset, tmp_path / "store", on_progress=arrive)
    assert report.reused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "store"]


def test_a_killed_ingestion_leaves_no_store_and_the_next_one_works(
    dataset: DatasetConfig, tmp_path: Path
) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from miner.data import *;"
        "ingest(DatasetConfig(uri=sys.argv[1]), Path(sys.argv[2]),"
        " on_progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    command = [sys.executable, "-c", script, dataset.uri, str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    assert any(path.name.startswith("store.partial-") for path in tmp_path.iterdir())
    ingest(dataset, tmp_path / "store")
    assert len(stored(tmp_path / "store")) == 9
