"""Live tracts, and the root cause of alarms that spread along them (design D8)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel
from edge_monitor.kernels.features import CELLS, FIRST_EDGE, FIRST_FEATURE, FIRST_VOXEL, N_GROUPS, N_VOXELS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Rows of the drives (2, n_voxels): what a voxel drives others with, and what keeps it from being driven.
SOURCE, CLOSED = range(2)

# Rows of the marked voxels (2, n_voxels).
ALARMING, UNDER = range(2)

SILENT, STEEPEST = 1e-30, 500.0
"""Bounds of what enters a logarithm or exponential; far outside of anything a network does."""


@kernel("void(float64[:, ::1], float64, float64[:, ::1], float64[:, ::1])")
def drives(voxels: FloatArray, frames: float, gates: FloatArray, out_drives: FloatArray) -> None:
    """Prepare the live tracts (D8): r of every voxel, and ``1 + exp(-(alpha + beta mean a))``.

    ``voxels`` (n_voxels, 3): sum |a|, sum a, sum a^2 over ``frames`` frames; (sum |a| + sum a) / 2 is
    the sum of the positive part, exactly. ``gates`` (3, n_voxels): elements of one frame, alpha, beta.
    ``out_drives`` (2, n_voxels): see its rows; bounded, so that their logarithms are finite.
    """
    for g in range(voxels.shape[0]):
        out_drives[SOURCE, g] = max(0.5 * (voxels[g, 0] + voxels[g, 1]) / frames, SILENT)
        closed = -(gates[1, g] + gates[2, g] * voxels[g, 1] / (gates[0, g] * frames))
        out_drives[CLOSED, g] = 1.0 + math.exp(min(max(closed, -STEEPEST), STEEPEST))


@kernel("int64(float64[:, ::1], boolean[::1], int64[:, ::1], float64[::1], float64[:, ::1], float64[::1])")
def tracts(
    log_drives: FloatArray,
    usable: BoolArray,
    layout: IntArray,
    active: FloatArray,
    baseline: FloatArray,
    out_z: FloatArray,
) -> int:
    """Robust z of every live tract (D8); return the tract with the lowest, -1 if none is known.

    Parameters
    ----------
    log_drives : (2, n_voxels) float64
        log r, and log(1 + exp(-(alpha + beta mean a))), which is -log sigma.
    active : (n_voxels,) float64
        log r from which a source is active.
    baseline : (2, n_tracts) float64
        Median and 1 / scale of log r + log sigma; NaN: not watched.
    out_z : (n_tracts,) float64
        NaN where not watched, not usable, or the source is silent.
    """
    weakest = -1
    lowest = math.inf
    tract = 0
    for tap in range(usable.size - 1):
        source, target = layout[tap, FIRST_VOXEL], layout[tap + 1, FIRST_VOXEL]
        n_targets = layout[tap + 1, N_VOXELS]
        known = usable[tap] and usable[tap + 1]
        for g in range(source, source + layout[tap, N_VOXELS]):
            drive = log_drives[SOURCE, g]
            if not (known and drive >= active[g]):
                out_z[tract : tract + n_targets] = math.nan
                tract += n_targets
                continue
            of_source = out_z[tract : tract + n_targets]
            closed = log_drives[CLOSED, target : target + n_targets]
            median, scale = baseline[0, tract : tract + n_targets], baseline[1, tract : tract + n_targets]
            for h in range(n_targets):
                of_source[h] = (drive - closed[h] - median[h]) * scale[h]
            lower = 0
            for h in range(n_targets):
                lower += of_source[h] < lowest  # never true of NaN
            if lower > 0:
                for h in range(n_targets):
                    if of_source[h] < lowest:
                        lowest, weakest = of_source[h], tract + h
            tract += n_targets
    return weakest


@kernel(
    "int64(float64[::1], float64[::1], int64[:, ::1], int64[::1], float64[::1], boolean[::1], "
    "boolean[:, ::1])"
)
def root_cause(
    residual: FloatArray,
    smooth: FloatArray,
    layout: IntArray,
    edges: IntArray,
    limit: FloatArray,
    strong: BoolArray,
    out_voxels: BoolArray,
) -> int:
    """Mark the voxels that alarm, and those that the root explains; return the root, -1 if none alarms.

    Within a tap whose residual is 1 or more a voxel alarms when its own smoothed residual, or that of a
    channel group that reaches into it, is over its limit; if no feature is, the one nearest to its
    limit stands for the tap. The root is the voxel farthest over its limit in the earliest such tap of the
    network's own. The input is none of them: an unusual picture by itself leaves the layers as they
    were, and would take the blame for every fault behind it (tools/study_connectivity). An alarming
    voxel is under the root's tap when strong tracts lead to it from there through alarming voxels; one
    that is not has a cause of its own.

    Parameters
    ----------
    residual : (n_taps,) float64
    smooth : (n_features,) float64
    limit : (n_features,) float64
        Smoothed residual at which a feature is out of range.
    strong : (n_tracts,) bool
        Tracts that carry an alarm from a source voxel to a target voxel.
    out_voxels : (2, n_voxels) bool
        Alarming; alarming and under the root's tap.
    """
    root = -1
    root_tap = residual.size
    worst = 0.0
    tract = 0
    for tap in range(residual.size):
        first, f = layout[tap, FIRST_VOXEL], layout[tap, FIRST_FEATURE]
        n_groups, n_voxels, edge = layout[tap, N_GROUPS], layout[tap, N_VOXELS], layout[tap, FIRST_EDGE]
        n_before = layout[tap - 1, N_VOXELS] if tap > 0 else 0
        tract += n_before * n_voxels
        out_voxels[:, first : first + n_voxels] = False
        if not residual[tap] >= 1.0:
            continue
        cells = layout[tap, CELLS]
        n_channels = edges[edge + n_groups]
        farthest = 0.0
        for k in range(n_groups + n_voxels):
            farthest = max(farthest, abs(smooth[f + k]) / limit[f + k])
        for g in range(n_voxels):
            # Voxels of one channel group lie one after the other.
            group = g // cells
            n_split = n_voxels // cells
            low, high = group * n_channels // n_split, (group + 1) * n_channels // n_split
            ratio = abs(smooth[f + n_groups + g]) / limit[f + n_groups + g]
            for k in range(n_groups):
                if edges[edge + k] < high and edges[edge + k + 1] > low:
                    ratio = max(ratio, abs(smooth[f + k]) / limit[f + k])
            if ratio < min(farthest, 1.0):
                continue
            out_voxels[ALARMING, first + g] = True
            if tap == 0:
                continue
            if root < 0 or (tap == root_tap and ratio > worst):
                root, root_tap, worst = first + g, tap, ratio
            carries = ALARMING if root_tap == tap - 1 else UNDER
            for p in range(n_before):
                leads = strong[tract - n_before * n_voxels + p * n_voxels + g]
                if leads and out_voxels[carries, first - n_before + p]:
                    out_voxels[UNDER, first + g] = True
    return root
