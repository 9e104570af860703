"""What the picture itself looks like: sharpness, change from frame to frame, and motion (design section 2).

All of it is of the brightness, the mean over the channels, on the sampled view that `tap_moments` reads too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.displacement import LAG, jump, motion, thumbnail

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Statistics of a region, in this order for each: mean size of the slope across and down and of the Laplacian,
# mean size of the change over one and over two frames, the share of points that stayed the same, and of
# those that equal their left neighbour (dead rows, blocks and saturation are flat to the bit, where a live
# sensor has noise).
ACROSS, DOWN, LAPLACIAN, CHANGE_1, CHANGE_2, SAME, FLAT = range(7)
N_STATISTICS = 7

N_WHOLE = 4
"""Statistics of the whole picture, behind those of the regions: rows that carry nothing, the motion over 1
and over `LAG` frames, and how well a displacement explains the change."""


@kernel("void(float32[:, :, ::1], float32[:, ::1])")
def brightness(pixels: Float32Array, out_light: Float32Array) -> None:
    """Mean over the channels of ``pixels`` (C, H, W), into ``out_light`` (H, W)."""
    share = np.float32(1.0 / pixels.shape[0])
    for i in range(pixels.shape[1]):
        row = out_light[i]
        row[:] = np.float32(0.0)
        for c in range(pixels.shape[0]):
            source = pixels[c, i]
            for j in range(row.size):
                row[j] += source[j]
        for j in range(row.size):
            row[j] *= share


@kernel("void(float32[:, ::1], float32[:, ::1], float32[:, ::1], int64, int64, float32[:, ::1])")
def add_changes(
    light: Float32Array, before: Float32Array, earlier: Float32Array, top: int, bottom: int, out: Float32Array
) -> None:
    """Add up, column by column of rows ``top`` to ``bottom``, how ``light`` differs from the last pictures.

    ``out`` (N_STATISTICS, W): sizes of the change over one and over two frames, and points that are the same.
    """
    change_1, change_2, same = out[CHANGE_1], out[CHANGE_2], out[SAME]
    for i in range(top, bottom):
        here, last, second = light[i], before[i], earlier[i]
        for j in range(here.size):
            change_1[j] += abs(here[j] - last[j])
            change_2[j] += abs(here[j] - second[j])
            same[j] += np.float32(1.0) if here[j] == last[j] else np.float32(0.0)


@kernel("void(float32[:, ::1], int64, int64, float32[:, ::1])")
def add_slopes(light: Float32Array, top: int, bottom: int, out: Float32Array) -> None:
    """Add up, column by column of rows ``top`` to ``bottom``, sizes of slopes and Laplacian, and flat points.

    ``out`` (N_STATISTICS, W). A point at the border has no slope beyond it and no Laplacian.
    """
    across, down, laplacian, flat = out[ACROSS], out[DOWN], out[LAPLACIAN], out[FLAT]
    height, width = light.shape
    for i in range(top, bottom):
        here = light[i]
        left = here[: width - 1]
        for j in range(width - 1):
            across[j + 1] += abs(here[j + 1] - left[j])
            flat[j + 1] += np.float32(1.0) if here[j + 1] == left[j] else np.float32(0.0)
        if i == 0:
            continue
        above = light[i - 1]
        for j in range(width):
            down[j] += abs(here[j] - above[j])
        if i == height - 1:
            continue
        below = light[i + 1]
        four = np.float32(4.0)
        for j in range(1, width - 1):
            laplacian[j] += abs(four * here[j] - above[j] - below[j] - here[j - 1] - here[j + 1])


@kernel("void(float32[:, ::1], int64, int64, int64, float64[::1])")
def divide(lanes: Float32Array, columns: int, height: int, count: int, out: FloatArray) -> None:
    """Means over each of the regions side by side, from sums of their columns.

    ``lanes`` (N_STATISTICS, W): sums over ``height`` rows; ``count``: pictures before this one; ``out``
    (columns x N_STATISTICS,): NaN where there are too few of them.
    """
    width = lanes.shape[1]
    for c in range(columns):
        first, stop = c * width // columns, (c + 1) * width // columns
        place = c * N_STATISTICS
        for k in range(N_STATISTICS):
            total = 0.0
            for j in range(first, stop):
                total += lanes[k, j]
            out[place + k] = total / (height * (stop - first))
        if count < 1:
            out[place + CHANGE_1] = out[place + SAME] = math.nan
        if count < 2:
            out[place + CHANGE_2] = math.nan


@kernel("boolean(float32[::1], float32[::1])")
def equal(row: Float32Array, other: Float32Array) -> bool:
    """Whether all points are the same, to the bit; most live rows differ at the first."""
    for j in range(row.size):  # noqa: SIM110 - the compiler knows no generators
        if row[j] != other[j]:
            return False
    return True


@kernel("int64(float32[:, ::1])")
def dead_rows(light: Float32Array) -> int:
    """Count rows of ``light`` (H, W) that carry nothing: flat, or the row above once more, to the bit.

    A live sensor has noise in every row. Rows that are as bright throughout as the brightest point of all are
    saturated, not dead.
    """
    dead = 0
    top = -math.inf
    for i in range(light.shape[0]):
        row = light[i]
        flat = equal(row[1:], row[: row.size - 1])
        if not flat and (i == 0 or not equal(row, light[i - 1])):
            continue
        if top == -math.inf:  # only now: it takes a look at all points
            for k in range(light.shape[0]):
                for x in light[k]:
                    if x > top:  # noqa: PLR1730 - NaN is passed over
                        top = x
        if not flat or row[0] < top:
            dead += 1
    return dead


@kernel(
    "void(float32[:, :, ::1], int64, int64, int64[::1], float32[:, :, ::1], float64[:, ::1], "
    "float64[:, ::1], int64[::1], float32[:, ::1], float64[:, ::1], float64[::1])"
)
def statistics(
    pixels: Float32Array,
    rows: int,
    columns: int,
    edges: IntArray,
    state_light: Float32Array,
    state_thumbs: FloatArray,
    state_profiles: FloatArray,
    state_count: IntArray,
    state_lanes: Float32Array,
    state_work: FloatArray,
    out: FloatArray,
) -> None:
    """Statistics of one picture and of how it differs from those before.

    Parameters
    ----------
    pixels : (C, H, W) float32
    rows, columns : int
        Regions.
    edges : (columns of the thumbnail + 1,) int64
        See `thumbnail`.
    state_light : (3, H, W) float32
        Brightness of the last pictures, a ring.
    state_thumbs : (LAG + 1, at most THUMB^2) float64
        Thumbnails of the last pictures, a ring.
    state_profiles : (2, H + W) float64
        Profiles of the last two.
    state_count : (1,) int64
        Pictures so far.
    state_lanes : (N_STATISTICS, W) float32
        Work space: sums of each column.
    state_work : (2, max(H, W) // 4 + 1) float64
        Work space of `match`.
    out : (rows x columns x N_STATISTICS + N_WHOLE,) float64
        The regions' statistics, sums over points that have the neighbour over all points of the
        region; then the `dead_rows`, the mean size of the thumbnail's change over 1 and over `LAG` frames,
        and the `jump`. NaN until there are so many pictures.
    """
    count = state_count[0]
    state_count[0] = count + 1
    light, before = state_light[count % 3], state_light[(count + 2) % 3]
    earlier = state_light[(count + 1) % 3]
    brightness(pixels, light)
    height = light.shape[0]
    size = columns * N_STATISTICS
    for r in range(rows):
        top, bottom = r * height // rows, (r + 1) * height // rows
        state_lanes[:] = np.float32(0.0)
        add_changes(light, before, earlier, top, bottom, state_lanes)
        add_slopes(light, top, bottom, state_lanes)
        divide(state_lanes, columns, bottom - top, count, out[r * size : (r + 1) * size])
    thumbnail(light, edges, state_thumbs[count % (LAG + 1)])
    out[out.size - 4] = dead_rows(light)
    out[out.size - 3] = motion(state_thumbs, count, 1)
    out[out.size - 2] = motion(state_thumbs, count, LAG)
    out[out.size - 1] = jump(light, state_profiles, count, state_work)
