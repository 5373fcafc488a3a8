"""The fingerprint of values: how an array lies in memory does not count, its content does."""

import numpy as np
import pyarrow as pa
import pytest

from miner.data.fingerprint import fingerprint_dataset


def of(keys: pa.Array) -> str:
    return fingerprint_dataset([("a", 1, 2)], [("id", "x")], [keys], np.zeros(2, np.int32))


@pytest.mark.parametrize("values", [["a", "bc", "", "é"], [3, 1, 2**40, -1]])
def test_a_slice_and_a_copy_of_it_have_one_fingerprint(values: list[str] | list[int]) -> None:
    whole = pa.array(values)
    for begin in range(len(values)):
        for length in range(len(values) - begin + 1):
            copied = pa.array(values[begin : begin + length], whole.type)
            assert of(whole.slice(begin, length)) == of(copied)


def test_values_that_only_join_to_the_same_text_differ() -> None:
    arrays = (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc"], [1, 2], [2, 1])
    assert len({of(pa.array(values)) for values in arrays}) == len(arrays)
