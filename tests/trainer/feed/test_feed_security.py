"""Streams and requests under TLS and tokens, end to end, with certificates and tokens renewed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from miner.serving import watched
from tests.miner.serving.credential_files import (
    TOKENS,
    Authority,
    Issued,
    tls_settings,
    token_entry,
    write_tokens,
)
from tests.trainer.fake_run import tree
from tests.trainer.feed.served_miner import ServerThread
from trainer.config import TrainerConfig
from trainer.config_file import load_config
from trainer.distributed import World
from trainer.errors import AccessDeniedError, ConfigError, MinerUnreachableError
from trainer.feed import MinerClient, RunParameters, TripletBatch, TripletFeed
from trainer.feed.access import TOKEN_VARIABLE
from trainer.miner_link import GrpcMiner


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(watched, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def pair(ca: Authority) -> Issued:
    return ca.server()


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.yaml")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKENS["read"] + "\n")
    return path


@pytest.fixture
def start(folder: Path, tokens_file: Path, pair: Issued) -> Iterator[Callable[..., ServerThread]]:
    started: list[ServerThread] = []

    def start_one(**settings: Any) -> ServerThread:
        defaults = {"tls": tls_settings(pair), "tokens_file": tokens_file}
        started.append(ServerThread(folder, **{**defaults, **settings}))
        return started[-1]

    yield start_one
    for miner in started:
        miner.stop()


def feed_of(address: str, **values: Any) -> TripletFeed:
    defaults = {"run_id": "r", "batch_rows": 24, "num_steps": 12, "patience_s": 10}
    return TripletFeed(address, **{**defaults, **values})


def steps_of(batches: Iterator[TripletBatch]) -> list[int]:
    return [batch.step for batch in batches if batch.samples is not None]


def test_a_run_is_streamed_and_committed_with_the_token_of_a_reader(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path
) -> None:
    feed = feed_of(start().address, tls=ca.files(), token_file=token_file)
    with feed:
        assert steps_of(feed) == list(range(12))
        assert feed.commit(12) == 12


def test_the_token_may_come_from_the_environment(
    start: Callable[..., ServerThread], ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKENS["read"])
    assert len(steps_of(feed_of(start().address, tls=ca.files()))) == 12


def test_a_certificate_may_do_for_a_token(
    start: Callable[..., ServerThread], ca: Authority, tmp_path: Path
) -> None:
    clients = Authority(tmp_path / "clients")
    entry = {"name": "trainer-1", "role": "read", "certificate": "trainer-1.example"}
    miner = start(
        tls=tls_settings(ca.server(), clients.file),
        tokens_file=write_tokens(tmp_path / "t.yaml", entry),
    )
    files = ca.files(clients.issue("trainer-1.example"))
    assert len(steps_of(feed_of(miner.address, tls=files))) == 12
    with (
        MinerClient(miner.address, tls=files) as client,
        pytest.raises(AccessDeniedError, match="needs the role 'write', and 'trainer-1' has"),
    ):
        client.request_refresh()


def test_a_name_can_be_looked_for_in_place_of_the_host(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path
) -> None:
    miner = start(tls=tls_settings(ca.issue("miner.example")))
    tls = replace(ca.files(), server_name="miner.example")
    assert len(steps_of(feed_of(miner.address, tls=tls, token_file=token_file))) == 12
    with pytest.raises(MinerUnreachableError):
        feed_of(miner.address, tls=ca.files(), token_file=token_file, patience_s=0.5).open()


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_a_good_token_the_feed_says_so_at_once(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path, token: str
) -> None:
    token_file.write_text(token or TOKENS["read"])
    feed = feed_of(
        start().address,
        tls=ca.files(),
        token_file=token_file if token else None,
        patience_s=60,
    )
    with pytest.raises(AccessDeniedError, match="token"):
        next(feed)


def test_each_request_takes_its_role(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path, tmp_path: Path
) -> None:
    miner = start()
    sha256 = "0" * 64
    weights = tmp_path / "weights"
    weights.write_bytes(b"w")
    with MinerClient(miner.address, tls=ca.files(), token_file=token_file) as client:
        client.open_run(RunParameters(run_id="r", batch_rows=24))
        assert client.status().num_rows > 0
        assert next(client.watch()).num_rows > 0
        assert [one.round_id for one in client.rounds()] == [2, 1]
        for asked in (
            lambda: client.announce(step=1, uri="good", sha256=sha256),
            lambda: client.upload(step=1, path=weights, sha256=sha256),
            client.request_refresh,
            client.drain,
        ):
            with pytest.raises(AccessDeniedError, match="role"):
                asked()
        token_file.write_text(TOKENS["write"])
        assert client.announce(step=1, uri="good", sha256=sha256) is False
        with pytest.raises(AccessDeniedError, match="'admin'"):
            client.drain()
        token_file.write_text(TOKENS["admin"])
        assert client.drain() == 0
    assert miner.backend.drains == 1


def test_a_run_goes_on_while_token_and_certificate_are_renewed(
    start: Callable[..., ServerThread],
    ca: Authority,
    pair: Issued,
    token_file: Path,
    tokens_file: Path,
) -> None:
    miner = start()
    steps = []
    with feed_of(
        miner.address, tls=ca.files(), token_file=token_file, num_steps=40, prefetch_steps=2
    ) as feed:
        for batch in feed:
            steps.append(batch.step)
            if batch.step == 10:  # both are known, the trainer changes over, the old one goes
                write_tokens(tokens_file, token_entry("renewed", "read", "renewed"))
                token_file.write_text("renewed")
            if batch.step == 20:
                renewed = ca.server()
                pair.certificate.write_bytes(renewed.certificate.read_bytes())
                pair.key.write_bytes(renewed.key.read_bytes())
                tokens_file.write_text(yaml.safe_dump([token_entry("new", "read", "renewed")]))
    assert steps == list(range(40))


def test_a_withdrawn_token_ends_the_feed_with_the_reason(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path, tokens_file: Path
) -> None:
    feed = feed_of(
        start().address, tls=ca.files(), token_file=token_file, num_steps=None, prefetch_steps=2
    )
    for _ in range(5):
        next(feed)
    tokens_file.write_text(yaml.safe_dump([token_entry("new", "read", "other")]))
    with pytest.raises(AccessDeniedError, match="may have been replaced"):
        list(feed)


def test_plaintext_to_tls_and_back_is_no_connection_within_the_patience(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path
) -> None:
    encrypted, plain = start(), start(tls=None)
    for address, tls in ((encrypted.address, None), (plain.address, ca.files())):
        feed = feed_of(address, tls=tls, token_file=token_file, patience_s=0.5)
        with pytest.raises(MinerUnreachableError):
            feed.open()


def test_no_token_leaves_this_machine_unencrypted(token_file: Path) -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        feed_of("miner.example:1", token_file=token_file).open()


def test_the_trainers_configuration_reaches_feed_and_announcements(
    start: Callable[..., ServerThread], ca: Authority, token_file: Path, tmp_path: Path
) -> None:
    miner = start()
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(tree(tmp_path)))
    overrides = [
        f"miner.address={miner.address}",
        f"miner.tls.ca_file={ca.file}",
        f"miner.token_file={token_file}",
        "steps=3",
        "miner.patience_s=10",
    ]
    config = load_config(TrainerConfig, file, overrides)
    assert TOKENS["read"] not in repr(config)
    grpc_miner = GrpcMiner(config)
    with grpc_miner.open_feed(World(0, 1, torch.device("cpu")), 0) as feed:
        assert steps_of(feed) == [0, 1, 2]
    link = grpc_miner.link()
    link.commit(3)
    with pytest.raises(AccessDeniedError, match="'write'"):
        link.announce(1, "good", "0" * 64)
    token_file.write_text(TOKENS["write"])
    assert link.announce(1, "good", "0" * 64) is False
