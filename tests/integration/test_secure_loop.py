"""The whole loop under TLS and tokens, as on machines that share a network with others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.loop import Loop, wait_until
from tests.miner.serving.credential_files import (
    TOKENS,
    Authority,
    Issued,
    tls_settings,
    write_tokens,
)
from trainer.errors import AccessDeniedError
from trainer.feed import MinerClient

pytestmark = pytest.mark.timeout(300)


@dataclass(kw_only=True)
class SecureLoop(Loop):
    """A loop whose two sides know each other by the files of a CA and a tokens file."""

    ca: Authority
    pair: Issued
    tokens_file: Path
    token_file: Path

    def miner_config(self) -> dict[str, Any]:
        config = super().miner_config()
        tls = {key: str(path) for key, path in tls_settings(self.pair).items() if path}
        config["serving"] |= {"tls": tls, "tokens_file": str(self.tokens_file)}
        return config

    def trainer_config(self) -> dict[str, Any]:
        config = super().trainer_config()
        secured = {"tls": {"ca_file": str(self.ca.file)}, "token_file": str(self.token_file)}
        return config | {"steps": 30, "miner": config["miner"] | secured}


@pytest.mark.long
def test_two_ranks_train_and_announce_under_tls_with_a_token(loop: Loop, tmp_path: Path) -> None:
    ca, token_file = Authority(tmp_path / "ca"), tmp_path / "token"
    token_file.write_text(TOKENS["write"])
    secured = SecureLoop(
        loop.folder,
        loop.dataset,
        loop.port,
        ca=ca,
        pair=ca.server(),
        tokens_file=write_tokens(tmp_path / "tokens.yaml"),
        token_file=token_file,
    )
    with secured.miner():
        with secured.torchrun("trainer") as trainer:
            code = trainer.wait(timeout=150)
        assert code == 0, secured.log_of("trainer").read_text()[-3000:]
        stranger = MinerClient(secured.address, tls=ca.files(), patience_s=30)
        with stranger, pytest.raises(AccessDeniedError):
            stranger.status()
        with MinerClient(secured.address, tls=ca.files(), token_file=token_file) as client:
            wait_until(lambda: client.status().refresh.num_sealed >= 2, "second mined round")
            with pytest.raises(AccessDeniedError):
                client.drain()
            token_file.write_text(TOKENS["admin"])
            client.drain()
    for rank in (0, 1):
        assert [event["step"] for event in secured.journal(rank)] == list(range(30))
    logs = "".join(secured.log_of(name).read_text() for name in ("miner", "trainer"))
    assert "drained: every stream has ended" in logs
    assert not any(token in logs for token in TOKENS.values())
