"""A store on loopback, as fixtures; a folder's conftest imports them."""

import uuid
from collections.abc import Iterator

import pytest

from tests.miner.rounds.loopback_s3 import UnsteadyS3

__all__ = ["folder", "one_s3", "s3"]


@pytest.fixture(scope="session")
def one_s3() -> Iterator[UnsteadyS3]:
    s3 = UnsteadyS3()
    yield s3
    s3.s3.close()
    s3.stop()


@pytest.fixture
def s3(one_s3: UnsteadyS3, monkeypatch: pytest.MonkeyPatch) -> UnsteadyS3:
    """The store, with its address in the environment; it is well, and has forgotten requests."""
    for name, value in one_s3.environment.items():
        monkeypatch.setenv(name, value)
    one_s3.mode, one_s3.lose_answer_to = "well", None
    one_s3.asked.clear()
    return one_s3


@pytest.fixture
def folder() -> str:
    """A folder in the bucket that nothing has been put into."""
    return f"logs/{uuid.uuid4().hex}"
