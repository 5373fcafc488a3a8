"""What clients are told of failures inside: why, and nothing of the machine it happened on."""

import pytest
from ray.exceptions import RayTaskError

from miner.app.cluster import MOST_CHARACTERS, told_of
from miner.errors import PoisonSampleError

SECRET = "/home/operator/secret"


def over_ray(error: Exception) -> Exception:
    """As `ray.get` raises it: of both classes, with the worker's traceback for its text."""
    task_error = RayTaskError("embed", f"Traceback: {SECRET}", error)
    raised: Exception = task_error.as_instanceof_cause()
    assert SECRET in str(raised)
    return raised


def test_errors_of_the_miners_own_keep_their_text() -> None:
    error = PoisonSampleError("row 7 cannot be embedded")
    assert told_of(error) == told_of(over_ray(error)) == "row 7 cannot be embedded"


@pytest.mark.parametrize("error", [KeyError(SECRET), OSError(2, SECRET), ValueError(SECRET)])
def test_of_other_errors_only_the_kind_is_told(error: Exception) -> None:
    told = f"{type(error).__name__}: see the miner's log"
    assert told_of(error) == told_of(over_ray(error)) == told


def test_what_is_told_is_bounded() -> None:
    assert len(told_of(PoisonSampleError("x" * 10**6))) == MOST_CHARACTERS
