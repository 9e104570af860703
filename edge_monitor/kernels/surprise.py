"""How improbable a score is under its calibrated null."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]


@kernel(
    "float64(float64[::1], float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1],"
    " float64[::1], float64[::1], float64[::1])"
)
def update(
    scores: FloatArray,
    smoothing: FloatArray,
    tail: FloatArray,
    quantiles: FloatArray,
    excess: FloatArray,
    threshold: FloatArray,
    state_smooth: FloatArray,
    out_surprise: FloatArray,
    out_ratio: FloatArray,
) -> float:
    """Smooth each channel's score and give its surprise and its ratio to the threshold.

    The largest ratio is returned, NaN if there is none.

    Up to the last quantile -log p is interpolated between the empirical tail probabilities, beyond
    it p falls off exponentially (design section 6). Of tied quantiles the first counts: p is the
    probability of this score or a larger one.

    Parameters
    ----------
    scores : (n_channels,) float64
        NaN where the channel has nothing to say; its smoothing then starts anew.
    smoothing : (n_channels,) float64
        Weight of the new sample in the exponentially weighted mean.
    tail : (n_points,) float64
        Falling tail probabilities, first 1.
    quantiles : (n_channels, n_points) float64
        Score at each tail probability, rising.
    excess, threshold : (n_channels,) float64
        Scale of the exponential beyond the last quantile; surprise that alarms.
    state_smooth : (n_channels,) float64
        Smoothed scores; NaN before the first.
    out_surprise, out_ratio : (n_channels,) float64
        -log p in nats and its ratio to the threshold.
    """
    n_points = tail.size
    largest = math.nan
    for c in range(scores.size):
        x = scores[c]
        if math.isnan(x):
            state_smooth[c] = np.nan
            out_surprise[c] = np.nan
            out_ratio[c] = np.nan
            continue
        if not math.isnan(state_smooth[c]):
            x = state_smooth[c] + smoothing[c] * (x - state_smooth[c])
        state_smooth[c] = x
        if x > quantiles[c, n_points - 1]:
            surprise = -math.log(tail[n_points - 1]) + (x - quantiles[c, n_points - 1]) / excess[c]
        elif x <= quantiles[c, 0]:
            surprise = 0.0
        else:
            low, high = 0, n_points - 1
            while high - low > 1:
                middle = (low + high) // 2
                if quantiles[c, middle] < x:
                    low = middle
                else:
                    high = middle
            share = (x - quantiles[c, low]) / (quantiles[c, high] - quantiles[c, low])
            surprise = -math.log(tail[low]) + share * math.log(tail[low] / tail[high])
        out_surprise[c] = surprise
        out_ratio[c] = surprise / threshold[c]
        if not out_ratio[c] <= largest and not math.isnan(out_ratio[c]):
            largest = out_ratio[c]
    return largest
