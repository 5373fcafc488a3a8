"""Who may do what: every rpc, with every kind of credentials, over real sockets."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from miner.serving.roles import NEEDED_ROLES, includes
from protos.coalface.v1 import mining_pb2
from tests.miner.serving.credential_files import (
    NAMES,
    TOKENS,
    Authority,
    bearer,
    outcome,
    tls_channel,
    tls_settings,
    write_tokens,
)
from tests.trainer.feed.served_miner import ServerThread, channel_to, make_folder

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
REFUSED = {UNAUTHENTICATED, PERMISSION_DENIED}
STATUS = "/coalface.v1.MiningService/GetStatus"
GUARDED = [rpc for rpc, needed in NEEDED_ROLES.items() if needed is not None]


@dataclass(frozen=True)
class Served:
    """A server and the CAs of its two sides."""

    address: str
    ca: Authority
    client_ca: Authority


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("log"))


def serve(folder: Path, root: Path, *, mutual: bool, tokens: bool) -> Iterator[Served]:
    ca, client_ca = Authority(root / "ca"), Authority(root / "clients")
    settings: dict[str, Any] = {
        "tls": tls_settings(ca.server(), client_ca.file if mutual else None),
        "reflection": True,
        "channelz": True,
    }
    if tokens:
        by_certificate = {"name": "trainer-9", "role": "write", "certificate": "trainer-9.example"}
        settings["tokens_file"] = write_tokens(root / "tokens.yaml", by_certificate)
    server = ServerThread(folder, **settings)
    yield Served(server.address, ca, client_ca)
    server.stop()


@pytest.fixture(scope="module")
def with_tokens(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(folder, tmp_path_factory.mktemp("t"), mutual=False, tokens=True)


@pytest.fixture(scope="module")
def with_certificates(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(folder, tmp_path_factory.mktemp("c"), mutual=True, tokens=False)


@pytest.fixture(scope="module")
def with_both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(folder, tmp_path_factory.mktemp("b"), mutual=True, tokens=True)


def rpcs_of(module: Any) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_every_rpc_has_a_role_and_every_role_an_rpc() -> None:
    served = rpcs_of(mining_pb2) | rpcs_of(reflection_pb2) | rpcs_of(channelz_pb2)
    assert served == set(GUARDED)
    told_to_all = {rpc for rpc, needed in NEEDED_ROLES.items() if needed is None}
    assert told_to_all <= rpcs_of(health_pb2)


@pytest.mark.parametrize("rpc", GUARDED)
def test_each_rpc_takes_its_role_and_those_above_it(with_tokens: Served, rpc: str) -> None:
    needed = NEEDED_ROLES[rpc]
    assert needed is not None
    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        for role, token in TOKENS.items():
            code, text = outcome(channel, rpc, bearer(token))
            if includes(role, needed):  # type: ignore[arg-type]
                assert code not in REFUSED, (role, text)
            else:
                assert code is PERMISSION_DENIED, (role, text)
                assert repr(needed) in text
                assert repr(NAMES[role]) in text


@pytest.mark.parametrize("rpc", [*GUARDED, "/coalface.v1.MiningService/NoSuchRpc", "/x/y"])
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("token-of-nobody"),
        bearer("token-of-a-reade"),
        bearer("token-of-a-readers"),
        (("authorization", "token-of-an-admin"),),
        (("authorization", "Basic token-of-an-admin"),),
        (("authorization", "Bearer"),),
        (*bearer("token-of-an-admin"), *bearer("token-of-an-admin")),
        (("token", "token-of-an-admin"),),
    ],
)
def test_no_token_and_wrong_ones_are_refused_for_every_rpc(
    with_tokens: Served, rpc: str, metadata: Any
) -> None:
    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        code, text = outcome(channel, rpc, metadata)
    assert code is UNAUTHENTICATED, text
    assert "token" in text
    assert not any(token in text for token in (*TOKENS.values(), "nobody"))


def test_health_needs_no_token(with_tokens: Served) -> None:
    request = health_pb2.HealthCheckRequest(service="coalface.v1.MiningService")
    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        for rpc in ("Check", "Watch"):
            code, _ = outcome(
                channel, f"/grpc.health.v1.Health/{rpc}", (), request.SerializeToString()
            )
            assert code is grpc.StatusCode.OK


def test_an_rpc_that_is_not_served_is_named_to_who_may_know(with_tokens: Served) -> None:
    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        code, text = outcome(channel, "/coalface.v1.MiningService/No", bearer(TOKENS["read"]))
    assert (code, "MiningService/No" in text) == (grpc.StatusCode.UNIMPLEMENTED, True)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_served_rpc_without_a_role_is_refused_to_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: bool
) -> None:
    monkeypatch.delitem(NEEDED_ROLES, STATUS)
    settings = {"tokens_file": write_tokens(tmp_path / "t.yaml")} if tokens else {}
    miner = ServerThread(folder, **settings)
    with channel_to(miner.address) as channel:
        code, text = outcome(channel, STATUS, bearer(TOKENS["admin"]))
    miner.stop()
    assert (code, "no role" in text) == (PERMISSION_DENIED, True)


@pytest.mark.parametrize(
    ("token", "reason"), [("", "Unauthenticated"), (TOKENS["read"], "Forbidden")]
)
def test_refusals_tell_programs_the_reason(with_tokens: Served, token: str, reason: str) -> None:
    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        drain = channel.unary_unary("/coalface.v1.MiningService/Drain")
        with pytest.raises(grpc.RpcError) as raised:
            drain(b"", metadata=bearer(token), timeout=10)
    status = rpc_status.from_call(raised.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "coalface")


@pytest.mark.parametrize("method", ["GetStatus", "StreamTriplets", "UploadWeights"])
def test_a_refusal_comes_before_anything_of_the_request_was_sent(
    with_tokens: Served, method: str
) -> None:
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(10)
        yield from ()

    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        rpc = channel.stream_unary(f"/coalface.v1.MiningService/{method}")
        refused: Any = rpc.future(nothing(), timeout=10).exception(timeout=5)
        over.set()
    assert refused.code() is UNAUTHENTICATED


@pytest.mark.parametrize("rpc", GUARDED)
def test_every_certificate_of_the_ca_may_do_all_where_there_are_no_tokens(
    with_certificates: Served, rpc: str
) -> None:
    served = with_certificates
    client = served.client_ca.issue("anyone.example")
    with tls_channel(served.address, served.ca, client) as channel:
        code, text = outcome(channel, rpc)
    assert code not in {*REFUSED, grpc.StatusCode.UNAVAILABLE}, text


@pytest.mark.parametrize("which", ["with_certificates", "with_both"])
@pytest.mark.parametrize("shown", ["none", "expired", "foreign"])
def test_without_a_good_certificate_there_is_no_connection(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, shown: str
) -> None:
    served: Served = request.getfixturevalue(which)
    client = {
        "none": None,
        "expired": served.client_ca.issue("trainer-9.example", expired=True),
        "foreign": Authority(tmp_path).issue("trainer-9.example"),
    }[shown]
    with tls_channel(served.address, served.ca, client) as channel:
        for rpc in (STATUS, "/grpc.health.v1.Health/Check"):
            code, _ = outcome(channel, rpc, bearer(TOKENS["admin"]))
            assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("as_common_name", [False, True])
@pytest.mark.parametrize("rpc", GUARDED)
def test_a_certificate_has_the_role_that_the_tokens_file_gives_it(
    with_both: Served, rpc: str, as_common_name: bool
) -> None:
    name, needed = "trainer-9.example", NEEDED_ROLES[rpc]
    client = (
        with_both.client_ca.issue("other.example", common_name=name)
        if as_common_name
        else with_both.client_ca.issue("other.example", name)
    )
    with tls_channel(with_both.address, with_both.ca, client) as channel:
        code, text = outcome(channel, rpc)
    assert (code is PERMISSION_DENIED) == (needed == "admin"), text
    assert code is not UNAUTHENTICATED, text


def test_a_certificate_without_an_entry_needs_a_token(with_both: Served) -> None:
    client = with_both.client_ca.issue("stranger.example")
    with tls_channel(with_both.address, with_both.ca, client) as channel:
        code, text = outcome(channel, STATUS)
        assert (code, "stranger.example" in text) == (UNAUTHENTICATED, True)
        assert outcome(channel, STATUS, bearer(TOKENS["read"]))[0] is grpc.StatusCode.OK


def test_a_token_counts_alone_whatever_certificate_comes_with_it(with_both: Served) -> None:
    client = with_both.client_ca.issue("trainer-9.example")
    with tls_channel(with_both.address, with_both.ca, client) as channel:
        assert outcome(channel, STATUS, bearer("wrong"))[0] is UNAUTHENTICATED
        refresh = "/coalface.v1.MiningService/RequestRefresh"
        assert outcome(channel, refresh, bearer(TOKENS["read"]))[0] is PERMISSION_DENIED


def test_plaintext_to_tls_is_no_connection(with_tokens: Served) -> None:
    with channel_to(with_tokens.address) as channel:
        code, _ = outcome(channel, STATUS, bearer(TOKENS["admin"]))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_tls_to_plaintext_is_no_connection(folder: Path, tmp_path: Path) -> None:
    miner = ServerThread(folder, tokens_file=write_tokens(tmp_path / "t.yaml"))
    with tls_channel(miner.address, Authority(tmp_path / "ca")) as channel:
        code, _ = outcome(channel, STATUS, bearer(TOKENS["admin"]))
    miner.stop()
    assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("fault", ["foreign", "expired", "other-name"])
def test_a_client_talks_to_no_server_that_it_does_not_know(
    folder: Path, tmp_path: Path, fault: str
) -> None:
    ca = Authority(tmp_path / "ca")
    shown = {
        "foreign": Authority(tmp_path / "foreign").server(),
        "expired": ca.issue("localhost", "127.0.0.1", expired=True),
        "other-name": ca.issue("miner.example"),
    }[fault]
    miner = ServerThread(
        folder, tls=tls_settings(shown), tokens_file=write_tokens(tmp_path / "t.yaml")
    )
    with tls_channel(miner.address, ca) as channel:
        code, _ = outcome(channel, STATUS, bearer(TOKENS["admin"]))
    miner.stop()
    assert code is grpc.StatusCode.UNAVAILABLE


def test_reflection_and_channelz_are_off_by_default(folder: Path, tmp_path: Path) -> None:
    miner = ServerThread(folder, tokens_file=write_tokens(tmp_path / "t.yaml"))
    with channel_to(miner.address) as channel:
        for rpc in rpcs_of(reflection_pb2) | rpcs_of(channelz_pb2):
            assert outcome(channel, rpc, bearer(TOKENS["admin"]))[0] is (
                grpc.StatusCode.UNIMPLEMENTED
            )
    miner.stop()


def test_reflection_lists_the_services_to_an_admin(with_tokens: Served) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    with tls_channel(with_tokens.address, with_tokens.ca) as channel:
        ask = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = ask(iter([request]), metadata=bearer(TOKENS["admin"]), timeout=10)
    services = {service.name for service in answer.list_services_response.service}
    assert "coalface.v1.MiningService" in services
