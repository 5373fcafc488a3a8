"""What changes while the server lives, the limits of a client, and what is never told or logged."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from miner.errors import ConfigError
from miner.serving import gate, watched
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.miner.serving.credential_files import (
    NAMES,
    TOKENS,
    Authority,
    bearer,
    outcome,
    tls_channel,
    tls_settings,
    token_entry,
    write_tokens,
)
from tests.trainer.feed.served_miner import ServerThread, channel_to, make_folder

OK = grpc.StatusCode.OK
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
STATUS = "/coalface.v1.MiningService/GetStatus"
READER = bearer(TOKENS["read"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("log"))


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(gate, "ASK_AGAIN_S", 0.2)


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.yaml")


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., ServerThread]]:
    started: list[ServerThread] = []

    def start_one(**settings: Any) -> ServerThread:
        started.append(ServerThread(folder, **settings))
        return started[-1]

    yield start_one
    for miner in started:
        miner.stop()


def stream_of(stub: Any, run_id: str, metadata: Any = READER, **values: Any) -> Any:
    """A stream that has begun; its client then reads no more."""
    stub.OpenRun(mining_pb2.OpenRunRequest(run_id=run_id, batch_rows=24), metadata=metadata)
    request = mining_pb2.StreamTripletsRequest(
        run_id=run_id, **{"num_steps": 4096, "world_size": 1, "with_payload": True, **values}
    )
    stream = stub.StreamTriplets(request, metadata=metadata, timeout=30)
    next(stream)
    return stream


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    failed: Any = raised.value
    code: grpc.StatusCode = failed.code()
    return code


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_tokens_are_taken_up_and_withdrawn_while_the_server_lives(
    start: Callable[..., ServerThread], tokens_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    miner = start(tokens_file=tokens_file)
    with channel_to(miner.address) as channel:
        assert outcome(channel, STATUS, bearer("newcomer"))[0] is UNAUTHENTICATED
        write_tokens(tokens_file, token_entry("new", "read", "newcomer"))
        assert outcome(channel, STATUS, bearer("newcomer"))[0] is OK
        tokens_file.write_text("- {name: half")
        assert outcome(channel, STATUS, bearer("newcomer"))[0] is OK
        assert "the old content stays" in caplog.text
        tokens_file.unlink()
        assert outcome(channel, STATUS, bearer("newcomer"))[0] is OK
        write_tokens(tokens_file)
        assert outcome(channel, STATUS, bearer("newcomer"))[0] is UNAUTHENTICATED
        assert outcome(channel, STATUS, READER)[0] is OK
        tokens_file.write_text("[]")
        assert outcome(channel, STATUS, READER)[0] is UNAUTHENTICATED, "a list of nobody"


def test_streams_end_soon_after_their_token_was_withdrawn(
    start: Callable[..., ServerThread], tokens_file: Path
) -> None:
    write_tokens(tokens_file, token_entry("leaver", "read", "leaving"))
    miner = start(tokens_file=tokens_file)
    with channel_to(miner.address) as channel, channel_to(miner.address) as other:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        stalled = stream_of(mining_pb2_grpc.MiningServiceStub(other), "s", bearer("leaving"))
        watches = [
            stub.WatchStatus(mining_pb2.WatchStatusRequest(), metadata=metadata, timeout=30)
            for metadata in (READER, bearer("leaving"))
        ]
        for watch in watches:
            next(watch)
        write_tokens(tokens_file)
        assert code_of(watches[1]) is UNAUTHENTICATED
        drain = stub.Drain(mining_pb2.DrainRequest(), metadata=bearer(TOKENS["admin"]))
        assert drain.num_streams == 0, "also one whose client reads nothing"
        assert code_of(stalled) is UNAUTHENTICATED
        assert watches[0].is_active()
        watches[0].cancel()


def test_an_upload_ends_soon_after_its_token_was_withdrawn(
    start: Callable[..., ServerThread], tokens_file: Path
) -> None:
    write_tokens(tokens_file, token_entry("leaver", "write", "leaving"))
    miner = start(tokens_file=tokens_file)
    stopped = threading.Event()

    def messages() -> Iterator[Any]:
        yield mining_pb2.UploadWeightsRequest(
            header=mining_pb2.UploadHeader(step=1, sha256="0" * 64, total_bytes=10), content=b"x"
        )
        write_tokens(tokens_file)
        stopped.wait(10)

    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.UploadWeights(messages(), metadata=bearer("leaving"), timeout=9)
        stopped.set()
    failed: Any = raised.value
    assert failed.code() is UNAUTHENTICATED
    assert not [*miner.backend.uploads_folder.glob("*")]


def test_a_request_whose_message_does_not_come_is_ended(
    start: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MESSAGE_S", 0.2)
    miner, stopped = start(), threading.Event()

    def nothing() -> Iterator[bytes]:
        stopped.wait(10)
        yield b""

    with channel_to(miner.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.stream_unary(STATUS)(nothing(), timeout=9)
        stopped.set()
    failed: Any = raised.value
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_renewed_certificate_is_shown_to_new_connections_and_a_broken_one_never(
    start: Callable[..., ServerThread],
    tmp_path: Path,
    tokens_file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old_ca, new_ca = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    shown, renewed = old_ca.server(), new_ca.server()
    miner = start(tls=tls_settings(shown), tokens_file=tokens_file)

    def code(ca: Authority) -> grpc.StatusCode:
        with tls_channel(miner.address, ca) as channel:
            found: grpc.StatusCode = outcome(channel, STATUS, READER)[0]
            return found

    with tls_channel(miner.address, old_ca) as channel:
        assert outcome(channel, STATUS, READER)[0] is OK
        shown.certificate.write_bytes(renewed.certificate.read_bytes())
        assert code(old_ca) is OK, "the key is still the old one"
        assert "the old content stays" in caplog.text
        shown.key.write_bytes(renewed.key.read_bytes()[:50])
        assert code(old_ca) is OK
        shown.key.write_bytes(renewed.key.read_bytes())
        assert code(new_ca) is OK
        assert code(old_ca) is grpc.StatusCode.UNAVAILABLE
        assert outcome(channel, STATUS, READER)[0] is OK, "this connection goes on"
    assert "PRIVATE KEY" not in caplog.text


def test_the_ca_of_clients_can_be_exchanged(
    start: Callable[..., ServerThread], tmp_path: Path
) -> None:
    ca, old, new = (Authority(tmp_path / name) for name in ("ca", "old", "new"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(old.file.read_bytes())
    miner = start(tls=tls_settings(ca.server(), trusted))

    def code(authority: Authority) -> grpc.StatusCode:
        with tls_channel(miner.address, ca, authority.issue("trainer")) as channel:
            found: grpc.StatusCode = outcome(channel, STATUS)[0]
            return found

    assert (code(old), code(new)) == (OK, grpc.StatusCode.UNAVAILABLE)
    trusted.write_bytes(old.file.read_bytes() + new.file.read_bytes())
    assert (code(old), code(new)) == (OK, OK)
    trusted.write_bytes(new.file.read_bytes())
    assert (code(old), code(new)) == (grpc.StatusCode.UNAVAILABLE, OK)


def test_a_server_with_wrong_files_does_not_start(folder: Path, tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    pair, other = ca.server(), ca.server()
    pair.key.write_bytes(other.key.read_bytes())
    tokens = write_tokens(tmp_path / "t.yaml")
    with pytest.raises(ConfigError, match=pair.key.name):
        ServerThread(folder, tls=tls_settings(pair), tokens_file=tokens)
    with pytest.raises(ConfigError, match="nowhere"):
        ServerThread(folder, tls=tls_settings(other), tokens_file=tmp_path / "nowhere")


def test_a_taken_port_is_named_under_tls_too(
    start: Callable[..., ServerThread], tmp_path: Path, tokens_file: Path
) -> None:
    tls = tls_settings(Authority(tmp_path).server())
    taken = start(tls=tls, tokens_file=tokens_file).server.port
    with pytest.raises(ConfigError, match=str(taken)):
        start(tls=tls, tokens_file=tokens_file, port=taken)


def test_streams_are_counted_by_token_and_not_by_address(
    start: Callable[..., ServerThread], tokens_file: Path
) -> None:
    miner = start(tokens_file=tokens_file, max_streams_per_client=2)
    with channel_to(miner.address) as one, channel_to(miner.address) as other:
        stub, beside = (mining_pb2_grpc.MiningServiceStub(each) for each in (one, other))
        streams = [stream_of(stub, "a"), stream_of(beside, "a")]
        request = mining_pb2.StreamTripletsRequest(run_id="a", num_steps=1, world_size=1)
        refused = beside.StreamTriplets(request, metadata=READER, timeout=10)
        assert code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details().startswith(f"{NAMES['read']} has 2 streams open")
        streams.append(stream_of(stub, "b", bearer(TOKENS["write"])))
        for stream in streams:
            stream.cancel()


def test_streams_are_counted_by_certificate(
    start: Callable[..., ServerThread], tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    miner = start(tls=tls_settings(ca.server(), ca.file), max_streams_per_client=1)
    first, second = ca.issue("trainer-1"), ca.issue("trainer-2")
    with (
        tls_channel(miner.address, ca, first) as one,
        tls_channel(miner.address, ca, second) as other,
    ):
        stub, beside = (mining_pb2_grpc.MiningServiceStub(each) for each in (one, other))
        streams = [stream_of(stub, "c", ()), stream_of(beside, "c", ())]
        refused = stub.StreamTriplets(
            mining_pb2.StreamTripletsRequest(run_id="c", num_steps=1, world_size=1), timeout=10
        )
        assert code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details().startswith("trainer-1 has 1 streams open")
        for stream in streams:
            stream.cancel()


def test_every_rpc_that_streams_is_counted_by_client(
    start: Callable[..., ServerThread], tokens_file: Path
) -> None:
    miner = start(tokens_file=tokens_file, max_streams_per_client=1)
    stopped = threading.Event()

    def slowly() -> Iterator[Any]:
        header = mining_pb2.UploadHeader(step=1, sha256="0" * 64, total_bytes=10)
        yield mining_pb2.UploadWeightsRequest(header=header, content=b"x")
        stopped.wait(10)

    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        writer, asked = bearer(TOKENS["write"]), mining_pb2.WatchStatusRequest()
        anybody = [health.Watch(health_pb2.HealthCheckRequest(), timeout=30)]
        watches = [stub.WatchStatus(asked, metadata=READER, timeout=30)]
        next(watches[0]), next(anybody[0])
        upload = stub.UploadWeights.future(slowly(), metadata=writer, timeout=30)
        assert code_of(stub.WatchStatus(asked, metadata=READER, timeout=10)) is EXHAUSTED
        assert code_of(health.Watch(health_pb2.HealthCheckRequest(), timeout=10)) is EXHAUSTED
        watches.append(stub.WatchStatus(asked, metadata=writer, timeout=30))
        next(watches[1])
        until(lambda: [*miner.backend.uploads_folder.glob(".upload-*")] != [])
        with pytest.raises(grpc.RpcError) as raised:
            stub.UploadWeights(slowly(), metadata=writer, timeout=10)
        busy: Any = raised.value
        assert busy.code() is grpc.StatusCode.UNAVAILABLE, "a client may repeat what broke"
        streams = [stream_of(stub, "w")]
        for call in (*watches, *streams, *anybody, upload):
            call.cancel()
        stopped.set()

        def watch_again() -> bool:
            code, _ = outcome(channel, "/coalface.v1.MiningService/WatchStatus", READER)
            return bool(code is OK)

        until(watch_again)


def test_samples_that_nobody_reads_are_counted(
    start: Callable[..., ServerThread], tokens_file: Path
) -> None:
    miner = start(tokens_file=tokens_file, max_streams_per_client=1)
    request = mining_pb2.GetSamplesRequest(row_ids=np.zeros(65_536, "<i8").tobytes())
    with channel_to(miner.address) as one, channel_to(miner.address) as other:
        stub, beside = (mining_pb2_grpc.MiningServiceStub(each) for each in (one, other))
        stalled = stub.GetSamples(request, metadata=READER, timeout=30)
        next(stalled)
        refused = beside.GetSamples(request, metadata=READER, timeout=10)
        assert code_of(refused) is EXHAUSTED
        stalled.cancel()


def test_rpcs_at_once_are_bounded(start: Callable[..., ServerThread]) -> None:
    miner = start(max_concurrent_rpcs=2)
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        watches = [stub.WatchStatus(mining_pb2.WatchStatusRequest(), timeout=30) for _ in "ab"]
        for watch in watches:
            next(watch)
        assert outcome(channel, STATUS)[0] is EXHAUSTED
        for watch in watches:
            watch.cancel()
        until(lambda: outcome(channel, STATUS)[0] is OK)


def test_a_flood_without_credentials_does_not_fill_the_log(
    start: Callable[..., ServerThread], tokens_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    miner = start(tokens_file=tokens_file)
    begin_s = time.monotonic()
    with channel_to(miner.address) as channel:
        codes = {outcome(channel, STATUS)[0] for _ in range(200)}
        assert codes == {UNAUTHENTICATED}
        num_seconds = time.monotonic() - begin_s
        assert 1 <= caplog.text.count("refused '/coalface") <= 2 + num_seconds
        time.sleep(gate.WARN_EVERY_S)
        outcome(channel, STATUS)
    assert "more since the last" in caplog.text


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("method", ["GetStatus", "StreamTriplets", "UploadWeights"])
def test_a_request_above_the_limit_is_refused(
    start: Callable[..., ServerThread], tokens_file: Path, method: str, guarded: bool
) -> None:
    miner = start(max_request_bytes=65_536, tokens_file=tokens_file if guarded else None)
    with channel_to(miner.address) as channel:
        rpc = f"/coalface.v1.MiningService/{method}"
        code, _ = outcome(channel, rpc, bearer(TOKENS["admin"]), bytes(65_537))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert outcome(channel, STATUS, READER)[0] is OK


def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(
    start: Callable[..., ServerThread], tokens_file: Path
) -> None:
    miner = start(max_upload_bytes=1000, tokens_file=tokens_file)
    header = mining_pb2.UploadHeader(step=1, sha256="0" * 64, total_bytes=1001)
    lies = mining_pb2.UploadHeader(step=1, sha256="0" * 64, total_bytes=10)
    content = mining_pb2.UploadWeightsRequest(content=bytes(500))
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        codes = []
        for promised in (header, lies):
            first = mining_pb2.UploadWeightsRequest(header=promised)
            endless = itertools.chain([first], itertools.repeat(content))
            with pytest.raises(grpc.RpcError) as raised:
                stub.UploadWeights(endless, metadata=bearer(TOKENS["write"]), timeout=10)
            failed: Any = raised.value
            codes.append(failed.code())
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT]
    assert not [*miner.backend.uploads_folder.glob("*")]


@pytest.mark.parametrize(
    "method", ["GetStatus", "StreamTriplets", "AnnounceWeights", "UploadWeights"]
)
def test_a_request_without_a_message_or_with_garbage_is_told_as_such(
    start: Callable[..., ServerThread], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    miner = start()
    rpc = f"/coalface.v1.MiningService/{method}"
    with channel_to(miner.address) as channel:
        code, text = outcome(channel, rpc, (), b"\xff\xff\xff")
        assert (code, "must be a message" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        with pytest.raises(grpc.RpcError) as raised:
            channel.stream_unary(rpc)(iter([]), timeout=10)
        failed: Any = raised.value
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caplog.text


def test_no_token_is_ever_logged_nor_told(
    start: Callable[..., ServerThread],
    tokens_file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    miner = start(tokens_file=tokens_file)

    def explode() -> Any:
        raise ZeroDivisionError("a secret path")

    texts = []
    with channel_to(miner.address) as channel:
        for token in (*TOKENS.values(), "token-of-nobody"):
            for method in ("Drain", "GetStatus", "OpenRun", "Nothing"):
                rpc = f"/coalface.v1.MiningService/{method}"
                texts.append(outcome(channel, rpc, bearer(token))[1])
        monkeypatch.setattr(miner.backend, "refresh_status", explode)
        code, text = outcome(channel, STATUS, READER)
    assert code is grpc.StatusCode.INTERNAL
    assert "Traceback" not in text
    assert "secret" not in text
    written = caplog.text + "".join(texts)
    assert "refused" in caplog.text
    for token in (*TOKENS.values(), "token-of-nobody"):
        assert token not in written
