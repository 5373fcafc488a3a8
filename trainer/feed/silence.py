r"""Ends a call that has gone silent; the deadline of gRPC is that of a whole stream, however alive.

    resting --watch--> watching --watch, in time--> watching
                          \--(silence)--> call cancelled
                          \--rest--> resting

It knows nothing of what the call brings.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

__all__ = ["SilenceWatch"]


class Cancellable(Protocol):
    """A call under way."""

    def cancel(self) -> bool:
        """End it, from any thread."""


class SilenceWatch:
    """One thread that watches one call at a time; a context manager."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._call: Cancellable | None = None
        self._closed = False
        self._due_s = self._wakes_s = math.inf
        self._thread = threading.Thread(target=self._run, name="coalface-silence", daemon=True)

    def watch(self, call: Cancellable, longest_s: float) -> None:
        """Cancel ``call`` in ``longest_s``, unless this is said again before, or :meth:`rest`."""
        with self._changed:
            self._call, self._due_s = call, time.monotonic() + longest_s
            if self._due_s < self._wakes_s:  # or it finds out by itself when it wakes
                self._changed.notify()

    def rest(self) -> bool:
        """Watch no more; whether a call was watched still, rather than cancelled."""
        with self._changed:
            call, self._call = self._call, None
            return call is not None

    def __enter__(self) -> SilenceWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                self._wakes_s = math.inf if self._call is None else self._due_s
                left_s = self._wakes_s - time.monotonic()
                if self._call is not None and left_s <= 0:
                    self._call.cancel()
                    self._call = None
                else:
                    self._changed.wait(None if self._call is None else left_s)
