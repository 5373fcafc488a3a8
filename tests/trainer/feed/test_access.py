"""What a client shows of itself, where it reads it, and where it never sends it."""

import pickle
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.feed import MinerClient, TlsFiles, TripletFeed
from trainer.feed.access import TOKEN_VARIABLE, Access

SECRET = "a-token-that-nobody-may-see"
LOCAL = [
    "127.0.0.1:1",
    "localhost:1",
    "[::1]:1",
    "127.8.9.1:1",
    "localhost",
    "unix:/tmp/socket",
]
ELSEWHERE = [
    "miner:1",
    "192.0.2.1:1",
    "[2001:db8::1]:1",
    "localhost.example:1",
    "127.0.0.1.example:1",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1,192.0.2.1:1",
    "0.0.0.0:1",
    ":1",
]


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


def shown(access: Access) -> str:
    return dict(access.metadata()).get("authorization", "")


@pytest.mark.parametrize("address", LOCAL + ELSEWHERE)
def test_without_a_token_nothing_is_shown_and_any_address_goes(address: str) -> None:
    assert Access(address, None, None).metadata() == ()


@pytest.mark.parametrize("address", LOCAL)
def test_a_token_may_stay_on_this_machine_unencrypted(address: str, token_file: Path) -> None:
    assert shown(Access(address, None, token_file)) == f"Bearer {SECRET}"


@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize("from_environment", [False, True])
def test_a_token_leaves_this_machine_only_over_tls(
    address: str,
    from_environment: bool,
    token_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if from_environment:
        monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    path = None if from_environment else token_file
    with pytest.raises(ConfigError, match="unencrypted") as raised:
        Access(address, None, path)
    assert address in str(raised.value)
    assert SECRET not in str(raised.value)
    assert shown(Access(address, TlsFiles(ca_file=tmp_path / "ca"), path)) == f"Bearer {SECRET}"


def test_a_file_goes_before_the_environment(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "other")
    assert shown(Access("localhost:1", None, token_file)) == f"Bearer {SECRET}"
    assert shown(Access("localhost:1", None, None)) == "Bearer other"
    monkeypatch.setenv(TOKEN_VARIABLE, " ")
    assert shown(Access("localhost:1", None, None)) == ""


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"first second", b"first\nsecond", b"t\xc3\xb6ken", b"a\x00b", b"\xff"]
)
def test_what_is_no_token_is_refused_without_being_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"token_file .* must hold one token") as raised:
        Access("localhost:1", None, path)
    words = set(content.decode("latin-1").split())
    assert not words & set(str(raised.value).split())


def test_a_renewed_token_is_shown_and_a_lost_file_counts_as_it_was(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access("localhost:1", None, token_file)
    token_file.write_text("newer")
    assert shown(access) == "Bearer newer"
    token_file.unlink()
    assert shown(access) == "Bearer newer"
    assert "its former content stays" in caplog.text
    assert "newer" not in caplog.text


def test_missing_files_are_named_when_the_client_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/token: No such file"):
        MinerClient("localhost:1", token_file=Path("nowhere/token"))
    with pytest.raises(ConfigError, match=r"nowhere/ca\.pem: No such file"):
        MinerClient("localhost:1", tls=TlsFiles(ca_file=Path("nowhere/ca.pem")))


def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go together"):
        TlsFiles(ca_file=tmp_path, certificate_file=tmp_path)
    with pytest.raises(ConfigError, match="go together"):
        TlsFiles(ca_file=tmp_path, key_file=tmp_path)


def test_a_feed_goes_to_another_process_with_paths_alone(token_file: Path) -> None:
    tls = TlsFiles(ca_file=Path("ca"), certificate_file=Path("c"), key_file=Path("k"))
    feed = TripletFeed("m:1", run_id="r", batch_rows=24, tls=tls, token_file=token_file)
    sent = pickle.dumps(feed)
    assert SECRET.encode() not in sent
    assert (pickle.loads(sent).tls, pickle.loads(sent).token_file) == (tls, token_file)


def test_no_repr_holds_a_token(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    feed = TripletFeed("localhost:1", run_id="r", batch_rows=24, token_file=token_file)
    with MinerClient("localhost:1", token_file=token_file) as client:
        text = repr([feed, client, Access("localhost:1", None, None), vars(client)])
    assert SECRET not in text
