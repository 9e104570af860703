"""All of a frame's connectivity in two calls, before and after NumPy's logarithm: each call costs time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.features import levels
from edge_monitor.kernels.residual import residuals
from edge_monitor.kernels.tracts import drives, tracts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]


@kernel(
    "void(float64[:, ::1], float64[::1], float64[::1], float64, int64[:, ::1], int64[::1], float64[:, ::1], "
    "float64[:, ::1], boolean[::1], float64[::1])"
)
def prepare(
    voxels: FloatArray,
    channels: FloatArray,
    picture: FloatArray,
    frames: float,
    layout: IntArray,
    edges: IntArray,
    table: FloatArray,
    gates: FloatArray,
    state_usable: BoolArray,
    out: FloatArray,
) -> None:
    """`levels` and `drives` in one call, into ``out`` (n_features + 2 n_voxels,)."""
    n = table.shape[1]
    levels(voxels, channels, picture, frames, layout, edges, table, state_usable, out[:n])
    drives(voxels, frames, gates, out[n:].reshape((2, voxels.shape[0])))


@kernel(
    "Tuple((int64, float64, float64, float64, float64))"
    "(float64[::1], float64[::1], boolean[::1], int64[:, ::1], float64[:, ::1], float32[::1], "
    "float32[::1], float32[::1], float64[::1], float64[:, ::1], float64[:, ::1], float32[:, ::1], "
    "float64[::1], float64[::1], float64[::1])"
)
def compare(
    values: FloatArray,
    logs: FloatArray,
    usable: BoolArray,
    layout: IntArray,
    bounds: FloatArray,
    weights: Float32Array,
    whitening: Float32Array,
    shift_whitening: Float32Array,
    active: FloatArray,
    baseline: FloatArray,
    state: FloatArray,
    work: Float32Array,
    out_residual: FloatArray,
    out_shift: FloatArray,
    out_tract_z: FloatArray,
) -> tuple[int, float, float, float, float]:
    """`residuals` and `tracts` in one call.

    ``values`` and ``logs`` (n_features + 2 n_voxels,): what `prepare` gives, and its logarithms. Returns the
    weakest tract, -1 if none is known, and its z; the largest residual of the network's own taps; the
    input's residual, and its shift. NaN: not known.
    """
    n = bounds.shape[1]
    largest = residuals(
        values[:n],
        logs[:n],
        usable,
        layout,
        bounds,
        weights,
        whitening,
        shift_whitening,
        state,
        work,
        out_residual,
        out_shift,
    )
    log_drives = logs[n:].reshape((2, active.size))
    weakest = tracts(log_drives, usable, layout, active, baseline, out_tract_z)
    lowest = out_tract_z[weakest] if weakest >= 0 else math.nan
    return weakest, lowest, largest, out_residual[0], out_shift[0]
