"""Threads of a search, each with products of its own. It knows nothing of what they search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
from threadpoolctl import threadpool_limits

__all__ = ["Each", "workers"]


@dataclass(frozen=True, slots=True)
class Each:
    """Calls a function for each number, in any order, several at once.

    Attributes:
        num_threads: How many at once.
    """

    num_threads: int
    pool: ThreadPoolExecutor

    def __call__(self, work: Callable[[int], None], numbers: range) -> None:
        """Returns when all are done; raises what one of them raised."""

        def one(number: int) -> None:
            faiss.omp_set_num_threads(1)  # of this thread only
            work(number)

        for _ in self.pool.map(one, numbers):
            pass


@contextmanager
def workers(num_threads: int) -> Iterator[Each]:
    """Runs a function over numbers in ``num_threads`` threads with one BLAS thread each.

    One large product per thread uses the processor better than many threads on small ones, and
    what is not a product runs in parallel too.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads) as pool:
        yield Each(num_threads, pool)
