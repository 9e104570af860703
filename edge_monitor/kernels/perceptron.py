"""The fault head: a perceptron of one hidden layer (design section 6)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.product import product

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

SMOOTHING = 2.0 / (16 + 1)
"""Weight of a new frame in the smoothed logits."""
SUREST = 30.0
"""Log odds beyond which a frame is no surer to be clean."""
KNEE = 8.0
"""Inputs are linear up to some of their sigmas, and never count for more than so many."""


@kernel(
    "void(float64[::1], float64[::1], float64[:, ::1], float64[::1], float64[:, ::1], float64, float64, "
    "float64, float64[::1])"
)
def gather(
    departure: FloatArray,
    shift: FloatArray,
    z: FloatArray,
    line: FloatArray,
    structure: FloatArray,
    stall: float,
    entropy: float,
    confidence: float,
    out_inputs: FloatArray,
) -> None:
    """Put the inputs one after the other; of ``shift`` all but its first entry."""
    start = 0
    for part in (departure, shift[1:], z.reshape(z.size), line, structure.reshape(structure.size)):
        out_inputs[start : start + part.size] = part
        start += part.size
    out_inputs[start], out_inputs[start + 1], out_inputs[start + 2] = stall, entropy, confidence


@kernel("void(float64[::1], float64[:, ::1], float32[::1])")
def squash(inputs: FloatArray, standard: FloatArray, out: Float32Array) -> None:
    """Standardise and bound: ``u / (1 + |u| / KNEE)`` with ``u = (x - mean) / scale``; NaN becomes 0.

    ``standard`` (2, n_inputs): mean and 1 / scale.
    """
    for i in range(inputs.size):
        u = (inputs[i] - standard[0, i]) * standard[1, i]
        u = max(-1e6, min(u, 1e6)) if u == u else 0.0  # noqa: PLR0124  NaN alone differs from itself
        out[i] = u / (1.0 + abs(u) / KNEE)


@kernel("void(float32[::1], float32[:, ::1], float32[::1])")
def affine(inputs: Float32Array, weights: Float32Array, out: Float32Array) -> None:
    """Multiply ``inputs`` (m,) by ``weights`` (m + 1, n), whose last row is the bias."""
    product(inputs, weights.reshape(weights.size), True, out)


@kernel(
    "float64(float64[::1], float64[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float64[::1], "
    "float64[::1])"
)
def classify(
    inputs: FloatArray,
    standard: FloatArray,
    hidden: Float32Array,
    output: Float32Array,
    work: Float32Array,
    state_logits: FloatArray,
    out_probability: FloatArray,
) -> float:
    """Tell clean driving from faults.

    Parameters
    ----------
    inputs : (n_inputs,) float64
        NaN where not known.
    standard : (2, n_inputs) float64
        Mean and 1 / scale of each input.
    hidden : (n_inputs + 1, n_hidden) float32
    output : (n_hidden + 1, 1 + n_faults) float32
        Weights; the last row is the bias. Output 0 is clean driving.
    work : (n_inputs + n_hidden + 1 + n_faults,) float32
    state_logits : (1 + n_faults,) float64
        Smoothed probability that there is a fault, and the faults' logits smoothed with that weight; zeros
        before the first frame.
    out_probability : (n_faults,) float64
        Probability of each fault given that there is one, from the smoothed logits.

    Returns
    -------
    float
        Log odds of a fault in this frame: logsumexp over the faults' logits less that of clean driving.
    """
    n_inputs, n_hidden = inputs.size, hidden.shape[1]
    x = work[:n_inputs]
    units = work[n_inputs : n_inputs + n_hidden]
    logits = work[n_inputs + n_hidden :]
    squash(inputs, standard, x)
    affine(x, hidden, units)
    for j in range(n_hidden):
        units[j] = max(units[j], np.float32(0.0))
    affine(units, output, logits)
    peak = -math.inf
    for k in range(1, logits.size):
        peak = max(peak, float(logits[k]))
    total = 0.0
    for k in range(1, logits.size):
        total += math.exp(logits[k] - peak)
    score = peak + math.log(total) - float(logits[0])

    # What is hardly a fault says little about which one it is, and never nothing: the weight is above 0.
    weight = 1.0 / (1.0 + math.exp(-max(score, -SUREST)))
    state_logits[0] += SMOOTHING * (weight - state_logits[0])
    peak = -math.inf
    for k in range(1, logits.size):
        state_logits[k] += SMOOTHING * (weight * logits[k] - state_logits[k])
        peak = max(peak, state_logits[k] / state_logits[0])
    total = 0.0
    for k in range(1, logits.size):
        out_probability[k - 1] = math.exp(state_logits[k] / state_logits[0] - peak)
        total += out_probability[k - 1]
    for k in range(out_probability.size):
        out_probability[k] /= total
    return score


@kernel(
    "float64(float64[::1], float64[::1], float64[:, ::1], float64[::1], float64[:, ::1], float64, float64, "
    "float64, float64[:, ::1], float32[:, ::1], float32[:, ::1], float64[::1], float32[::1], float64[::1], "
    "float64[::1])"
)
def recognise(
    departure: FloatArray,
    shift: FloatArray,
    z: FloatArray,
    line: FloatArray,
    structure: FloatArray,
    stall: float,
    entropy: float,
    confidence: float,
    standard: FloatArray,
    hidden: Float32Array,
    output: Float32Array,
    inputs: FloatArray,
    work: Float32Array,
    state_logits: FloatArray,
    out_probability: FloatArray,
) -> float:
    """`gather` and `classify` in one call: each call costs time. ``inputs`` is work space."""
    gather(departure, shift, z, line, structure, stall, entropy, confidence, inputs)
    return classify(inputs, standard, hidden, output, work, state_logits, out_probability)
