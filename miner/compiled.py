"""Functions compiled to machine code on their first call, by Numba."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

__all__ = ["compiled", "copy_bytes", "copy_from", "int32_at", "prefetch", "put_int32", "read_only"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function in machine code, which runs without the interpreter's lock.

    Sums of floats may be taken in any order, so that they use the processor's vectors. What was
    compiled is kept beside the module, or in the user's cache, for later processes; where neither
    can be written to, or what lies there is damaged, a process compiles anew. Indices are not
    checked.
    """
    machine_code: Any = numba.njit(nogil=True, fastmath={"reassoc", "contract"})(function)
    with contextlib.suppress(RuntimeError):  # there is nowhere to keep it
        machine_code._cache = _Cache(function)
    kept: Function = machine_code
    return kept


@intrinsic
def _copy_bytes(_typing: Any, target: Any, _at: Any, source: Any, _begin: Any, _count: Any) -> Any:
    """``target[at:at + count] = source[begin:begin + count]`` of two arrays of uint8, at once.

    For compiled functions only. Bounds are not checked.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, to_at, of, of_at, number = arguments
        pointers = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [place])
            for kind, array, place in ((target, to, to_at), (source, of, of_at))
        ]
        cgutils.raw_memcpy(builder, *pointers, number, 1)
        return context.get_dummy_value()

    sizes = types.intp, types.intp
    return types.void(target, sizes[0], source, *sizes), generate


@intrinsic
def _put_int32(_typing: Any, target: Any, _at: Any, _number: Any) -> Any:
    """``target[at:at + 4]`` of an array of uint8 becomes the number, its lowest byte first.

    For compiled functions only. Bounds are not checked; numbers are cut to 32 bits.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, at, number = arguments
        data = context.make_array(target)(context, builder, to).data
        place = builder.bitcast(builder.gep(data, [at]), ir.IntType(32).as_pointer())
        builder.store(builder.trunc(number, ir.IntType(32)), place, align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp), generate


@intrinsic
def _prefetch(_typing: Any, source: Any, _at: Any) -> Any:
    """Have the processor fetch the memory around item ``at`` of an array, which may be read soon.

    For compiled functions only. Bounds do not matter.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        of, at = arguments
        data = context.make_array(source)(context, builder, of).data
        place = builder.bitcast(builder.gep(data, [at]), ir.IntType(8).as_pointer())
        kind = ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch.p0",
            fnty=ir.FunctionType(ir.VoidType(), [place.type, kind, kind, kind]),
        )
        builder.call(fetch, [place, kind(0), kind(3), kind(1)])
        return context.get_dummy_value()

    return types.void(source, types.intp), generate


@intrinsic
def _copy_from(_typing: Any, target: Any, _at: Any, _address: Any, _count: Any) -> Any:
    """As `copy_bytes`, from an address in memory."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, at, address, number = arguments
        place = builder.gep(context.make_array(target)(context, builder, to).data, [at])
        source = builder.inttoptr(address, place.type)
        cgutils.raw_memcpy(builder, place, source, number, 1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, types.intp), generate


@intrinsic
def _int32_at(_typing: Any, _address: Any) -> Any:
    """The number at an address in memory. For compiled functions only."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.sext(builder.load(place, align=1), ir.IntType(64))

    return types.int64(types.intp), generate


copy_bytes: Any = _copy_bytes
copy_from: Any = _copy_from
int32_at: Any = _int32_at
prefetch: Any = _prefetch
put_int32: Any = _put_int32


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, a memory map or not, so that a function is compiled only once for both."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's, which takes files for whole that are not, and no notice of functions called."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever damaged files may raise
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):  # a full disk, or damaged files
            super().save_overload(sig, data)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), _digest_of_sources())


@functools.cache
def _digest_of_sources() -> str:
    """Of all modules with compiled functions: one may hold a copy of another's code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source = path.read_bytes()
        if b"@compiled" in source:
            digest.update(source)
    return digest.hexdigest()
