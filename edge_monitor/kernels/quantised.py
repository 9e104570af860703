"""Values of quantised tensors: scale (q - zero point) for every stored integer q."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel


@kernel("void(float64, float64, float32[::1])")
def dequantise(zero_point: float, scale: float, state_values: NDArray[np.float32]) -> None:
    """Replace integers, as floats in ``state_values`` (n,), by what they stand for; float32 throughout."""
    zero, step = np.float32(zero_point), np.float32(scale)
    for i in range(state_values.size):
        state_values[i] = (state_values[i] - zero) * step


@kernel("void(float64, float64, float32[::1])")
def read_softmax(zero_point: float, scale: float, state_values: NDArray[np.float32]) -> None:
    """As `dequantise`, then scaled to sum to 1 if they do within a step each, unless all of them are 0."""
    dequantise(zero_point, scale, state_values)
    total = np.float32(0.0)
    for i in range(state_values.size):
        total += state_values[i]
    if total > 0.0 and abs(total - 1.0) <= scale * state_values.size:
        for i in range(state_values.size):
            state_values[i] /= total
