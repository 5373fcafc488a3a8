"""The files of security: what is wrong with one is told, and nothing of what it holds."""

import hashlib
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from miner.app.serve import run_service
from miner.config import MinerConfig, load_config
from miner.errors import ConfigError
from miner.serving import watched
from miner.serving.binding import check_binding, check_files
from miner.serving.certificates import TlsConfig, read_certificates
from miner.serving.config import ServingConfig
from miner.serving.metrics.config import MetricsConfig
from miner.serving.tokens import Entry, Tokens, add_token, read_tokens
from miner.serving.watched import Watched
from tests.miner.serving.credential_files import (
    TOKENS,
    Authority,
    Issued,
    tls_settings,
    token_entry,
    write_tokens,
)

SECRET = "pasted-in-the-wrong-place"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def tls_of(pair: Issued, client_ca: Path | None = None) -> TlsConfig:
    return TlsConfig(**tls_settings(pair, client_ca))


def told(raised: pytest.ExceptionInfo[ConfigError]) -> str:
    """All that a log could show of an error, its causes included."""
    return "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "a list"),
        ("# nothing yet", "a list"),
        (f"token: {SECRET}", "a list"),
        (f"- {SECRET}", "entry 1"),
        (f"- [{SECRET}", "not YAML"),
        (f"- {SECRET}: {{", "not YAML"),
        (f"- name: {SECRET}\n  since: 2024-13-45", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("- {name: a, role: read}", "entry 1: .*either sha256 or certificate"),
        (f"- {{name: a, role: read, sha256: {SECRET}}}", "entry 1: sha256"),
        (f"- {{name: a, role: read, token: {SECRET}}}", "entry 1: token"),
        ("- {name: a, role: root, certificate: c}", "entry 1: role"),
        ("- {name: a b, role: read, certificate: c}", "entry 1: name"),
        ("- {name: '', role: read, certificate: c}", "entry 1: name"),
        ("- {name: a, role: read, certificate: ''}", "entry 1: certificate"),
        (
            "- {name: a, role: read, certificate: c}\n- {name: a, role: read, certificate: d}",
            r"entries \[1, 2\] have the same name",
        ),
        (
            "- {name: a, role: read, certificate: c}\n- {name: b, role: read, certificate: c}",
            r"entries \[1, 2\] have the same certificate",
        ),
    ],
)
def test_a_wrong_tokens_file_is_named_with_the_entry_and_quotes_nothing(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as raised:
        read_tokens(path)
    assert str(path) in str(raised.value)
    assert SECRET not in told(raised)


def test_a_tokens_file_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    with pytest.raises(ConfigError, match=r"tokens\.yaml: No such file"):
        read_tokens(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_tokens(path)


def test_a_tokens_file_that_everybody_can_write_is_refused_and_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tokens(tmp_path / "tokens.yaml")
    path.chmod(0o600)
    read_tokens(path)
    assert not caplog.text
    path.chmod(0o644)
    read_tokens(path)
    assert f"{path} can be read by every user" in caplog.text
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        read_tokens(path)


def test_one_token_cannot_have_two_names(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "t.yaml", token_entry("twin", "admin", TOKENS["read"]))
    with pytest.raises(ConfigError, match="the same sha256"):
        read_tokens(path)


def test_tokens_are_found_by_what_is_shown(tmp_path: Path) -> None:
    tokens = read_tokens(write_tokens(tmp_path / "t.yaml"))
    found = tokens.by_token(TOKENS["write"])
    assert found is not None
    assert (found.name, found.role) == ("writer", "write")
    assert tokens.by_token("") is None
    assert tokens.by_token(hashlib.sha256(TOKENS["write"].encode()).hexdigest()) is None
    assert tokens.by_certificate([]) is None
    assert tokens.by_certificate([""]) is None


def test_of_several_names_in_a_certificate_the_highest_role_counts() -> None:
    roles = {"a": "write", "b": "admin", "c": "read"}
    entries = [Entry(name=f"n-{c}", role=r, certificate=c) for c, r in roles.items()]  # type: ignore[arg-type]
    found = Tokens(entries).by_certificate(["c", "a", "z"])
    assert found is not None
    assert found.name == "n-a"


def test_added_tokens_are_known_and_their_file_holds_digests_only(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    first, second = add_token(path, "trainer-1", "read"), add_token(path, "operator", "admin")
    tokens = read_tokens(path)
    assert [(entry.name, entry.role) for entry in tokens.entries] == [
        ("trainer-1", "read"),
        ("operator", "admin"),
    ]
    assert tokens.by_token(first) == tokens.entries[0]
    assert tokens.by_token(second) == tokens.entries[1]
    assert len(first) > 40
    assert first not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.yaml"]


def test_what_stood_in_a_tokens_file_stays_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    before = "# ours\n- {name: a, role: read, certificate: c}"
    path.write_text(before)
    path.chmod(0o640)
    add_token(path, "b", "write")
    assert path.read_text().startswith(before + "\n- name: b\n")
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_stood_in_a_tokens_file_stays_with_its_owner(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "tokens.yaml")
    os.chown(path, 1234, 4321)
    add_token(path, "b", "write")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_tokens_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    with ThreadPoolExecutor(8) as pool:
        adding = [pool.submit(add_token, path, f"trainer-{n}", "read") for n in range(40)]
        added = [each.result() for each in adding]
    tokens = read_tokens(path)
    assert {entry.name for entry in tokens.entries} == {f"trainer-{n}" for n in range(40)}
    assert all(tokens.by_token(token) for token in added)
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.yaml"]


def test_an_added_token_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    replace, sync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (events.append("fsync"), sync(d))[1])
    monkeypatch.setattr(
        Path, "replace", lambda old, new: (events.append("rename"), replace(old, new))[1]
    )
    add_token(tmp_path / "tokens.yaml", "a", "read")
    assert events == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize("before", ["[]", "# ours\n[]\n"])
def test_a_list_without_entries_lets_nobody_in_until_one_is_added(
    tmp_path: Path, before: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(before)
    path.chmod(0o600)
    assert read_tokens(path).entries == ()
    assert "nobody is let in" in caplog.text
    token = add_token(path, "a", "read")
    assert read_tokens(path).by_token(token) is not None
    assert ("# ours" in path.read_text()) == ("# ours" in before)


@pytest.mark.parametrize("name", ["reader", "", "a b", ".a", "x" * 65, "a\nb"])
def test_a_name_that_is_taken_or_malformed_adds_nothing(tmp_path: Path, name: str) -> None:
    path = write_tokens(tmp_path / "tokens.yaml")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="name"):
        add_token(path, name, "read")
    assert path.read_bytes() == before


def test_a_good_pair_is_read_with_its_ca(ca: Authority) -> None:
    pair = ca.server()
    certificates = read_certificates(tls_of(pair, ca.file))
    assert certificates.key_pem == pair.key.read_bytes()
    assert certificates.client_ca_pem == ca.file.read_bytes()
    assert "PRIVATE KEY" not in repr(certificates)
    assert read_certificates(tls_of(pair)).client_ca_pem is None


@pytest.mark.parametrize("key", ["certificate_file", "key_file", "client_ca_file"])
@pytest.mark.parametrize("fault", ["missing", "empty", "garbage", "cut"])
def test_a_wrong_file_of_tls_is_named(ca: Authority, key: str, fault: str) -> None:
    config = tls_of(ca.server(), ca.file)
    path: Path = getattr(config, key)
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes({"empty": b"", "garbage": b"x" * 99, "cut": content[:99]}[fault])
    with pytest.raises(ConfigError) as raised:
        check_files(ServingConfig(tls=config))
    assert str(path) in str(raised.value)


def test_a_key_of_another_certificate_and_an_encrypted_one_are_refused(ca: Authority) -> None:
    one, other = ca.server(), ca.server()
    with pytest.raises(ConfigError, match=r"KEY_VALUES_MISMATCH|key values mismatch"):
        read_certificates(tls_of(Issued(one.certificate, other.key)))
    text = one.key.read_text()
    one.key.write_text(text.replace("EC PRIVATE", "ENCRYPTED PRIVATE"))
    with pytest.raises(ConfigError, match="unencrypted"):
        read_certificates(tls_of(one))


def test_a_key_that_everybody_can_read_is_warned_of(
    ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = ca.server()
    pair.key.chmod(0o644)
    read_certificates(tls_of(pair))
    assert f"{pair.key} can be read by every user" in caplog.text


def test_a_value_follows_its_file_and_outlives_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched, "LOOK_EVERY_S", 0.0)
    path = tmp_path / "number"

    def read() -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError) as exc:
            raise ConfigError(f"no number: {exc}") from exc

    with pytest.raises(ConfigError, match="no number"):
        Watched([path], read)
    path.write_text("1")
    value = Watched([path], read)
    assert value.value == 1
    path.write_text("22")
    assert value.value == 22
    path.write_text("two")
    assert [value.value, value.value] == [22, 22]
    path.unlink()
    assert [value.value, value.value] == [22, 22]
    assert caplog.text.count("the old content stays") == 2, "once per change"
    replacement = tmp_path / "replacement"
    replacement.write_text("33")
    os.replace(replacement, path)
    assert value.value == 33


TLS = {"tls": {"certificate_file": "/c", "key_file": "/k"}}
MUTUAL = {"tls": {"certificate_file": "/c", "key_file": "/k", "client_ca_file": "/a"}}
WITH_TOKENS = {"tokens_file": "/t"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
@pytest.mark.parametrize("settings", [{}, WITH_TOKENS, MUTUAL, TLS | WITH_TOKENS])
def test_on_this_machine_anything_goes_but_tls_for_everybody(host: str, settings: object) -> None:
    check_binding(ServingConfig(host=host, **settings))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="neither tokens nor client certificates"):
        check_binding(ServingConfig(host=host, **TLS))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "miner.example", ""])
@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "neither TLS nor tokens"),
        (WITH_TOKENS, "no TLS"),
        (TLS, "neither tokens nor client certificates"),
        (MUTUAL, ""),
        (TLS | WITH_TOKENS, ""),
        (MUTUAL | WITH_TOKENS, ""),
    ],
)
def test_to_a_network_only_tls_with_credentials_goes_unless_asked_for(
    host: str, settings: object, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServingConfig(host=host, **settings)  # type: ignore[arg-type]
    if missing:
        with pytest.raises(ConfigError, match=f"{missing}.*allow_insecure_bind"):
            check_binding(config)
    else:
        check_binding(config)
    assert not caplog.text
    check_binding(config.model_copy(update={"allow_insecure_bind": True}))
    assert missing in caplog.text
    assert bool(caplog.text) == bool(missing)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "miner.example", ""])
def test_metrics_are_open_to_a_network_only_where_asked_for(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    serving = ServingConfig(host="0.0.0.0", **(TLS | WITH_TOKENS))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"metrics\.host.*allow_insecure_bind"):
        check_binding(serving, MetricsConfig(host=host, port=0))
    check_binding(serving, MetricsConfig(host=host))
    check_binding(serving, MetricsConfig(host="127.0.0.1", port=0))
    assert not caplog.text
    asked_for = serving.model_copy(update={"allow_insecure_bind": True})
    check_binding(asked_for, MetricsConfig(host=host, port=0))
    assert "metrics.host" in caplog.text


def test_a_service_does_not_begin_with_metrics_for_everybody(tmp_path: Path) -> None:
    config = load_config(
        MinerConfig,
        None,
        [f"state_dir={tmp_path / 's'}", "dataset.uri=/d", "metrics={host: 0.0.0.0, port: 0}"],
    )
    with pytest.raises(ConfigError, match=r"metrics\.host"):
        run_service(config)
    assert not (tmp_path / "s").exists()


def test_paths_mean_the_same_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = {"tls": {"certificate_file": "c", "key_file": "k"}, "tokens_file": "t"}
    config = ServingConfig(**relative).with_absolute_paths()  # type: ignore[arg-type]
    assert config.tls == TlsConfig(certificate_file=tmp_path / "c", key_file=tmp_path / "k")
    assert config.tokens_file == tmp_path / "t"
    assert ServingConfig().with_absolute_paths() == ServingConfig()


def test_a_rendered_configuration_holds_paths_only(tmp_path: Path, ca: Authority) -> None:
    tokens = write_tokens(tmp_path / "t.yaml")
    config = ServingConfig(tls=tls_of(ca.server()), tokens_file=tokens)
    shown = repr(config) + yaml.safe_dump(config.model_dump(mode="json"))
    assert str(tokens) in shown
    assert "PRIVATE KEY" not in shown
    assert not any(token in shown for token in TOKENS.values())
