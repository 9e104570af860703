"""Memory that will be needed soon is asked for early, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from edge_monitor.kernels._jit import vector_kernel

FloatArray = NDArray[np.float64]

LINE = 8
"""Numbers in one line of the cache: 64 bytes on all common processors; elsewhere only speed is lost."""


def _fetch(_: Any, array: Any, index: Any) -> Any:  # noqa: ANN401
    """Generate LLVM's prefetch of one number of an array: a hint without any effect on results."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ANN401
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        address = builder.bitcast(builder.gep(data, [values[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [address.type],
            ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32]),
        )
        builder.call(hint, [address, i32(0), i32(3), i32(1)])  # to read, for long, data
        return context.get_dummy_value()

    return types.void(array, index), generate


fetch = cast("Callable[[FloatArray, int], None]", intrinsic(_fetch))


def fetch_nothing(array: FloatArray, first: int, n: int) -> None:
    """Stand in for ``fetch_row`` where there is no such hint."""


@vector_kernel("void(float64[::1], int64, int64)", plain=fetch_nothing)
def fetch_row(array: FloatArray, first: int, n: int) -> None:
    """Ask for the n numbers from ``first`` on; nothing is read or written."""
    for start in range(first, first + n, LINE):
        fetch(array, start)
    if n > 0:
        fetch(array, first + n - 1)  # a row may begin within a line, and then ends in one more
