"""Structure functions: how far a signal moves over some lags, as means of logarithms.

A frozen scene moves over many frames as little as over one; flicker moves most over half its period. A mean
of logarithms is not filled by one hard cut (design section 6).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LAGS = (1, 2, 4, 8, 16)
"""Frames."""
LENGTH = 17
"""Samples that the longest lag needs."""
SMOOTHING = 2.0 / (12 + 1)
"""Weight of a new frame: an exponentially weighted mean over 12 frames."""
SHARE = 1e-4
"""Differences are taken of logarithms; what is smaller than this share of the signal is rounding."""


@kernel("void(float64[::1], boolean[::1], float64[:, ::1], int64[::1], float64[:, ::1])")
def structure(
    signals: FloatArray,
    good: BoolArray,
    state_ring: FloatArray,
    state_count: IntArray,
    state_smooth: FloatArray,
) -> None:
    """Advance the structure functions of all taps by one frame.

    Parameters
    ----------
    signals : (n_taps,) float64
        Mean |a|, not negative.
    good : (n_taps,) bool
        A tap that is not starts anew.
    state_ring : (LENGTH, n_taps) float64
        Logarithms of the last signals.
    state_count : (n_taps,) int64
        Samples so far.
    state_smooth : (n_taps, number of lags) float64
        The result: smoothed ``log(|log x_t - log x_(t-lag)| + SHARE)``, NaN until there are so many samples.
    """
    for tap in range(signals.size):
        if not (good[tap] and math.isfinite(signals[tap])):
            state_count[tap] = 0
            state_smooth[tap] = math.nan
            continue
        count = state_count[tap]
        state_count[tap] = count + 1
        now = math.log(max(signals[tap], 1e-30))
        state_ring[count % LENGTH, tap] = now
        for k in range(len(LAGS)):
            lag = LAGS[k]
            if count < lag:
                continue
            x = math.log(abs(now - state_ring[(count - lag) % LENGTH, tap]) + SHARE)
            if math.isnan(state_smooth[tap, k]):
                state_smooth[tap, k] = x
            else:
                state_smooth[tap, k] += SMOOTHING * (x - state_smooth[tap, k])
