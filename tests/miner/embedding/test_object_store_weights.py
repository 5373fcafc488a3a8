"""Announced weights on a real S3 API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from miner.embedding.config import EncoderConfig
from miner.embedding.fetch import fetch_weights
from miner.errors import WeightsRefusedError
from tests.s3_server import S3Server, s3_server

WEIGHTS = b"weights" * 1000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Iterator[str]:
    bucket = server.bucket()
    for name in ("runs/7/w", "runs-of-others/w", "secret"):
        server.write(bucket, name, WEIGHTS)
    yield bucket
    server.refuses = lambda method, path: False


def allowing(server: S3Server, place: str, **changes: int) -> EncoderConfig:
    return EncoderConfig(weights_prefixes=(server.uri(place),), **changes)


def test_weights_below_an_allowed_prefix_are_fetched(server: S3Server, bucket: str) -> None:
    for prefix in (f"{bucket}/runs", f"{bucket}/runs/", bucket):
        config = allowing(server, prefix)
        assert fetch_weights(f"s3://{bucket}/runs/7/w", SHA256, config) == WEIGHTS


def test_a_prefix_may_hold_credentials_and_an_announcement_may_not(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    config = allowing(server, f"k3y:s3cret@{bucket}/runs")
    assert fetch_weights(f"s3://{bucket}/runs/7/w", SHA256, config) == WEIGHTS
    for uri in (f"s3://k3y:s3cret@{bucket}/runs/7/w", f"s3://{bucket}/runs-of-others/w"):
        with pytest.raises(WeightsRefusedError, match="weights_prefixes allows") as refused:
            fetch_weights(uri, SHA256, config)
        assert "s3cret" not in str(refused.value)


def test_the_environment_may_name_the_store(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    config = EncoderConfig(weights_prefixes=(f"s3://{bucket}/runs",))
    assert fetch_weights(f"s3://{bucket}/runs/7/w", SHA256, config) == WEIGHTS


def test_other_prefixes_and_detours_are_refused_without_a_request(
    server: S3Server, bucket: str
) -> None:
    config = allowing(server, f"{bucket}/runs")
    server.asked.clear()
    for uri in (
        f"s3://{bucket}/secret",
        f"s3://{bucket}/runs-of-others/w",
        f"s3://{bucket}/runs/../secret",
        f"s3://{bucket}/runs/./7/w",
        f"s3://{bucket}/runs/%2e%2e/secret",
        f"s3://{bucket}/runs/7/w?endpoint_override=elsewhere",
        f"s3://{bucket}/runs/7/w#x",
        f"s3://key:secret@{bucket}/runs/7/w",
        f"s3a://{bucket}/runs/7/w",
        f"gs://{bucket}/runs/7/w",
        f"S3://{bucket}/runs/7/w",
        f"s3://{bucket}/runs",
        f"/{bucket}/runs/7/w",
    ):
        with pytest.raises(WeightsRefusedError) as refused:
            fetch_weights(uri, SHA256, config)
        assert refused.value.kind == "location", uri
    assert server.asked == []


def test_other_bytes_and_too_many_are_refused(server: S3Server, bucket: str) -> None:
    uri = f"s3://{bucket}/runs/7/w"
    with pytest.raises(WeightsRefusedError, match="announced was") as refused:
        fetch_weights(uri, "0" * 64, allowing(server, f"{bucket}/runs"))
    assert refused.value.kind == "digest"
    server.asked.clear()
    with pytest.raises(WeightsRefusedError, match=r"7000 bytes, above the 6999 .*max_weights_byt"):
        fetch_weights(uri, SHA256, allowing(server, f"{bucket}/runs", max_weights_bytes=6999))
    assert not server.count("GET", "/7/w"), "its size was enough"


@pytest.mark.parametrize("name", ["gone", "7", "7/"])
def test_what_is_not_an_object_is_refused(server: S3Server, bucket: str, name: str) -> None:
    with pytest.raises(WeightsRefusedError, match=rf"s3://{bucket}/runs/{name}.* be read") as no:
        fetch_weights(f"s3://{bucket}/runs/{name}", SHA256, allowing(server, f"{bucket}/runs"))
    assert no.value.kind == "unreadable"


def test_a_bucket_that_is_missing_denied_or_away_is_told_with_place_and_field(
    server: S3Server, bucket: str
) -> None:
    field = r"encoder\.weights_prefixes"
    missing = allowing(server, "no-such-bucket")
    with pytest.raises(WeightsRefusedError, match=rf"s3://no-such-bucket/w .*{field}"):
        fetch_weights("s3://no-such-bucket/w", SHA256, missing)
    config, uri = allowing(server, f"{bucket}/runs"), f"s3://{bucket}/runs/7/w"
    server.refuses = lambda how, path: bucket in path
    with pytest.raises(
        WeightsRefusedError, match=rf"s3://{bucket}/runs/7/w .*ACCESS_DENIED.*{field}"
    ):
        fetch_weights(uri, SHA256, config)
    server.refuses = lambda how, path: False
    server.stop()
    try:
        with pytest.raises(WeightsRefusedError, match=rf"/runs/7/w .*Could not connect.*{field}"):
            fetch_weights(uri, SHA256, config)
    finally:
        server.start()
    assert fetch_weights(uri, SHA256, config) == WEIGHTS
