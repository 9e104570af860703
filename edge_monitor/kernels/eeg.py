"""All that follows a frame's band powers in one call: each call costs time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.goertzel import COUNT, DENSITY, standardise
from edge_monitor.kernels.line import peak_over_floor
from edge_monitor.kernels.structure import structure

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Rows of the baseline (3, n_taps, n_bands).
FLOOR, MEAN, SCALE = range(3)


@kernel(
    "UniTuple(float64, 2)(float64[::1], boolean[::1], float64[:, ::1], int64[:, ::1], float64[:, :, :, ::1], "
    "float64[:, :, ::1], int64, float64[:, ::1], float64[:, ::1], float64[::1], float64[:, ::1], int64[::1], "
    "float64[:, ::1], float64[:, ::1], int64[::1], float64[::1])"
)
def compare(
    signals: FloatArray,
    good: BoolArray,
    power: FloatArray,
    taps: IntArray,
    sums: FloatArray,
    baseline: FloatArray,
    idle: int,
    line_weight: FloatArray,
    line_baseline: FloatArray,
    state_line: FloatArray,
    state_logs: FloatArray,
    state_samples: IntArray,
    state_structure: FloatArray,
    out_z: FloatArray,
    out_state: IntArray,
    out_line: FloatArray,
) -> tuple[float, float]:
    """`structure`, `standardise` and `peak_over_floor` in one call; return the scores of bands and lines.

    ``taps`` and ``sums``: what `goertzel.update` keeps; the window of lines is behind those with a power.
    """
    structure(signals, good, state_logs, state_samples, state_structure)
    score = standardise(power, baseline[FLOOR], baseline[MEAN], baseline[SCALE], idle, out_z, out_state)
    density = sums[:, power.shape[1], DENSITY, : line_weight.shape[1]]
    line_score = peak_over_floor(density, taps[:, COUNT], line_weight, line_baseline, state_line, out_line)
    return score, line_score
