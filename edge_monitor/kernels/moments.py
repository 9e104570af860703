"""Voxel and channel sums of all taps of one frame (design D1-D3).

Every float32 is widened to float64 before it is used. The square of a float32 is exact in float64 and
cannot overflow there, so sums of squares need no pivot however far the mean lies from zero
(test_moments.py::test_density_precision_beyond_ten_deviations).

A floating-point sum along a row cannot be vectorised without reordering it, which strict arithmetic
forbids. So a channel group is summed *across* rows, into one lane per column, and the few lanes that
result are folded afterwards. Rows too narrow to fill vectors are summed one element at a time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Columns of the tap table (n_taps, N_COLUMNS): where the tap's first element is, its shape, its voxel
# grid, and where its voxels and channels are among those of all taps.
(OFFSET, CHANNELS, HEIGHT, WIDTH, CHANNEL_GROUPS, ROW_GROUPS, COLUMN_GROUPS, FIRST_VOXEL, FIRST_CHANNEL) = (
    range(9)
)
N_COLUMNS = 9

# Rows of the lanes (N_LANES, at least the widest tap): of one channel |a|; of a channel group |a|, a, a^2.
CHANNEL_ABS, ABS, SUM, SQUARE = range(4)
N_LANES = 4

NARROW = 16
"""Rows shorter than this are summed element by element: lanes would not pay."""


@kernel("void(float32[::1], float64[::1], float64[::1], float64[::1])")
def add_rows(
    block: Float32Array, state_abs: FloatArray, state_sum: FloatArray, state_square: FloatArray
) -> None:
    """Add whole rows, one after the other in ``block``, to their columns' lanes, each (width,).

    Four rows at once: the lanes are loaded and stored once for them.
    """
    width = state_abs.size
    start = 0
    while start + 4 * width <= block.size:
        first = block[start : start + width]
        second = block[start + width : start + 2 * width]
        third = block[start + 2 * width : start + 3 * width]
        fourth = block[start + 3 * width : start + 4 * width]
        for w in range(width):
            a = np.float64(first[w])
            b = np.float64(second[w])
            c = np.float64(third[w])
            d = np.float64(fourth[w])
            state_abs[w] += (abs(a) + abs(b)) + (abs(c) + abs(d))
            state_sum[w] += (a + b) + (c + d)
            state_square[w] += (a * a + b * b) + (c * c + d * d)
        start += 4 * width
    while start < block.size:
        row = block[start : start + width]
        for w in range(width):
            a = np.float64(row[w])
            state_abs[w] += abs(a)
            state_sum[w] += a
            state_square[w] += a * a
        start += width


@kernel("float64(float64[::1])")
def fold(lanes: FloatArray) -> float:
    """Sum of the lanes; four partial sums, so that no addition waits for the one before."""
    a = b = c = d = 0.0
    whole = lanes.size - lanes.size % 4
    for w in range(0, whole, 4):
        a += lanes[w]
        b += lanes[w + 1]
        c += lanes[w + 2]
        d += lanes[w + 3]
    for w in range(whole, lanes.size):
        a += lanes[w]
    return (a + b) + (c + d)


@kernel("float64(float32[::1], int64[::1], int64, float64[:, ::1], float64[:, ::1], float64[::1])")
def sum_group(
    buffer: Float32Array,
    tap: IntArray,
    group: int,
    state_lanes: FloatArray,
    out_voxels: FloatArray,
    out_channels: FloatArray,
) -> float:
    """Sum one channel group as if all its elements were finite; return its sum |a|.

    That sum is finite exactly when all elements are. If it is not, the group's outputs are void.
    """
    height, width = tap[HEIGHT], tap[WIDTH]
    rows, columns = tap[ROW_GROUPS], tap[COLUMN_GROUPS]
    first = group * tap[CHANNELS] // tap[CHANNEL_GROUPS]
    stop = (group + 1) * tap[CHANNELS] // tap[CHANNEL_GROUPS]
    channel_abs = state_lanes[CHANNEL_ABS, :width]
    lane_abs = state_lanes[ABS, :width]
    lane_sum = state_lanes[SUM, :width]
    lane_square = state_lanes[SQUARE, :width]
    voxel = tap[FIRST_VOXEL] + group * rows * columns
    out_channels[tap[FIRST_CHANNEL] + first : tap[FIRST_CHANNEL] + stop] = 0.0
    total = 0.0
    for i in range(rows):
        top = i * height // rows * width
        bottom = (i + 1) * height // rows * width
        for w in range(width):
            lane_abs[w] = lane_sum[w] = lane_square[w] = 0.0
        for c in range(first, stop):
            for w in range(width):
                channel_abs[w] = 0.0
            start = tap[OFFSET] + c * height * width
            add_rows(buffer[start + top : start + bottom], channel_abs, lane_sum, lane_square)
            for w in range(width):
                lane_abs[w] += channel_abs[w]
            folded = fold(channel_abs)
            out_channels[tap[FIRST_CHANNEL] + c] += folded
            total += folded
        for j in range(columns):
            left, right = j * width // columns, (j + 1) * width // columns
            out_voxels[voxel, 0] = fold(lane_abs[left:right])
            out_voxels[voxel, 1] = fold(lane_sum[left:right])
            out_voxels[voxel, 2] = fold(lane_square[left:right])
            voxel += 1
    return total


@kernel("int64(float32[::1], int64[::1], int64, float64[:, ::1], float64[::1])")
def sum_finite(
    buffer: Float32Array, tap: IntArray, group: int, out_voxels: FloatArray, out_channels: FloatArray
) -> int:
    """Sum one channel group element by element without what is not finite; return how many those were."""
    height, width = tap[HEIGHT], tap[WIDTH]
    rows, columns = tap[ROW_GROUPS], tap[COLUMN_GROUPS]
    first = group * tap[CHANNELS] // tap[CHANNEL_GROUPS]
    stop = (group + 1) * tap[CHANNELS] // tap[CHANNEL_GROUPS]
    voxel = tap[FIRST_VOXEL] + group * rows * columns
    out_channels[tap[FIRST_CHANNEL] + first : tap[FIRST_CHANNEL] + stop] = 0.0
    nonfinite = 0
    for i in range(rows):
        top, bottom = i * height // rows, (i + 1) * height // rows
        for j in range(columns):
            left, right = j * width // columns, (j + 1) * width // columns
            voxel_abs = voxel_sum = voxel_square = 0.0
            for c in range(first, stop):
                channel_abs = 0.0
                for row in range(top, bottom):
                    start = tap[OFFSET] + (c * height + row) * width
                    for element in buffer[start + left : start + right]:
                        a = np.float64(element)
                        if math.isfinite(a):
                            channel_abs += abs(a)
                            voxel_sum += a
                            voxel_square += a * a
                        else:
                            nonfinite += 1
                out_channels[tap[FIRST_CHANNEL] + c] += channel_abs
                voxel_abs += channel_abs
            out_voxels[voxel, 0] = voxel_abs
            out_voxels[voxel, 1] = voxel_sum
            out_voxels[voxel, 2] = voxel_square
            voxel += 1
    return nonfinite


@kernel(
    "void(float32[::1], int64[:, ::1], float64[:, ::1], "
    "float64[::1], int64[::1], float64[:, ::1], float64[::1])"
)
def moments(
    buffer: Float32Array,
    taps: IntArray,
    state_lanes: FloatArray,
    out_signals: FloatArray,
    out_nonfinite: IntArray,
    out_voxels: FloatArray,
    out_channels: FloatArray,
) -> None:
    """Reduce one frame of all taps in one call.

    Parameters
    ----------
    buffer : (n,) float32
        All taps' activations, each (channels, height, width) in C order.
    taps : (n_taps, N_COLUMNS) int64
        Where each tap is and how it is divided; grids already clamped to the shapes.
    state_lanes : (N_LANES, at least the widest tap) float64
        Scratch.
    out_signals : (n_taps,) float64
        mean |a| over finite elements (D1), NaN when a tap has none.
    out_nonfinite : (n_taps,) int64
        NaN and infinities; they are left out of all sums.
    out_voxels : (n_voxels, 3) float64
        sum |a|, sum a, sum a^2 of every voxel (D3), channel group slowest, then row, then column.
    out_channels : (n_channels,) float64
        sum |a| of every channel.
    """
    for t in range(taps.shape[0]):
        tap = taps[t]
        nonfinite = 0
        for group in range(tap[CHANNEL_GROUPS]):
            if tap[WIDTH] < NARROW or not math.isfinite(
                sum_group(buffer, tap, group, state_lanes, out_voxels, out_channels)
            ):
                nonfinite += sum_finite(buffer, tap, group, out_voxels, out_channels)
        channels = out_channels[tap[FIRST_CHANNEL] : tap[FIRST_CHANNEL] + tap[CHANNELS]]
        finite = tap[CHANNELS] * tap[HEIGHT] * tap[WIDTH] - nonfinite
        out_signals[t] = fold(channels) / finite if finite > 0 else math.nan
        out_nonfinite[t] = nonfinite
