"""Elements of a tensor at an address."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from edge_monitor.kernels._jit import kernel

FLOAT32, FLOAT16, INT8, UINT8 = KINDS = range(4)
ITEM_SIZES = (4, 2, 1, 1)


def reader(c_type: Any, element: Any, result: Any) -> Callable[[int], float]:  # noqa: ANN401
    """Make the function that reads one element at an address."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return lambda address: c_type.from_address(int(address)).value  # NumPy's integers are refused

    def read(_: Any, address: Any) -> Any:  # noqa: ANN401
        def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:  # noqa: ANN401
            pointer = builder.inttoptr(values[0], context.get_value_type(element).as_pointer())
            loaded = builder.load(pointer, align=ctypes.sizeof(c_type))
            return context.cast(builder, loaded, element, result)

        return result(address), generate

    return cast("Callable[[int], float]", intrinsic(read))


_float32 = reader(ctypes.c_float, types.float32, types.float64)
_uint16 = reader(ctypes.c_uint16, types.uint16, types.int64)
_int8 = reader(ctypes.c_int8, types.int8, types.int64)
_uint8 = reader(ctypes.c_uint8, types.uint8, types.int64)


@kernel("int64(int64)")
def item_size(kind: int) -> int:
    """Bytes of one element."""
    return 4 if kind == FLOAT32 else 2 if kind == FLOAT16 else 1


@kernel("float64(int64)")
def half(bits: int) -> float:
    """Return the number that a float16's bits stand for."""
    sign = -1.0 if bits & 0x8000 else 1.0
    exponent, fraction = bits >> 10 & 0x1F, bits & 0x3FF
    if exponent == 0x1F:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(fraction, -24)
    return sign * math.ldexp(0x400 + fraction, exponent - 25)


@kernel("float64(int64, int64)")
def element(kind: int, address: int) -> float:
    """Read one element; integers as they are stored."""
    if kind == FLOAT32:
        return _float32(address)
    if kind == FLOAT16:
        return half(int(_uint16(address)))
    return np.float64(_int8(address) if kind == INT8 else _uint8(address))
