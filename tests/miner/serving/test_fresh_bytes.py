"""Bytes that are filled in place are bytes like any others afterwards."""

import ctypes

import numpy as np
import pytest

from miner.serving.fresh_bytes import fresh_bytes


def test_what_is_written_is_what_they_are() -> None:
    fresh, address = fresh_bytes(300_000)
    values = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8)
    ctypes.memmove(address, values.tobytes(), len(values))
    assert len(fresh) == 300_000
    assert type(fresh) is bytes
    assert fresh == values.tobytes()
    assert hash(fresh) == hash(values.tobytes())


def test_each_has_memory_of_its_own() -> None:
    made = [fresh_bytes(2) for _ in range(100)]
    for number, (_, address) in enumerate(made):
        ctypes.memmove(address, bytes((number, 255 - number)), 2)
    assert [fresh for fresh, _ in made] == [bytes((n, 255 - n)) for n in range(100)]


@pytest.mark.parametrize("num_bytes", [-1, 0, 1])
def test_bytes_that_the_interpreter_shares_are_never_given(num_bytes: int) -> None:
    with pytest.raises(ValueError, match="shares those below 2"):
        fresh_bytes(num_bytes)
