"""Threads of a search, each with products of its own. It knows nothing of what they search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import faiss
from threadpoolctl import threadpool_limits

__all__ = ["Each", "workers"]

Each = Callable[[Callable[[int], None], range], None]
"""Calls a function for each number, in any order, perhaps at once."""


@contextmanager
def workers(num_threads: int) -> Iterator[Each]:
    """Runs a function over numbers in ``num_threads`` threads with one BLAS thread each.

    One large product per thread uses the processor better than many threads on small ones, and
    what is not a product runs in parallel too.
    """

    def quietly(work: Callable[[int], None]) -> Callable[[int], None]:
        def one(number: int) -> None:
            faiss.omp_set_num_threads(1)  # of this thread only
            work(number)

        return one

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads) as pool:

        def each(work: Callable[[int], None], numbers: range) -> None:
            for _ in pool.map(quietly(work), numbers):
                pass

        yield each
