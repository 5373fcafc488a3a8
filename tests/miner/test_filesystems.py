"""What a store that is away costs, and what its errors show."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from miner import filesystems
from miner.filesystems import open_filesystem, reason_of, shown
from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def test_a_silent_store_is_an_error_after_the_attempts_that_are_set(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections and never answers: the SDK's own patience is 99 s."""
    monkeypatch.setattr(filesystems, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setattr(filesystems, "MAX_ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        system, path = open_filesystem(f"s3://b/x?scheme=http&endpoint_override=127.0.0.1:{port}")
        begin_s = time.monotonic()
        with pytest.raises(OSError, match="Timeout was reached"):
            system.get_file_info(path)
        assert 2 <= time.monotonic() - begin_s < 10


def test_the_environment_names_endpoint_and_region(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = server.bucket()
    server.write(bucket, "x/a", b"content")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    system, path = open_filesystem(f"s3://{bucket}/x")
    assert path == f"{bucket}/x"
    assert system.open_input_file(f"{path}/a").read() == b"content"


def test_a_small_object_is_put_by_one_request(server: S3Server) -> None:
    bucket = server.bucket()
    system, path = open_filesystem(server.uri(f"{bucket}/x"))
    server.asked.clear()
    with system.open_output_stream(f"{path}/a") as stream:
        stream.write(b"content")
    assert [(how, path) for how, path in server.asked if how != "GET"] == [
        ("PUT", f"/{bucket}/x/a")
    ]


def test_local_uris_are_opened_as_they_are(tmp_path: Path) -> None:
    system, path = open_filesystem(f"file://{tmp_path}")
    assert (system.type_name, path) == ("local", str(tmp_path))


def test_no_secret_of_a_uri_is_shown() -> None:
    uri = "s3://key:secret@bucket/x?endpoint_override=secret"
    assert shown(uri) == "s3://bucket/x"
    assert reason_of(ValueError(f"Cannot parse\n{uri}!"), uri) == "Cannot parse s3://bucket/x!"
