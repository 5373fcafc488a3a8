"""Blocks of a large array, several worked on at once, with their results in order.

NumPy lets go of the interpreter while it computes. Knows nothing of what is computed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["cut", "do_blocks", "map_blocks"]

_MAX_THREADS = 8
"""Every thread holds a block's working arrays; NumPy gains little from more."""

_inside = threading.local()

Block = TypeVar("Block")
Result = TypeVar("Result")


def cut(length: int, block: int) -> list[slice]:
    """Cut ``0 .. length`` into slices of ``block``; the last one may be shorter.

    Example:
        >>> cut(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(begin, min(begin + block, length)) for begin in range(0, length, block)]


def map_blocks(work: Callable[[Block], Result], blocks: Iterable[Block]) -> Iterator[Result]:
    """``work(block)`` of each block in order, several worked on at once.

    Guarantee: the same results, and the same exception if any, whatever the number of threads, as
    long as ``work`` writes to nothing that it reads or writes for another block. Within ``work`` a
    further call runs in the same thread.

    Example:
        >>> list(map_blocks(lambda part: sum(range(9)[part]), cut(9, 4)))
        [6, 22, 8]
    """
    blocks = list(blocks)
    num_threads = min(len(blocks), os.cpu_count() or 1, _MAX_THREADS)
    if num_threads < 2 or getattr(_inside, "a_block", False):
        yield from map(work, blocks)
        return
    with ThreadPoolExecutor(num_threads, initializer=_enter) as threads:
        yield from threads.map(work, blocks)


def do_blocks(work: Callable[[Block], None], blocks: Iterable[Block]) -> None:
    """Do the work of every block, as :func:`map_blocks`."""
    for _ in map_blocks(work, blocks):
        pass


def _enter() -> None:
    _inside.a_block = True
