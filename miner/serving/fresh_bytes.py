"""A ``bytes`` that is filled in place: gRPC takes nothing else, and a copy costs what sending does.

It uses CPython's interface for extensions, which lets the maker of a new ``bytes`` write to it.
"""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["fresh_bytes"]

_new: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.argtypes, _new.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
_address: Any = ctypes.pythonapi.PyBytes_AsString
_address.argtypes, _address.restype = (ctypes.py_object,), ctypes.c_void_p


def fresh_bytes(num_bytes: int) -> tuple[bytes, int]:
    """So many bytes of any content, at least 2, and where they lie, to write them there.

    They are for the caller alone to write, while it has them and before anybody else gets them.
    """
    if num_bytes < 2:
        raise ValueError(f"{num_bytes} bytes: the interpreter shares those below 2")
    fresh: bytes = _new(None, num_bytes)
    return fresh, _address(fresh)
