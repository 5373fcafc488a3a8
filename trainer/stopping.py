"""SIGTERM and Ctrl-C end training at a step boundary, with a checkpoint.

A second Ctrl-C ends the process at once; a second SIGTERM changes nothing, for launchers and
schedulers are known to send it twice.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

__all__ = ["StopRequest", "stop_on_signals"]

Value = TypeVar("Value")


class _Interrupted(BaseException):
    """Raised in the main thread, only inside :meth:`StopRequest.wait`."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._waiting = False

    def wait(self, call: Callable[[], Value]) -> Value | None:
        """The result of ``call``; None as soon as a stop is asked for, be it during the call."""
        try:
            try:
                # In this order: a signal in between is seen by the one or the other.
                self._waiting = True
                return None if self.signal_number is not None else call()
            finally:
                self._waiting = False
        except _Interrupted:
            return None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if self._waiting:
            self._waiting = False
            raise _Interrupted


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Watch SIGTERM and SIGINT; outside the main thread nothing is watched."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    watched = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop._on_signal) for number in watched}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
