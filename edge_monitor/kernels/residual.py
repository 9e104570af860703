"""Functional residual: what the tap before does not predict of a tap's features (design D10)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.features import (
    FIRST_FEATURE,
    FIRST_WEIGHT,
    FIRST_WHITENING,
    N_GROUPS,
    N_STATISTICS,
    N_VOXELS,
)
from edge_monitor.kernels.product import product

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]

# Rows of the bounds (2, n_features): of a log feature that predicts.
LOW, HIGH = range(2)

# Rows of the state (3, n_features): smoothed residuals; updates so far, at the place of each tap's first
# feature; slow mean of the input's residuals.
SMOOTH, UPDATES, SLOW_MEAN = range(3)

SMOOTHING = 2.0 / (8 + 1)
"""Weight of a new residual: an exponentially weighted mean over 8 blocks (D10)."""
WARM = 8
"""Blocks until the smoothed residual counts."""
SLOW = 2.0 / (90 + 1)
"""Weight of a new residual in the slow mean that a sudden shift of the input stands out from."""
WARM_SLOW = 90
"""Blocks until the slow mean counts."""
CLIP = 20.0
"""Largest residual of one feature and block: one wild value may not outlast its fault for long."""


@kernel("void(float32[::1], int64, float32[::1], int64, int64, float32[::1])")
def multiply(
    vector: Float32Array, m: int, matrices: Float32Array, start: int, n: int, out_vector: Float32Array
) -> None:
    """Product of the first m of a vector and a matrix (m, n), flattened row by row from ``start`` on."""
    product(vector[:m], matrices[start : start + m * n], False, out_vector[:n])


@kernel("void(float64[::1], float64[::1], float64[:, ::1], int64, int64, float32[::1])")
def bound(
    levels: FloatArray, logs: FloatArray, bounds: FloatArray, first: int, stop: int, out: Float32Array
) -> None:
    """Give what predicts a tap: logs of features ``first`` to ``stop`` within bounds, their levels, and 1."""
    m = stop - first
    x, level, low, high = (
        logs[first:stop],
        levels[first:stop],
        bounds[LOW, first:stop],
        bounds[HIGH, first:stop],
    )
    out_logs, out_levels = out[:m], out[m : 2 * m]
    outside = 0
    for i in range(m):  # without a branch, so that the compiler can use vectors; NaN stays
        out_logs[i] = min(max(x[i], low[i]), high[i])
        out_levels[i] = level[i]
        outside += (x[i] < low[i]) | (x[i] > high[i])
    out[2 * m] = np.float32(1.0)
    if outside > 0:
        for i in range(m):
            if x[i] < low[i] or x[i] > high[i]:
                out_levels[i] = math.exp(min(max(x[i], low[i]), high[i]))


@kernel("void(float64[::1], float32[::1], int64, int64, float64, float64[:, ::1], int64)")
def smoothen(
    logs: FloatArray,
    predicted: Float32Array,
    first: int,
    n: int,
    weight: float,
    state: FloatArray,
    row: int,
) -> None:
    """Take the clipped residuals of n features from ``first`` on into their mean, a row of ``state``."""
    x, smooth = logs[first : first + n], state[row, first : first + n]
    for j in range(n):
        residual = min(max(x[j] - predicted[j], -CLIP), CLIP)
        # One NaN would stay in the mean for good (test_one_nan_does_not_stay).
        smooth[j] = smooth[j] if math.isnan(residual) else smooth[j] + weight * (residual - smooth[j])


@kernel("float64(float64[::1], int64, int64, float32[::1], int64, float32[::1], float32[::1])")
def distance(
    departure: FloatArray,
    first: int,
    n: int,
    whitening: Float32Array,
    start: int,
    work_inputs: Float32Array,
    work_directions: Float32Array,
) -> float:
    """Root of the sum of squares of n departures along whitened directions.

    ``departure``: the n from ``first`` on; ``whitening``: (n, n) row by row from ``start`` on. The work
    spaces are at least n long.
    """
    for k in range(n):
        work_inputs[k] = departure[first + k]
    multiply(work_inputs, n, whitening, start, n, work_directions)
    squares = 0.0
    for k in range(n):
        squares += float(work_directions[k]) * float(work_directions[k])
    return math.sqrt(squares)


@kernel(
    "float64(float64[::1], float64[::1], boolean[::1], int64[:, ::1], float64[:, ::1], float32[::1], "
    "float32[::1], float32[::1], float64[:, ::1], float32[:, ::1], float64[::1], float64[::1])"
)
def residuals(
    levels: FloatArray,
    logs: FloatArray,
    usable: BoolArray,
    layout: IntArray,
    bounds: FloatArray,
    weights: Float32Array,
    whitening: Float32Array,
    shift_whitening: Float32Array,
    state: FloatArray,
    work: Float32Array,
    out_residual: FloatArray,
    out_shift: FloatArray,
) -> float:
    """Predict each tap's features from those of the tap before, smooth what is left, and measure it (D10).

    The largest residual of the taps from 1 on is returned, NaN if none is known.

    Parameters
    ----------
    levels, logs : (n_features,) float64
        The features (`levels`) and their logarithms.
    usable : (n_taps,) bool
        A tap that is not, and the one after it, keep their state and have no residual.
    layout
        As in `levels`.
    bounds : (2, n_features) float64
        See its rows.
    weights, whitening, shift_whitening : float32
        As in `ResidualBaseline`; single precision is ample for logarithms and half as much to read.
    state : (3, n_features) float64
        See its rows.
    work : (2, 2 times the features of the largest tap, and 1) float32
        Work space.
    out_residual : (n_taps,) float64
        Root of the sum of squares over the whitened directions; NaN while not known.
    out_shift : (1 + input's features,) float64
        The same of the input's smoothed residuals less their slow mean, and these differences; NaN while
        not known.
    """
    smooth, updates, slow = state[SMOOTH], state[UPDATES], state[SLOW_MEAN]
    inputs, outputs = work[0], work[1]
    largest = math.nan
    out_shift[:] = math.nan
    for tap in range(usable.size):
        out_residual[tap] = math.nan
        if not usable[tap] or (tap > 0 and not usable[tap - 1]):
            continue
        f = layout[tap, FIRST_FEATURE]
        n = layout[tap, N_GROUPS] + layout[tap, N_VOXELS] + layout[tap, N_STATISTICS]
        m = f - layout[tap - 1, FIRST_FEATURE] if tap > 0 else 0
        w = layout[tap, FIRST_WEIGHT]
        bound(levels, logs, bounds, f - m, f, inputs)
        multiply(inputs, 2 * m + 1, weights, w, n, outputs)
        smoothen(logs, outputs, f, n, SMOOTHING, state, SMOOTH)
        if tap == 0:
            smoothen(logs, outputs, f, n, max(SLOW, 1.0 / (updates[0] + 1.0)), state, SLOW_MEAN)
        updates[f] += 1.0
        if updates[f] < WARM:
            continue
        start = layout[tap, FIRST_WHITENING]
        out_residual[tap] = distance(smooth, f, n, whitening, start, inputs, outputs)
        if tap == 0 and updates[0] >= WARM_SLOW:
            for j in range(n):
                out_shift[1 + j] = smooth[j] - slow[j]
            out_shift[0] = distance(out_shift, 1, n, shift_whitening, 0, inputs, outputs)
        if tap > 0 and (math.isnan(largest) or out_residual[tap] > largest):
            largest = out_residual[tap]
    return largest
