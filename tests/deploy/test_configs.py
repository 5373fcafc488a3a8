"""The shipped configurations pass the programs' own checks, with secrets made for them."""

from pathlib import Path

import pytest

from miner.config import MinerConfig, load_config
from miner.errors import ConfigError
from miner.serving.binding import check_binding, check_files
from miner.serving.config import ServingConfig
from miner.serving.tokens import read_tokens
from tests.deploy.shipped import DEPLOY, made_secrets
from trainer.config import TrainerConfig
from trainer.config_file import load_config as load_trainer_config
from trainer.feed import TlsFiles
from trainer.feed.access import Access


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_secrets(tmp_path_factory.mktemp("made") / "secrets")


@pytest.fixture
def miner() -> MinerConfig:
    return load_config(MinerConfig, DEPLOY / "config/miner.yaml")


@pytest.fixture
def trainer() -> TrainerConfig:
    return load_trainer_config(TrainerConfig, DEPLOY / "config/trainer.yaml")


def test_the_miner_may_listen_where_pods_reach_it_and_takes_its_secrets(
    miner: MinerConfig, secrets: Path
) -> None:
    assert (miner.serving.host, miner.metrics.host) == ("0.0.0.0", "0.0.0.0")
    check_binding(miner.serving, miner.metrics)
    assert miner.serving.tls is not None
    assert miner.serving.tokens_file is not None
    # The names that the files have where they are mounted are those that secrets.sh gives them.
    tls = {key: secrets / path.name for key, path in miner.serving.tls if path is not None}
    update = {
        "tls": miner.serving.tls.model_copy(update=tls),
        "tokens_file": secrets / miner.serving.tokens_file.name,
    }
    check_files(miner.serving.model_copy(update=update))


def test_grpc_would_be_refused_without_its_credentials(miner: MinerConfig) -> None:
    """allow_insecure_bind is there for the metrics alone."""
    strict: ServingConfig = miner.serving.model_copy(update={"allow_insecure_bind": False})
    check_binding(strict)
    for missing in ({"tls": None}, {"tokens_file": None}):
        with pytest.raises(ConfigError):
            check_binding(strict.model_copy(update=missing))


def test_the_trainer_has_a_token_that_may_upload_and_the_ca(
    trainer: TrainerConfig, secrets: Path
) -> None:
    assert trainer.miner.upload_weights
    assert trainer.miner.tls is not None
    assert trainer.miner.token_file is not None
    tls = TlsFiles(ca_file=secrets / trainer.miner.tls.ca_file.name)
    Access(trainer.miner.address, tls, secrets / trainer.miner.token_file.name)
    token = (secrets / trainer.miner.token_file.name).read_text().strip()
    entry = read_tokens(secrets / "tokens.yaml").by_token(token)
    assert entry is not None
    assert entry.role == "write"


def test_miner_and_trainer_agree_on_the_encoder(miner: MinerConfig, trainer: TrainerConfig) -> None:
    assert miner.encoder.encoder == trainer.encoder.build
    assert miner.encoder.preprocess == trainer.encoder.preprocess
    assert miner.encoder.encoder_args == trainer.encoder.args


def test_secrets_are_readable_by_their_owner_alone_and_never_overwritten(secrets: Path) -> None:
    assert {path.stat().st_mode & 0o077 for path in secrets.iterdir()} == {0}
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    with pytest.raises(AssertionError, match="exists"):
        made_secrets(secrets)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
