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

__all__ = [
    "BLOCK",
    "compiled",
    "copy_block",
    "copy_bytes",
    "copy_pieces",
    "int32_at",
    "int64_at",
    "prefetch",
    "put_byte",
    "put_int32",
    "read_only",
]

Function = TypeVar("Function", bound=Callable[..., Any])

BLOCK = 8
"""Numbers of 32 bits that are copied at once."""


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


def _pointer(builder: Any, address: Any, bits: int, lanes: int = 0) -> Any:
    kind = ir.IntType(bits)
    return builder.inttoptr(address, (ir.VectorType(kind, lanes) if lanes else kind).as_pointer())


@intrinsic
def _copy_bytes(_typing: Any, _to: Any, _source: Any, _num_bytes: Any) -> Any:
    """So many bytes from an address in memory to another."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, source, num_bytes = arguments
        pointers = _pointer(builder, to, 8), _pointer(builder, source, 8)
        cgutils.raw_memcpy(builder, *pointers, num_bytes, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _copy_block(_typing: Any, _to: Any, _source: Any, _count: Any, _added: Any) -> Any:
    """The first ``count`` of ``BLOCK`` int32, at once, a number added to each.

    A count below 1 copies nothing, one above ``BLOCK`` as many as that.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, source, count, added = arguments
        lane = ir.IntType(32)
        block, mask = ir.VectorType(lane, BLOCK), ir.VectorType(ir.IntType(1), BLOCK)
        undefined = ir.Constant(block, ir.Undefined)

        def in_each(number: Any) -> Any:
            one = builder.insert_element(undefined, builder.trunc(number, lane), lane(0))
            return builder.shuffle_vector(one, one, ir.Constant(block, [0] * BLOCK))

        places = ir.Constant(block, list(range(BLOCK)))
        wanted = builder.icmp_signed("<", places, in_each(count))
        source, to = (_pointer(builder, address, 32, BLOCK) for address in (source, to))
        load, store = (
            builder.module.declare_intrinsic(f"llvm.masked.{name}.v{BLOCK}i32.p0", fnty=kind)
            for name, kind in (
                ("load", ir.FunctionType(block, [source.type, lane, mask, block])),
                ("store", ir.FunctionType(ir.VoidType(), [block, to.type, lane, mask])),
            )
        )
        numbers = builder.call(load, [source, lane(1), wanted, undefined])
        builder.call(store, [builder.add(numbers, in_each(added)), to, lane(1), wanted])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _put_byte(_typing: Any, _to: Any, _number: Any) -> Any:
    """A number, cut to 8 bits, at an address in memory."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, number = arguments
        builder.store(builder.trunc(number, ir.IntType(8)), _pointer(builder, to, 8))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _put_int32(_typing: Any, _to: Any, _number: Any) -> Any:
    """A number, cut to 32 bits, at an address in memory, its lowest byte first."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, number = arguments
        builder.store(builder.trunc(number, ir.IntType(32)), _pointer(builder, to, 32), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _int32_at(_typing: Any, _address: Any) -> Any:
    """The number at an address in memory."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = builder.load(_pointer(builder, arguments[0], 32), align=1)
        return builder.sext(number, ir.IntType(64))

    return types.int64(types.int64), generate


@intrinsic
def _int64_at(_typing: Any, _address: Any) -> Any:
    """The number at an address in memory."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0], 64), align=1)

    return types.int64(types.int64), generate


@intrinsic
def _prefetch(_typing: Any, _address: Any) -> Any:
    """Have the processor fetch the memory around an address, which may be read soon."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place, kind = _pointer(builder, arguments[0], 8), ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch.p0",
            fnty=ir.FunctionType(ir.VoidType(), [place.type, kind, kind, kind]),
        )
        builder.call(fetch, [place, kind(0), kind(3), kind(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# On addresses in memory, for compiled functions only; nothing is checked.
copy_block: Any = _copy_block
copy_bytes: Any = _copy_bytes
int32_at: Any = _int32_at
int64_at: Any = _int64_at
prefetch: Any = _prefetch
put_byte: Any = _put_byte
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


@compiled
def copy_pieces(
    targets_P: npt.NDArray[np.int64],
    sources_P: npt.NDArray[np.int64],
    sizes_P: npt.NDArray[np.int64],
) -> None:
    """Copy so many bytes to each address from another; without the interpreter's lock."""
    for piece in range(len(sizes_P)):
        copy_bytes(targets_P[piece], sources_P[piece], sizes_P[piece])
