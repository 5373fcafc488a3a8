"""Functions compiled to machine code on their first call, by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["compiled", "read_only"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function in machine code, which runs without the interpreter's lock.

    Sums of floats may be taken in any order, so that they use the processor's vectors. What was
    compiled is kept beside the module, or in the user's cache, for later processes; where neither
    can be written to, each process compiles anew. Indices are not checked.
    """
    settings: Any = {"nogil": True, "fastmath": {"reassoc", "contract"}}
    try:
        machine_code: Function = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # nowhere to keep it
        machine_code = numba.njit(**settings)(function)
    return machine_code


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, a memory map or not, so that a function is compiled only once for both."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
