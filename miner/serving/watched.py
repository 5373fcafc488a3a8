"""A value that is read from files, and read again when they change.

    good --(files change, they read well)--> good, with the new value
      +---(files change, they do not)------> good, with the old value, and the reason in the log

It knows nothing of what the files hold. Safe to use from several threads: gRPC asks for
certificates from threads of its own.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from miner.errors import ConfigError

__all__ = ["LOOK_EVERY_S", "Watched"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How soon a changed file is noticed, by whoever asks next."""

Value = TypeVar("Value")


class Watched(Generic[Value]):
    """The newest good value of some files.

    Args:
        paths: The files that it depends on.
        read: Gives the value, or raises ConfigError.

    Raises:
        ConfigError: There is no good value to begin with.
    """

    def __init__(self, paths: Iterable[Path], read: Callable[[], Value]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._value = read()
        self._looked_s = time.monotonic()

    @property
    def value(self) -> Value:
        """At most `LOOK_EVERY_S` old, as long as the files are good."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = now_s
                self._look()
            return self._value

    def _look(self) -> None:
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        names = ", ".join(str(path) for path in self._paths)
        try:
            self._value = self._read()
        except ConfigError as exc:
            logger.error("%s changed and cannot be used, the old content stays: %s", names, exc)
        else:
            logger.info("%s changed and is in use now", names)

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_signature_of(path) for path in self._paths]


def _signature_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
