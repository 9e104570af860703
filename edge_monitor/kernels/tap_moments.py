"""Voxel and channel sums of all taps of one frame, read where the runtime keeps them (design D1-D3).

A tensor of C x H x W elements lies in memory as [ceil(C / B), H, W, B]: B = 1 is NCHW, B = C is NHWC, any
other B is a blocked layout (NCHWc), whose last block may be filled up with channels that do not count.

A tap is read once if it is what taps mostly are, the output of a ReLU. It is read again

- with |a| of its own and about a pivot, if an element is negative, or if a voxel's mean lies more than three
  of its standard deviations from zero. The pivot of each lane of a strip is its first element. One of n
  elements is at most sqrt(n), and usually about one, standard deviations away from their mean: sum a^2 keeps
  the variance as well at a mean of 10 000 deviations as at zero
  (test_tap_moments.py::test_density_precision_beyond_ten_deviations);
- element by element, in float64 and without what is not finite, if a sum is not finite: because of a NaN or
  Inf, or because a square is beyond float32.

Sum |a| is wrong by less than 1e-5 of itself (by 1e-7 on random data), and so is sum a by less than 1e-5 of
sum |a|. Integers are summed exactly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.lanes import FULL, LANES, POSITIVE, SIGNAL
from edge_monitor.kernels.memory import FLOAT16, element, item_size
from edge_monitor.kernels.strips import run_strips

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Columns of the tap table (n_taps, N_COLUMNS): address of the tap's first element and of the first byte
# behind its last one (in a block that is filled up, behind the filling), kind of its elements (``memory``),
# zero point, B, shape, grid, where its voxels and channels are among those of all taps, whether voxels are
# wanted in this frame; and where the program has its strips for the signal alone and with voxels, how many
# they are, and where it has the number of elements of every voxel.
(
    ADDRESS, END, KIND, ZERO_POINT, BLOCK, CHANNELS, HEIGHT, WIDTH, CHANNEL_GROUPS, ROW_GROUPS, COLUMN_GROUPS,
    FIRST_VOXEL, FIRST_CHANNEL, SPATIAL, SIGNAL_BEGIN, SIGNAL_STRIPS, SPATIAL_BEGIN, SPATIAL_STRIPS, COUNTS,
) = range(19)  # fmt: skip
N_COLUMNS = 19


@kernel("float64(float64[::1])")
def total(values: FloatArray) -> float:
    """Sum; four partial sums, so that no addition waits for the one before."""
    a = b = c = d = 0.0
    whole = values.size - values.size % 4
    for i in range(0, whole, 4):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
    for i in range(whole, values.size):
        a += values[i]
    return (a + b) + (c + d)


@kernel("float64(int64[::1], int64[::1], int64, float64[:, ::1], float64[::1])")
def run_tap(
    tap: IntArray, program: IntArray, variant: int, out_voxels: FloatArray, out_channels: FloatArray
) -> float:
    """Sum a tap; return sum |a|, or what is not finite if a sum is not."""
    out_voxels[:] = 0.0
    out_channels[:] = 0.0
    run_strips(
        tap[KIND],
        tap[ADDRESS],
        tap[END] - LANES * item_size(tap[KIND]),
        tap[ZERO_POINT],
        variant,
        tap[SIGNAL_BEGIN] if variant == SIGNAL else tap[SPATIAL_BEGIN],
        tap[SIGNAL_STRIPS] if variant == SIGNAL else tap[SPATIAL_STRIPS],
        program,
        out_voxels,
        out_channels,
    )
    size = total(out_channels)
    squares = 0.0
    for voxel in range(out_voxels.shape[0]):
        squares += out_voxels[voxel, 2]
    return size if math.isfinite(squares) else squares


@kernel("boolean(float64[:, ::1], int64[::1], int64)")
def far_from_zero(voxels: FloatArray, program: IntArray, counts: int) -> bool:
    """Whether a voxel's mean lies three or more of its standard deviations from zero."""
    for voxel in range(voxels.shape[0]):
        if voxels[voxel, 1] ** 2 > 0.9 * program[counts + voxel] * voxels[voxel, 2]:
            return True
    return False


@kernel("int64(int64[::1], float64[:, ::1], float64[::1])")
def sum_finite(tap: IntArray, out_voxels: FloatArray, out_channels: FloatArray) -> int:
    """Sum a tap of floats without what is not finite; return how many those were."""
    n_channels, height, width, block = tap[CHANNELS], tap[HEIGHT], tap[WIDTH], tap[BLOCK]
    groups, rows, columns = tap[CHANNEL_GROUPS], tap[ROW_GROUPS], tap[COLUMN_GROUPS]
    size = item_size(tap[KIND])
    nonfinite = 0
    out_voxels[:] = 0.0
    for group in range(groups):
        for channel in range(group * n_channels // groups, (group + 1) * n_channels // groups):
            start = channel // block * block * height * width + channel % block
            channel_abs = 0.0
            for i in range(rows):
                for j in range(columns):
                    voxel_abs = voxel_sum = voxel_square = 0.0
                    for row in range(i * height // rows, (i + 1) * height // rows):
                        for column in range(j * width // columns, (j + 1) * width // columns):
                            index = start + (row * width + column) * block
                            a = element(tap[KIND], tap[ADDRESS] + size * index)
                            if math.isfinite(a):
                                voxel_abs += abs(a)
                                voxel_sum += a
                                voxel_square += a * a
                            else:
                                nonfinite += 1
                    channel_abs += voxel_abs
                    if tap[SPATIAL]:
                        voxel = (group * rows + i) * columns + j
                        out_voxels[voxel, 0] += voxel_abs
                        out_voxels[voxel, 1] += voxel_sum
                        out_voxels[voxel, 2] += voxel_square
            out_channels[channel] = channel_abs
    return nonfinite


@kernel(
    "void(int64[:, ::1], int64[::1], float64[::1], float64[::1], int64[::1], float64[:, ::1], float64[::1])"
)
def tap_moments(
    taps: IntArray,
    program: IntArray,
    scales: FloatArray,
    out_signals: FloatArray,
    out_nonfinite: IntArray,
    out_voxels: FloatArray,
    out_channels: FloatArray,
) -> None:
    """Reduce one frame of all taps in one call.

    Parameters
    ----------
    taps : (n_taps, N_COLUMNS) int64
        Where each tap is, what it holds and how it is divided; grids already clamped to the shapes.
    program : (n,) int64
        All taps' strips, and their voxels' counts of elements.
    scales : (n_taps,) float64
        Step of integers: a = scale * (q - zero point). Not used for floats.
    out_signals : (n_taps,) float64
        mean |a| over finite elements (D1), NaN when a tap has none.
    out_nonfinite : (n_taps,) int64
        NaN and infinities; they are left out of all sums.
    out_voxels : (n_voxels, 3) float64
        sum |a|, sum a, sum a^2 of every voxel (D3), channel group slowest, then row, then column. Those of
        taps that are not SPATIAL in this frame are left as they are.
    out_channels : (n_channels,) float64
        sum |a| of every channel.
    """
    for t in range(taps.shape[0]):
        tap = taps[t]
        n_voxels = tap[CHANNEL_GROUPS] * tap[ROW_GROUPS] * tap[COLUMN_GROUPS] if tap[SPATIAL] else 0
        voxels = out_voxels[tap[FIRST_VOXEL] : tap[FIRST_VOXEL] + n_voxels]
        channels = out_channels[tap[FIRST_CHANNEL] : tap[FIRST_CHANNEL] + tap[CHANNELS]]
        nonfinite = 0
        floats = tap[KIND] <= FLOAT16
        if not tap[SPATIAL]:
            size = run_tap(tap, program, SIGNAL, voxels, channels)
        else:
            size = run_tap(tap, program, POSITIVE if floats else FULL, voxels, channels)
            if floats and (not math.isfinite(size) or far_from_zero(voxels, program, tap[COUNTS])):
                size = run_tap(tap, program, FULL, voxels, channels)
        if not math.isfinite(size):
            nonfinite = sum_finite(tap, voxels, channels)
            size = total(channels)
        if not floats:
            scale = scales[t]
            size *= scale
            for channel in range(channels.size):
                channels[channel] *= scale
            for voxel in range(n_voxels):
                voxels[voxel, 0] *= scale
                voxels[voxel, 1] *= scale
                voxels[voxel, 2] *= scale * scale
        finite = tap[CHANNELS] * tap[HEIGHT] * tap[WIDTH] - nonfinite
        out_signals[t] = size / finite if finite > 0 else math.nan
        out_nonfinite[t] = nonfinite
