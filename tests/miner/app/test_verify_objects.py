"""`coalface-miner verify --snapshots URI`, as an operator types it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from miner.cli.main import app
from miner.workers.snapshot import ObjectSnapshots, SnapshotKey
from tests.miner.app.state_folder import make_state
from tests.s3_server import S3Server, s3_server

KEY = SnapshotKey("w", "p", "d", num_rows=50, chunk_rows=16)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def test_the_command_checks_an_object_store(server: S3Server, tmp_path: Path) -> None:
    state, store = make_state(tmp_path / "state")
    bucket = server.bucket()
    uri = server.uri(f"k3y:s3cret@{bucket}/snapshots")
    snapshots = ObjectSnapshots(uri, tmp_path / "cache")
    for chunk in (0, 1, 3):  # the third is still to come
        begin, end = KEY.rows_of(chunk)
        snapshots.write_chunk(KEY, chunk, np.ones((end - begin, 3), np.float32))

    def verify(*options: str) -> tuple[int, str]:
        command = ["verify", str(state), "--store", str(store), "--snapshots", uri, *options]
        result = CliRunner().invoke(app, command)
        assert "s3cret" not in result.output
        return result.exit_code, result.output

    server.asked.clear()
    code, text = verify()
    assert (code, "1 snapshot," in text) == (0, True), text
    assert {how for how, _ in server.asked} <= {"GET", "HEAD"}, "it reads only"
    assert not (state / "snapshots-cache").exists()

    (name,) = (n for n in server.names(bucket) if "00000001-" in n)
    content = server.read(bucket, name)
    server.write(bucket, name, bytes([content[0] ^ 1]) + content[1:])
    code, text = verify()
    assert code == 1
    assert f"s3://{bucket}/snapshots/{KEY.digest}/chunk-00000001.json does not match" in text
    assert "rows 16 to 31" in text
    assert verify("--quick")[0] == 0
    server.write(bucket, name, content[1:])
    code, text = verify("--quick")
    assert (code, "is for rows not there" in text) == (1, True), text

    server.write(bucket, f"snapshots/{KEY.digest}/KEY.json", b"{}")
    assert "KEY.json is not as it was written" in verify()[1]
    server.stop()
    try:
        code, text = verify()
    finally:
        server.start()
    assert (code, f"s3://{bucket}/snapshots cannot be listed" in text) == (1, True), text


def test_a_uri_that_cannot_be_understood_is_told(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "state")
    result = CliRunner().invoke(app, ["verify", str(state), "--snapshots", "ftp://k:s3cret@h/x"])
    assert result.exit_code != 0
    text = result.output + str(result.exception)
    assert "snapshots_dir ftp://h/x cannot be opened" in text
    assert "s3cret" not in text
