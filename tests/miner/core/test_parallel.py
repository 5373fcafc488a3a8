"""Blocks worked on by several threads: results, order and exceptions are those of one."""

import threading

import pytest

from miner.core import parallel
from miner.core.parallel import cut, do_blocks, map_blocks


@pytest.fixture(autouse=True)
def four_processors(monkeypatch):
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 4)


def test_slices_cover_the_length_once():
    assert [i for part in cut(23, 5) for i in range(23)[part]] == list(range(23))
    assert cut(0, 5) == []


def test_results_stand_in_order_however_long_each_block_takes():
    last_done = threading.Event()

    def work(block: int) -> int:
        if block == 3:
            last_done.set()
        assert last_done.wait(10)  # the first three end after the last
        return block

    assert list(map_blocks(work, range(4))) == [0, 1, 2, 3]


def test_of_several_exceptions_the_first_block_has_its_own_raised():
    def work(block: int) -> None:
        if block % 2:
            raise ValueError(f"block {block}")

    with pytest.raises(ValueError, match="block 1"):
        do_blocks(work, range(8))


def test_work_within_work_stays_in_its_thread():
    def inner(_: int) -> int:
        return threading.get_ident()

    def work(_: int) -> bool:
        return set(map_blocks(inner, range(3))) == {threading.get_ident()}

    assert all(map_blocks(work, range(4)))


def test_a_single_block_needs_no_thread():
    assert list(map_blocks(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]
