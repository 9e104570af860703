"""Product of a vector and a matrix in single precision, added up in vectors of the processor.

Numba's own vectoriser enters a loop anew for every few rows, and for rows as short as a tap's features that
costs more than the arithmetic. Here the sums of 16 columns stay in registers from the first row to the last.
The order of additions is written down, groups of four rows at a time, and is the same in plain code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel, vector_kernel
from edge_monitor.kernels.lanes import FLOATS, I64, LANES, Value, constant, splat

Float32Array = NDArray[np.float32]


@kernel("void(float32[::1], float32[::1], boolean, int64, int64, float32[::1])")
def add_columns(
    vector: Float32Array, matrix: Float32Array, biased: bool, first: int, stop: int, out: Float32Array
) -> None:
    """`product` for the columns from ``first`` to ``stop``, in plain code."""
    n, m = out.size, vector.size
    whole = m - m % 4
    for j in range(first, stop):
        total = matrix[m * n + j] if biased else np.float32(0.0)
        for i in range(0, whole, 4):
            row = i * n + j
            total += (vector[i] * matrix[row] + vector[i + 1] * matrix[row + n]) + (
                vector[i + 2] * matrix[row + 2 * n] + vector[i + 3] * matrix[row + 3 * n]
            )
        for i in range(whole, m):
            total += vector[i] * matrix[i * n + j]
        out[j] = total


def _vector_code(_: Value, vector: Value, matrix: Value, biased: Value, first: Value, out: Value) -> Value:
    """Generate `product` for the `LANES` columns from ``first`` on."""

    def generate(context: Any, builder: Value, signature: Any, values: Any) -> Value:  # noqa: ANN401
        inputs, weights, sums = (
            context.make_array(signature.args[i])(context, builder, values[i]) for i in (0, 1, 4)
        )
        m, n = inputs.nitems, sums.nitems

        def place(data: Value, index: Value) -> Value:
            return builder.bitcast(builder.gep(data, [index]), FLOATS.as_pointer())

        def row(i: Value) -> Value:
            index = builder.add(builder.mul(i, n), values[3])
            return builder.load(place(weights.data, index), align=4)

        def term(i: Value) -> Value:
            return builder.fmul(splat(builder, builder.load(builder.gep(inputs.data, [i]))), row(i))

        def add(rows: Value) -> None:
            builder.store(builder.fadd(builder.load(total), rows), total)

        with builder.goto_entry_block():
            total = builder.alloca(FLOATS)
        builder.store(constant(FLOATS, 0.0), total)
        with builder.if_then(values[2]):
            builder.store(row(m), total)
        whole = builder.and_(m, I64(-4))
        with cgutils.for_range(builder, builder.ashr(whole, I64(2))) as group:
            i = builder.shl(group.index, I64(2))
            a, b, c, d = (term(builder.add(i, I64(k))) for k in range(4))
            add(builder.fadd(builder.fadd(a, b), builder.fadd(c, d)))
        with cgutils.for_range(builder, builder.sub(m, whole)) as rest:
            add(term(builder.add(whole, rest.index)))
        builder.store(builder.load(total), place(sums.data, values[3]), align=4)
        return context.get_dummy_value()

    return types.void(vector, matrix, biased, first, out), generate


add_lanes = cast(
    "Callable[[Float32Array, Float32Array, bool, int, Float32Array], None]", intrinsic(_vector_code)
)


def in_columns(vector: Float32Array, matrix: Float32Array, biased: bool, out: Float32Array) -> None:
    """Plain code of ``product``: column by column, with the same result to the last bit."""
    add_columns(vector, matrix, biased, 0, out.size, out)


@vector_kernel("void(float32[::1], float32[::1], boolean, float32[::1])", plain=in_columns)
def product(vector: Float32Array, matrix: Float32Array, biased: bool, out: Float32Array) -> None:
    """Give ``vector`` (m,) times the first m rows of ``matrix``; ``biased``: its row m is added.

    ``matrix``: m rows, or m + 1, of as many columns as ``out`` (n,) is long, flattened row by row.
    """
    n = out.size
    if n < LANES:
        add_columns(vector, matrix, biased, 0, n, out)
        return
    for first in range(0, n - LANES, LANES):
        add_lanes(vector, matrix, biased, first, out)
    add_lanes(vector, matrix, biased, n - LANES, out)  # some of these columns may be there already
