"""How well the temporal and the spatial view agree over a window (design D9)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.ring import latest, push

FloatArray = NDArray[np.float64]

SEGMENT = 32
HOP = 16
DELAY = 16
"""Frames from now back to the centre of gamma's window (32 frames, design D5)."""

# Columns of a sample: mean log gamma power, largest |theta| |z|, and the two anomaly scores.
GAMMA, PEAK, TEMPORAL, SPATIAL = range(4)

# Entries of the terms (3,).
RHO, AGREEMENT, AGREEMENT_IN_ERROR = range(3)


@kernel("float64(float64[::1], float64[::1])")
def pearson(x: FloatArray, y: FloatArray) -> float:
    """Pearson correlation of two series (n,); NaN when one is constant or holds a NaN."""
    # Differences to the first sample are exactly 0 in a constant series, however its mean rounds
    # (test_crossmodal.py::test_constant_input_invalidates).
    mean_x = mean_y = 0.0
    for i in range(x.size):
        mean_x += x[i] - x[0]
        mean_y += y[i] - y[0]
    mean_x /= x.size
    mean_y /= x.size
    xx = yy = xy = 0.0
    for i in range(x.size):
        dx = (x[i] - x[0]) - mean_x
        dy = (y[i] - y[0]) - mean_y
        xx += dx * dx
        yy += dy * dy
        xy += dx * dy
    norm = math.sqrt(xx) * math.sqrt(yy)
    return min(max(xy / norm, -1.0), 1.0) if norm > 0.0 else math.nan


@kernel("void(float64[::1], float64[::1], float64, float64, float64[::1])")
def agreement(
    temporal: FloatArray,
    spatial: FloatArray,
    temporal_error: float,
    spatial_error: float,
    out_terms: FloatArray,
) -> None:
    """Share of the frames in which both series (n,) exceed their limit or neither does.

    Also over the frames in which either does. NaN when a series holds a NaN, or without such frames.
    """
    out_terms[AGREEMENT] = out_terms[AGREEMENT_IN_ERROR] = math.nan
    agreed = either = both = 0
    for i in range(temporal.size):
        if math.isnan(temporal[i]) or math.isnan(spatial[i]):
            return
        in_time = temporal[i] > temporal_error
        in_space = spatial[i] > spatial_error
        agreed += int(in_time == in_space)
        either += int(in_time or in_space)
        both += int(in_time and in_space)
    out_terms[AGREEMENT] = agreed / temporal.size
    if either > 0:
        out_terms[AGREEMENT_IN_ERROR] = both / either


@kernel(
    "void(float64[:], float64, float64, float64, float64, int64, float64, float64, "
    "float64[::1], float64[:, ::1], float64[:, ::1], float64[::1])"
)
def update(
    gamma: FloatArray,
    peak: float,
    temporal: float,
    spatial: float,
    floor: float,
    frame: int,
    temporal_error: float,
    spatial_error: float,
    state_sample: FloatArray,
    state_ring: FloatArray,
    state_series: FloatArray,
    out_terms: FloatArray,
) -> None:
    """Take in one frame and give the terms over the last ``window`` frames.

    Parameters
    ----------
    gamma : (n_taps,) float64
        Gamma power; NaN makes the sample of rho invalid.
    peak, temporal, spatial : float
        The rest of the frame's sample; what is not finite becomes NaN.
    floor : float
        Added to gamma before the logarithm.
    frame : int
        Number of frames before this one.
    temporal_error, spatial_error : float
        Scores above these are errors.
    state_sample : (4,) float64
        Work space.
    state_ring : (window + DELAY, 4) float64
        The last samples, NaN where there was none yet.
    state_series : (4, window + DELAY) float64
        The same in order, oldest first.
    out_terms : (3,) float64
        rho, agreement, agreement in error; NaN where invalid, also while the window is not full.
    """
    state_sample[GAMMA] = 0.0
    for tap in range(gamma.size):
        state_sample[GAMMA] += math.log(gamma[tap] + floor) / gamma.size
    state_sample[PEAK] = peak if math.isfinite(peak) else math.nan
    state_sample[TEMPORAL] = temporal if math.isfinite(temporal) else math.nan
    state_sample[SPATIAL] = spatial if math.isfinite(spatial) else math.nan
    push(state_sample, frame, state_ring)
    for column in range(state_series.shape[0]):
        latest(state_ring, frame, column, state_series[column])
    window = state_series.shape[1] - DELAY
    out_terms[RHO] = pearson(state_series[GAMMA, DELAY:], state_series[PEAK, :window])
    agreement(
        state_series[TEMPORAL, DELAY:],
        state_series[SPATIAL, DELAY:],
        temporal_error,
        spatial_error,
        out_terms,
    )


@kernel("float64(float64[::1], float64[::1], float64[:, :, ::1], float64[:, :, ::1])")
def coherence(x: FloatArray, y: FloatArray, table: FloatArray, state_segments: FloatArray) -> float:
    """Magnitude-squared coherence of two series (n,), averaged over the bins with power in both.

    Segments of `SEGMENT` samples every `HOP`, each one's mean removed [1]_. NaN when a series is
    constant or holds a NaN.

    ``table`` (2, n_bins, SEGMENT): window times cosine and sine of every bin. ``state_segments``
    (2, n_segments, SEGMENT): scratch.

    References
    ----------
    .. [1] G. C. Carter, C. Knapp, A. Nuttall, "Estimation of the magnitude-squared coherence function
       via overlapped fast Fourier transform processing", IEEE Trans. Audio and Electroacoustics 21(4), 1973.
    """
    n_segments = state_segments.shape[1]
    for m in range(n_segments):
        start = m * HOP
        mean_x = mean_y = 0.0
        for i in range(SEGMENT):
            # To the first sample: see `pearson`.
            state_segments[0, m, i] = x[start + i] - x[start]
            state_segments[1, m, i] = y[start + i] - y[start]
            mean_x += state_segments[0, m, i] / SEGMENT
            mean_y += state_segments[1, m, i] / SEGMENT
        for i in range(SEGMENT):
            state_segments[0, m, i] -= mean_x
            state_segments[1, m, i] -= mean_y
    total = 0.0
    bins = 0
    for k in range(table.shape[1]):
        xx = yy = xy_real = xy_imag = 0.0
        for m in range(n_segments):
            x_cos = x_sin = y_cos = y_sin = 0.0
            for i in range(SEGMENT):
                x_cos += table[0, k, i] * state_segments[0, m, i]
                x_sin += table[1, k, i] * state_segments[0, m, i]
                y_cos += table[0, k, i] * state_segments[1, m, i]
                y_sin += table[1, k, i] * state_segments[1, m, i]
            xx += x_cos * x_cos + x_sin * x_sin
            yy += y_cos * y_cos + y_sin * y_sin
            xy_real += x_cos * y_cos + x_sin * y_sin
            xy_imag += x_cos * y_sin - x_sin * y_cos
        if xx * yy > 0.0:
            total += (xy_real * xy_real + xy_imag * xy_imag) / (xx * yy)
            bins += 1
    return total / bins if bins > 0 else math.nan
