"""How far the picture moved: over one frame and over many, and whether it is the same scene elsewhere.

All of it is of the brightness (H, W) that `picture` makes of a frame.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

THUMB = 16
"""Rows and columns of the thumbnail, at most: means over blocks leave the motion and little of the noise."""
LAG = 16
"""Frames over which the thumbnail's motion is compared with that over one."""
REACH, FULL_JUMP = 8, 24
"""Jumps are looked for up to 1 / `REACH` of the picture's size; from 1 / `FULL_JUMP` on their size no longer
counts."""
FAINT = 1e-3
"""Share of the change that is taken to be left at least: a match of drawn pictures may be perfect."""


@kernel("void(float32[:, ::1], int64[::1], float64[::1])")
def thumbnail(light: Float32Array, edges: IntArray, out: FloatArray) -> None:
    """Block means of ``light`` (H, W), ``out`` (rows x columns,).

    ``edges`` (columns + 1,): columns ``floor(k W / columns)``; those of rows alike.
    """
    height, width = light.shape
    columns = edges.size - 1
    rows = out.size // columns
    bottom = 0
    for r in range(rows):
        top, bottom = bottom, (r + 1) * height // rows
        means = out[r * columns : (r + 1) * columns]
        means[:] = 0.0
        for i in range(top, bottom):
            line = light[i]
            for k in range(-(-width // columns)):
                for c in range(columns):  # over neighbours, so that no addition waits for the one before
                    if edges[c] + k < edges[c + 1]:
                        means[c] += line[edges[c] + k]
        for c in range(columns):
            means[c] /= (bottom - top) * (edges[c + 1] - edges[c])


@kernel("float64(float64[:, ::1], int64, int64)")
def motion(thumbs: FloatArray, count: int, lag: int) -> float:
    """Mean size of the change of the newest thumbnail over ``lag`` frames, NaN while there are too few.

    ``thumbs`` (LAG + 1, n): a ring; ``count``: pictures before the newest.
    """
    if count < lag:
        return math.nan
    newest, past = thumbs[count % (LAG + 1)], thumbs[(count - lag) % (LAG + 1)]
    total = 0.0
    for j in range(newest.size):
        total += abs(newest[j] - past[j])
    return float(total / newest.size)


@kernel("void(float32[:, ::1], float64[::1])")
def profiles(light: Float32Array, out: FloatArray) -> None:
    """Mean of every row, then of every column of ``light`` (H, W), into ``out`` (H + W,)."""
    height, width = light.shape
    rows, columns = out[:height], out[height:]
    columns[:] = 0.0
    for i in range(height):
        line = light[i]
        total = 0.0
        for j in range(width):
            total += line[j]
            columns[j] += line[j]
        rows[i] = total / width
    for j in range(width):
        columns[j] /= height


@kernel("UniTuple(float64, 3)(float64[::1], float64[::1], float64[:, ::1])")
def match(now: FloatArray, before: FloatArray, work: FloatArray) -> tuple[float, float, float]:
    """Find the displacement after which the middle of one profile is most like the profile ``before``.

    Returned: how much differs without any (the variance of the difference, which leaves a change of
    brightness out), how much is left with the best one, and its share of the profile's length. ``work``: at
    least two rows of 2 reach + 1 numbers.
    """
    n = now.size
    reach = n // REACH
    sums, squares = work[0, : 2 * reach + 1], work[1, : 2 * reach + 1]
    sums[:] = 0.0
    squares[:] = 0.0
    for i in range(reach, n - reach):
        here, around = now[i], before[i - reach : i + reach + 1]
        for k in range(sums.size):  # over neighbours, so that the compiler can use vectors
            difference = here - around[k]
            sums[k] += difference
            squares[k] += difference * difference
    count = n - 2 * reach
    for k in range(sums.size):
        spread = squares[k] / count - (sums[k] / count) * (sums[k] / count)
        squares[k] = 0.0 if spread < 0.0 else spread  # noqa: FURB136 - NaN stays
    best = reach  # where no displacement is better than none, there is none
    for k in range(sums.size):
        if squares[k] < squares[best]:
            best = k
    return squares[reach], squares[best], abs(best - reach) / n


@kernel("float64(float32[:, ::1], float64[:, ::1], int64, float64[:, ::1])")
def jump(light: Float32Array, state_profiles: FloatArray, count: int, work: FloatArray) -> float:
    """How well a displacement of the whole picture explains the change from the last one, NaN for the first.

    Logarithm of the change that it explains away, less for displacements under 1 / `FULL_JUMP`. A camera
    that is knocked shows the same scene elsewhere; a hard cut shows another one, which no displacement
    explains.
    ``state_profiles`` (2, H + W): a ring; ``count``: pictures before this one.
    """
    now, before = state_profiles[count % 2], state_profiles[(count + 1) % 2]
    profiles(light, now)
    if count < 1:
        return math.nan
    height = light.shape[0]
    down, down_left, down_by = match(now[:height], before[:height], work)
    across, across_left, across_by = match(now[height:], before[height:], work)
    change, left = down + across, down_left + across_left
    if change == 0.0:
        return 0.0
    explained = math.log(change / (left + FAINT * change))
    return (0.0 if explained < 0.0 else explained) * min(  # noqa: FURB136 - NaN stays
        1.0, FULL_JUMP * math.hypot(down_by, across_by)
    )
