"""What memory there is for a search, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil

__all__ = ["free_mb", "give_back"]


def free_mb() -> float:
    """Memory that can be had without swapping; of the machine, or of the container if less."""
    available_mb: float = psutil.virtual_memory().available / 1e6
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        return min(available_mb, (int(limit) - int(used)) / 1e6)
    except (OSError, ValueError):  # no such container, or one without a limit
        return available_mb


def give_back() -> None:
    """Return freed memory to the system, of which glibc keeps some hundred MB after a search."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
