"""Voxel sums to densities, densities to scores (design D2, section 6)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LAMBDA = 0.1
EPSILON = 1e-6

# Rows of the baseline (6, n_voxels).
COUNT, MEDIAN, SCALE, THETA, FLOOR, BRIGHT = range(6)


@kernel("void(float64[:, ::1], float64[::1], float64, float64[::1], float64[::1])")
def densities(
    voxels: FloatArray, counts: FloatArray, frames: float, floor: FloatArray, out_density: FloatArray
) -> None:
    """Density ``mean|a| + LAMBDA log(var a + EPSILON)`` of every voxel, var with ddof 0 (D2).

    ``voxels`` (n_voxels, 3): sum |a|, sum a, sum a^2 over ``frames`` frames; ``counts`` (n_voxels,):
    elements of one frame. Rounding may bring var below 0; it is clipped. A voxel with a ``floor``
    (n_voxels,) has the log level ``log(mean|a| + floor)`` instead: light spans orders of magnitude, and
    on a linear scale darkness is hardly further away than dusk (tests/test_fmri.py::test_log_level).
    """
    for g in range(counts.size):
        n = counts[g] * frames
        if not math.isnan(floor[g]):
            out_density[g] = math.log(voxels[g, 0] / n + floor[g])
            continue
        mean = voxels[g, 1] / n
        variance = max(voxels[g, 2] / n - mean * mean, 0.0)
        out_density[g] = voxels[g, 0] / n + LAMBDA * math.log(variance + EPSILON)


@kernel(
    "Tuple((int64, float64, float64, float64, float64))"
    "(float64[:, ::1], float64, float64[:, ::1], int64[::1], boolean[::1], boolean[::1], float64[:, ::1], "
    "float64[::1])"
)
def compare(
    voxels: FloatArray,
    frames: float,
    baseline: FloatArray,
    first_voxel: IntArray,
    present: BoolArray,
    good: BoolArray,
    out_voxels: FloatArray,
    out_taps: FloatArray,
) -> tuple[int, float, float, float, float]:
    """Compare one block of voxel sums with the clean baseline.

    Parameters
    ----------
    voxels : (n_voxels, 3) float64
        sum |a|, sum a, sum a^2 over ``frames`` frames.
    frames : float
    baseline : (6, n_voxels) float64
        Elements of one frame, median and scale of the clean density, impact theta, floor, mean a from
        which a voxel of the input is bright.
    first_voxel : (n_taps + 1,) int64
        Where each tap's voxels begin, and where the last one's end.
    present, good : (n_taps,) bool
        A tap that is not both is masked.
    out_voxels : (2, n_voxels) float64
        Density and z; NaN where masked, z also where the voxel has no scale.
    out_taps : (n_taps,) float64
        Root mean square z of the tap's voxels, NaN where there is none.

    Returns
    -------
    worst : int
        Voxel of the taps from 1 on with the largest |theta| |z|, -1 if none.
    severity, score, input_score, bright : float
        That product, the largest score of these taps, tap 0's score, its share of bright voxels. NaN: none.
    """
    densities(voxels, baseline[COUNT], frames, baseline[FLOOR], out_voxels[0])
    severity = score = input_score = brightness = math.nan
    worst = -1
    for tap in range(out_taps.size):
        squares = 0.0
        scored = 0
        for g in range(first_voxel[tap], first_voxel[tap + 1]):
            if not (present[tap] and good[tap]):
                out_voxels[0, g] = math.nan
            z = (out_voxels[0, g] - baseline[MEDIAN, g]) / baseline[SCALE, g]
            out_voxels[1, g] = z
            if math.isnan(z):
                continue
            squares += z * z
            scored += 1
            weighted = abs(baseline[THETA, g]) * abs(z)
            if tap > 0 and (worst < 0 or weighted > severity):
                worst, severity = g, weighted
        if tap == 0 and present[0] and good[0]:
            bright = 0
            for g in range(first_voxel[1]):
                bright += voxels[g, 1] >= baseline[BRIGHT, g] * baseline[COUNT, g] * frames
            brightness = bright / first_voxel[1]
        out_taps[tap] = math.nan
        if scored == 0:
            continue
        out_taps[tap] = math.sqrt(squares / scored)
        if tap == 0:
            input_score = out_taps[tap]
        elif not out_taps[tap] <= score:  # also true while the score is NaN
            score = out_taps[tap]
    return worst, severity, score, input_score, brightness
