"""The model's answer in one pass: winner, confidence, entropy, non-finite values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

SUM_TOLERANCE = 1e-3
"""Values that add up to 1 within this are taken for probabilities."""


@kernel("int64(float32[::1], float64[::1])")
def summarize_output(values: NDArray[np.float32], out_summary: NDArray[np.float64]) -> int:
    """Summarize one output; returns its number of non-finite values.

    Parameters
    ----------
    values : (n,) float32
        The output, flattened.
    out_summary : (3,) float64
        Index of the largest finite value (-1: none), its probability, entropy in nats. The last two
        are NaN unless ``values`` is a probability vector: two or more finite values, none negative,
        that add up to 1 within `SUM_TOLERANCE`.
    """
    nonfinite = 0
    winner = -1
    best = -math.inf
    total = 0.0
    is_probability = values.size > 1
    for index in range(values.size):
        value = np.float64(values[index])
        if not math.isfinite(value):
            nonfinite += 1
            is_probability = False
        elif value > best:
            best = value
            winner = index
        if is_probability:
            # Large outputs (boxes, masks) leave this branch within a few elements.
            total += value
            is_probability = bool(value >= 0.0 and total <= 1.0 + SUM_TOLERANCE)
    out_summary[0] = winner
    out_summary[1] = math.nan
    out_summary[2] = math.nan
    if is_probability and total >= 1.0 - SUM_TOLERANCE:
        entropy = 0.0
        for index in range(values.size):
            value = np.float64(values[index])
            if value > 0.0:
                entropy -= value * math.log(value)
        out_summary[1] = best
        out_summary[2] = entropy
    return nonfinite
