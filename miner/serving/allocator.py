"""Keeps the memory of sent messages at hand; knows glibc's allocator and nothing else.

A stream allocates and frees megabytes a thousand times a second. By default glibc gives each back
to the system and gets it again page by page: up to half of the time of making a message.
"""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 16 * 2**20
"""Freed memory that a thread's arena keeps."""
MAPPED_BYTES = 8 * 2**20
"""Larger blocks go back to the system when they are freed."""


def keep_freed_memory() -> None:
    """For the whole process, once and for all; does nothing where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
