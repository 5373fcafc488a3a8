"""Batches that are decoded on other threads while the ones before them are embedded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

__all__ = ["DecodeAhead"]


class DecodeAhead:
    """Decodes ahead of whoever embeds, as many batches as it has threads and no more."""

    def __init__(self, decode: Callable[[pa.RecordBatch], Any], num_threads: int) -> None:
        """With so many threads; none: each batch is decoded when it is asked for."""
        self._decode = decode
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, "decode") if num_threads else None

    def of(
        self, batches: Iterator[pa.RecordBatch], on_begin: Callable[[pa.RecordBatch], None]
    ) -> Generator[tuple[pa.RecordBatch, Callable[[], Any]], None, None]:
        """Each batch, in order, with a call that gives what was decoded from it, or raises.

        When this is closed, those that are being decoded are waited for, others given up.

        Args:
            batches: The batches.
            on_begin: Called with each batch just before it is decoded, in order, by the caller's
                thread.
        """
        if self._threads is None:
            for batch in batches:
                on_begin(batch)
                yield batch, partial(self._decode, batch)
            return
        begun: deque[tuple[pa.RecordBatch, Future[Any]]] = deque()
        try:
            while True:
                for batch in islice(batches, self._num_threads + 1 - len(begun)):
                    on_begin(batch)
                    begun.append((batch, self._threads.submit(self._decode, batch)))
                if not begun:
                    return
                batch, decoded = begun.popleft()
                yield batch, decoded.result
        finally:
            wait([decoded for _, decoded in begun if not decoded.cancel()])
