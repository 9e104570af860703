"""Sums over the strips of a tap's program.

A program is a list of integers, written when the tap is attached (``taps.strip_program``): *strips*, each
followed by its *folds*. A strip is N_OUTER times N_INNER vectors of LANES elements, OUTER_STRIDE and
INNER_STRIDE elements apart, in all of which a lane means the same, and whose first FILLED lanes count. After
each N_INNER comes one more vector of which TAIL lanes count, if TAIL > 0. Where several rows of PERIOD lanes
share a vector, a lane's *place* is the one in its row. A fold adds the lanes of places FIRST to STOP to a
voxel. Sums of channels begin with CHANNEL: one for each N_INNER or, if LANES_ARE_CHANNELS, one for each
place.

Vector code sums a lane of floats in float32 and widens what is in the lane at the end of the strip to
float64. Integers are summed exactly. Plain code sums everything in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import vector_kernel
from edge_monitor.kernels.memory import element, item_size
from edge_monitor.kernels.vector import (
    CHANNEL,
    FILLED,
    FIRST,
    FOLD,
    INNER_STRIDE,
    LANES_ARE_CHANNELS,
    N_FOLDS,
    N_INNER,
    N_OUTER,
    OUTER_STRIDE,
    PERIOD,
    START,
    STOP,
    STRIP,
    TAIL,
    VOXEL,
    run_vector_code,
)  # fmt: skip

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def run_elements(
    kind: int,
    address: int,
    last: int,  # noqa: ARG001 - it never reads more than what counts
    zero_point: int,
    variant: int,  # noqa: ARG001 - the program of a signal has no folds
    begin: int,
    n_strips: int,
    program: IntArray,
    out_voxels: FloatArray,
    out_channels: FloatArray,
) -> None:
    """Plain code of ``run_strips``: element by element, in float64."""
    size = item_size(kind)
    cursor = begin
    for _ in range(n_strips):
        strip = program[cursor : cursor + STRIP]
        cursor += STRIP
        fold_stop = cursor + FOLD * strip[N_FOLDS]
        for outer in range(strip[N_OUTER]):
            for inner in range(strip[N_INNER] + 1):
                index = strip[START] + outer * strip[OUTER_STRIDE] + inner * strip[INNER_STRIDE]
                for lane in range(strip[FILLED] if inner < strip[N_INNER] else strip[TAIL]):
                    a = element(kind, address + size * (index + lane)) - zero_point
                    place = lane % strip[PERIOD]
                    channel = strip[CHANNEL] + (place if strip[LANES_ARE_CHANNELS] else outer)
                    out_channels[channel] += abs(a)
                    for fold in range(cursor, fold_stop, FOLD):
                        if program[fold + FIRST] <= place < program[fold + STOP]:
                            voxel = program[fold + VOXEL]
                            out_voxels[voxel, 0] += abs(a)
                            out_voxels[voxel, 1] += a
                            out_voxels[voxel, 2] += a * a
        cursor = fold_stop


@vector_kernel("void(" + 7 * "int64, " + "int64[::1], float64[:, ::1], float64[::1])", plain=run_elements)
def run_strips(
    kind: int,
    address: int,
    last: int,
    zero_point: int,
    variant: int,
    begin: int,
    n_strips: int,
    program: IntArray,
    out_voxels: FloatArray,
    out_channels: FloatArray,
) -> None:
    """Add the elements at an address to voxels and channels, as the program says from ``begin`` on.

    ``last``: highest address from which whole vectors may be read.
    """
    scalars = (kind, address, last, zero_point, variant, begin, n_strips)
    run_vector_code(scalars, program, out_voxels, out_channels)
