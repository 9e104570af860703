"""A spectral line: how far the strongest bin of each tap's spectrum stands above its floor.

Driving has a broad spectrum; flicker, a hunting exposure control or a rolling band add one frequency. Every
bin is compared with its own clean level first, so that the fall of a clean spectrum towards high
frequencies is no line; what lifts all bins alike, such as a hard cut, cancels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

WINDOW = 64
"""Frames of the window in which lines are sought."""

SMOOTHING = 2.0 / (8 + 1)
"""Weight of a new frame: an exponentially weighted mean over 8 frames."""

# Rows of a tap's baseline (n_taps, 3): what is added to each density, median and scale of the clean value.
FLOOR, MEDIAN, SCALE = range(3)


PRODUCT = 4
"""Bins whose ratios are multiplied before the logarithm is taken: fewer logarithms, and no overflow."""


@kernel("float64(float64[:, :], int64[:], float64[:, ::1], float64[:, ::1], float64[::1], float64[::1])")
def peak_over_floor(
    density: FloatArray,
    samples: IntArray,
    weight: FloatArray,
    baseline: FloatArray,
    state_smooth: FloatArray,
    out_z: FloatArray,
) -> float:
    """Smoothed log ratio of the highest bin to the geometric mean of all, as robust z of every tap.

    Parameters
    ----------
    density : (n_taps, n_bins) float64
        Spectral density.
    samples : (n_taps,) int64
        Samples so far; the density counts from `WINDOW` on.
    weight : (n_taps, n_bins) float64
        ``exp(-level)``, level being the clean mean of ``log(density + floor)``.
    baseline : (n_taps, 3) float64
        See its rows; NaN where the tap is not watched.
    state_smooth : (n_taps,) float64
        Smoothed ratio, NaN before the first.
    out_z : (n_taps,) float64
        NaN while not known.

    Returns
    -------
    float
        The largest z, NaN if none is known.
    """
    largest = math.nan
    n_bins = density.shape[1]
    for tap in range(density.shape[0]):
        out_z[tap] = math.nan
        if samples[tap] < WINDOW or math.isnan(baseline[tap, SCALE]):
            state_smooth[tap] = math.nan
            continue
        total = 0.0
        peak = 0.0
        for first in range(0, n_bins, PRODUCT):
            product = 1.0
            for k in range(first, min(first + PRODUCT, n_bins)):
                above = (density[tap, k] + baseline[tap, FLOOR]) * weight[tap, k]
                product *= above
                peak = max(peak, above)
            total += math.log(product)
        ratio = math.log(peak) - total / n_bins
        if not math.isnan(state_smooth[tap]):
            ratio = state_smooth[tap] + SMOOTHING * (ratio - state_smooth[tap])
        state_smooth[tap] = ratio
        out_z[tap] = (ratio - baseline[tap, MEDIAN]) / baseline[tap, SCALE]
        if math.isnan(largest) or out_z[tap] > largest:
            largest = out_z[tap]
    return largest
