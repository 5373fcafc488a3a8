"""Datasets on a real S3 API behave as on a disk."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.data import DatasetConfig, RowStore, ingest
from miner.data.catalog import Catalog, catalog_of
from miner.data.source import Source
from miner.errors import DatasetError
from tests.s3_server import S3Server, s3_server

INGEST = importlib.import_module("miner.data.ingest")  # its function hides it in miner.data
IDS = [f"s{number}" for number in range(9)]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    yield server.bucket()
    server.refuses = lambda method, path: False
    server.before = lambda method, path: None


def write(server: S3Server, bucket: str, name: str, ids: list[str], **columns: Any) -> bytes:
    image = columns.pop("image", [f"pixels of {one}".encode() for one in ids])
    identity = [number // 2 for number in range(len(ids))]
    table = pa.table({"sample_id": ids, "identity": identity, "image": image, **columns})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=3)
    server.write(bucket, f"faces/{name}", file.getvalue())
    return file.getvalue()


def configured(server: S3Server, bucket: str, **changes: Any) -> DatasetConfig:
    return DatasetConfig(**{"uri": server.uri(f"{bucket}/faces"), **changes})


def test_a_folder_of_a_bucket_is_the_dataset_that_it_is_on_a_disk(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    for name, ids in (("b.parquet", IDS[:5]), ("a/c.parquet", IDS[5:]), ("_hidden.parquet", [])):
        content = write(server, bucket, name, ids, split=["train"] * len(ids))
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    server.write(bucket, "faces/notes.txt", b"no data")
    remote = configured(server, bucket, filter='split == "train"')
    local = remote.model_copy(update={"uri": str(tmp_path / "faces")})
    reports = [ingest(remote, tmp_path / "remote"), ingest(local, tmp_path / "local")]
    assert reports[0].fingerprint == reports[1].fingerprint
    stores = [RowStore.open(tmp_path / name) for name in ("remote", "local")]
    assert stores[0].manifest.payload_sha256s == stores[1].manifest.payload_sha256s
    assert stores[0].catalog.sample_ids.to_pylist() == IDS[5:] + IDS[:5]
    assert stores[0].read([0])["image"].to_pylist() == [b"pixels of s5"]
    assert ingest(remote, tmp_path / "remote").reused


def test_a_single_object_and_the_environment_will_do(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(server, bucket, "all.parquet", IDS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    config = DatasetConfig(uri=f"s3://{bucket}/faces/all.parquet")
    assert ingest(config, tmp_path / "store").num_rows == 9


def test_added_and_changed_objects_make_another_dataset_that_shares_equal_files(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    config = configured(server, bucket)
    write(server, bucket, "b.parquet", IDS[:4])
    write(server, bucket, "c.parquet", IDS[4:])
    ingest(config, tmp_path / "1")
    write(server, bucket, "a.parquet", ["new-1", "new-2"])
    write(server, bucket, "c.parquet", IDS[4:], image=[b"other pixels" for _ in IDS[4:]])
    with pytest.raises(DatasetError, match="holds another dataset"):
        ingest(config, tmp_path / "1")
    ingest(config, tmp_path / "2")
    first, second = (RowStore.open(tmp_path / name).manifest for name in ("1", "2"))
    assert first.fingerprint != second.fingerprint
    assert second.payload_sha256s[1] == first.payload_sha256s[0]
    assert set(second.payload_sha256s) & set(first.payload_sha256s) == {first.payload_sha256s[0]}


def test_an_object_that_changes_while_it_is_ingested_is_refused(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(server, bucket, "a.parquet", IDS)

    def scan_then_change(source: Source, config: DatasetConfig) -> Catalog:
        catalog = catalog_of(source, config)
        write(server, bucket, "a.parquet", IDS[:2])
        return catalog

    monkeypatch.setattr(INGEST, "catalog_of", scan_then_change)
    with pytest.raises(DatasetError, match=r"faces/a\.parquet"):
        ingest(configured(server, bucket), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_truncated_object_names_itself(server: S3Server, bucket: str, tmp_path: Path) -> None:
    content = write(server, bucket, "a.parquet", IDS)
    server.write(bucket, "faces/a.parquet", content[:-20])
    with pytest.raises(DatasetError, match=r"faces/a\.parquet .*may be truncated"):
        ingest(configured(server, bucket), tmp_path / "store")


def test_what_is_not_there_is_named_with_its_field(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    for place in ("no-such-bucket/faces", f"{bucket}/nothing"):
        config = DatasetConfig(uri=server.uri(f"k3y:s3cret@{place}"))
        with pytest.raises(DatasetError, match=rf"s3://{place} does not exist.*dataset\.uri") as no:
            ingest(config, tmp_path / "store")
        assert "s3cret" not in str(no.value)


@pytest.mark.parametrize("part", ["list-type", "a.parquet"])
def test_denied_access_is_no_damage(
    server: S3Server, bucket: str, tmp_path: Path, part: str
) -> None:
    write(server, bucket, "a.parquet", IDS)
    is_object = part == "a.parquet"
    server.refuses = lambda how, path: bucket in path and ("a.parquet" in path) == is_object
    with pytest.raises(DatasetError, match="ACCESS_DENIED") as denied:
        ingest(configured(server, bucket), tmp_path / "store")
    assert "truncated" not in str(denied.value)
    assert ("faces/a.parquet" if is_object else f"s3://{bucket}/faces") in str(denied.value)
    assert ("its store" if is_object else "dataset.uri") in str(denied.value)


def test_a_store_that_goes_away_is_an_error_and_leaves_nothing(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    write(server, bucket, "a.parquet", IDS)
    write(server, bucket, "b.parquet", ["b-1", "b-2"])
    config = configured(server, bucket)
    server.stop()
    try:
        with pytest.raises(DatasetError, match=r"s3://bucket-.*cannot be listed.*dataset\.uri"):
            ingest(config, tmp_path / "store")
    finally:
        server.start()
    assert ingest(config, tmp_path / "store").num_rows == 11


def test_malformed_uris_show_no_secret(tmp_path: Path) -> None:
    for uri in ("ftp://k3y:s3cret@host/x", "s3://k3y:s3cret@b/x?nope=s3cret"):
        with pytest.raises(DatasetError, match=r"dataset\.uri") as refused:
            ingest(DatasetConfig(uri=uri), tmp_path / "store")
        assert "s3cret" not in str(refused.value)
