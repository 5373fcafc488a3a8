"""Batches are decoded while others are embedded, in order, and not without bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from miner.workers.decode import DecodeAhead

TIMEOUT_S = 20.0


def make(number: int) -> pa.RecordBatch:
    return pa.record_batch({"row_id": [number]})


def number_of(batch: pa.RecordBatch) -> int:
    number: int = batch["row_id"][0].as_py()
    return number


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_each_batch_comes_in_order_with_what_was_decoded_from_it(num_threads: int) -> None:
    begun: list[int] = []
    ahead = DecodeAhead(lambda batch: number_of(batch) * 10, num_threads)
    found = [
        (number_of(batch), decode())
        for batch, decode in ahead.of(
            map(make, range(20)), lambda batch: begun.append(number_of(batch))
        )
    ]
    assert found == [(number, number * 10) for number in range(20)]
    assert begun == list(range(20))


def test_the_next_batches_are_decoded_while_one_is_embedded() -> None:
    decoded = [threading.Event() for _ in range(6)]
    ahead = DecodeAhead(lambda batch: decoded[number_of(batch)].set(), 2)
    for number, (_, decode) in enumerate(ahead.of(map(make, range(6)), lambda _: None)):
        decode()
        following = decoded[number : number + 3]
        assert all(event.wait(TIMEOUT_S) for event in following)


def test_no_more_batches_are_taken_than_there_are_threads() -> None:
    taken: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(20):
            taken.append(number)
            yield make(number)

    for number, _ in enumerate(DecodeAhead(number_of, 2).of(batches(), lambda _: None)):
        assert len(taken) <= number + 3


@pytest.mark.parametrize("num_threads", [0, 2])
def test_what_a_batch_raises_comes_at_its_turn_and_the_next_use_is_sound(num_threads: int) -> None:
    def decode(batch: pa.RecordBatch) -> int:
        if number_of(batch) == 3:
            raise ValueError("batch 3")
        return number_of(batch)

    ahead, found = DecodeAhead(decode, num_threads), []

    def run(numbers: range) -> None:
        for _, decoded in ahead.of(map(make, numbers), lambda _: None):
            found.append(decoded())

    with pytest.raises(ValueError, match="batch 3"):
        run(range(9))
    assert found == [0, 1, 2]
    run(range(4, 9))
    assert found[3:] == [4, 5, 6, 7, 8]


def test_closing_waits_for_what_is_being_decoded() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def decode(batch: pa.RecordBatch) -> None:
        if number_of(batch) == 1:
            begun.set()
            may_end.wait(TIMEOUT_S)
            ended.append(number_of(batch))

    batches = DecodeAhead(decode, 1).of(map(make, range(9)), lambda _: None)
    next(batches)
    assert begun.wait(TIMEOUT_S)
    threading.Timer(0.05, may_end.set).start()
    batches.close()
    assert ended == [1]
