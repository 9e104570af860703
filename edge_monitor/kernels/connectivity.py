"""How the layers drive one another: functional residual (D10), live tracts and root cause (D8)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]

# Columns of the layout (n_taps, 10): where each tap's part of every array begins, its channel groups, voxels
# and statistics of the picture, and the voxels of one channel group.
(
    FIRST_CHANNEL,
    FIRST_VOXEL,
    FIRST_FEATURE,
    FIRST_EDGE,
    FIRST_WEIGHT,
    FIRST_WHITENING,
    N_GROUPS,
    N_VOXELS,
    N_STATISTICS,
    CELLS,
) = range(10)

# Rows of the feature table (5, n_features): elements of one frame, floor, bounds of a log feature before
# it predicts, smoothed residual at which the feature is out of range.
COUNT, FLOOR, LOW, HIGH, LIMIT = range(5)

# Rows of the marked voxels (2, n_voxels).
ALARMING, UNDER = range(2)

# Rows of the drives (2, n_voxels): what a voxel drives others with, and what keeps it from being driven.
SOURCE, CLOSED = range(2)

SMOOTHING = 2.0 / (8 + 1)
"""Weight of a new residual: an exponentially weighted mean over 8 blocks (D10)."""
WARM = 8
"""Blocks until the smoothed residual counts."""
SLOW = 2.0 / (90 + 1)
"""Weight of a new residual in the slow mean that a sudden shift of the input stands out from."""
WARM_SLOW = 90
"""Blocks until the slow mean counts."""
SILENT, STEEPEST = 1e-30, 500.0
"""Bounds of what enters a logarithm or exponential; far outside of anything a network does."""
CLIP = 20.0
"""Largest residual of one feature and block: one wild value may not outlast its fault for long."""


@kernel(
    "void(float64[:, ::1], float64[::1], float64[::1], float64, int64[:, ::1], int64[::1], "
    "float64[:, ::1], boolean[::1], float64[::1])"
)
def levels(
    voxels: FloatArray,
    channels: FloatArray,
    picture: FloatArray,
    frames: float,
    layout: IntArray,
    edges: IntArray,
    table: FloatArray,
    state_usable: BoolArray,
    out_levels: FloatArray,
) -> None:
    """Each feature plus its floor: mean |a| of channel groups and voxels, statistics of the picture.

    ``voxels`` (n_voxels, 3): sum |a| first; ``channels`` (n_channels,): sum |a|, both over ``frames``
    frames. ``picture``: statistics of the input's regions, and more, which is left alone. ``edges``: first
    channel of each channel group of each tap and the end of its last, counted within the tap. ``table``
    (5, n_features): see its rows. ``state_usable`` (n_taps,): the input becomes unusable while a statistic is
    NaN. ``out_levels`` (n_features,): NaN for a tap that is not usable.
    """
    for k in range(layout[0, N_STATISTICS]):
        state_usable[0] &= not math.isnan(picture[k])
    for tap in range(state_usable.size):
        f = layout[tap, FIRST_FEATURE]
        n_groups, n_voxels = layout[tap, N_GROUPS], layout[tap, N_VOXELS]
        n_statistics = layout[tap, N_STATISTICS]
        if not state_usable[tap]:
            out_levels[f : f + n_groups + n_voxels + n_statistics] = math.nan
            continue
        first, edge = layout[tap, FIRST_CHANNEL], layout[tap, FIRST_EDGE]
        for k in range(n_groups):
            total = 0.0
            for c in range(first + edges[edge + k], first + edges[edge + k + 1]):
                total += channels[c]
            out_levels[f + k] = total / (table[COUNT, f + k] * frames) + table[FLOOR, f + k]
        f += n_groups
        for g in range(n_voxels):
            total = voxels[layout[tap, FIRST_VOXEL] + g, 0]
            out_levels[f + g] = total / (table[COUNT, f + g] * frames) + table[FLOOR, f + g]
        f += n_voxels
        for k in range(n_statistics):
            out_levels[f + k] = picture[k] + table[FLOOR, f + k]


@kernel("void(float32[::1], float32[::1], float32[::1])")
def multiply(inputs: Float32Array, matrix: Float32Array, out: Float32Array) -> None:
    """Product of a vector (m,) and a matrix (m, n), flattened row by row."""
    n = out.size
    out[:] = np.float32(0.0)
    # Rows are added up: the inner loop runs over neighbours, and nothing in it can be a negative index,
    # either of which would keep the compiler from using vectors. Four rows at once load and store the sums
    # once for them.
    whole = inputs.size - inputs.size % 4
    for i in range(0, whole, 4):
        a, b, c, d = inputs[i], inputs[i + 1], inputs[i + 2], inputs[i + 3]
        first, second = matrix[i * n : (i + 1) * n], matrix[(i + 1) * n : (i + 2) * n]
        third, fourth = matrix[(i + 2) * n : (i + 3) * n], matrix[(i + 3) * n : (i + 4) * n]
        for j in range(n):
            out[j] += (a * first[j] + b * second[j]) + (c * third[j] + d * fourth[j])
    for i in range(whole, inputs.size):
        x, row = inputs[i], matrix[i * n : (i + 1) * n]
        for j in range(n):
            out[j] += x * row[j]


@kernel("float64(float64[::1], float32[::1], float32[::1])")
def distance(departure: FloatArray, whitening: Float32Array, work: Float32Array) -> float:
    """Root of the sum of squares of ``departure`` (n,) along whitened directions, (n, n) row by row.

    ``work``: at least 2 n.
    """
    n = departure.size
    inputs, directions = work[:n], work[n : 2 * n]
    inputs[:] = departure
    multiply(inputs, whitening, directions)
    squares = 0.0
    for k in range(n):
        squares += float(directions[k]) * float(directions[k])
    return math.sqrt(squares)


@kernel(
    "float64(float64[::1], float64[::1], boolean[::1], int64[:, ::1], float64[:, ::1], float32[::1], "
    "float32[::1], float32[::1], float64[:, ::1], float32[::1], float64[::1], float64[::1])"
)
def residuals(
    levels: FloatArray,
    logs: FloatArray,
    usable: BoolArray,
    layout: IntArray,
    table: FloatArray,
    weights: Float32Array,
    whitening: Float32Array,
    shift_whitening: Float32Array,
    state: FloatArray,
    work: Float32Array,
    out_residual: FloatArray,
    out_shift: FloatArray,
) -> float:
    """Predict each tap's features from those of the tap before, smooth what is left, and measure it (D10).

    The largest residual of the taps from 1 on is returned, NaN if none is known.

    Parameters
    ----------
    levels, logs : (n_features,) float64
        The features (`levels`) and their logarithms.
    usable : (n_taps,) bool
        A tap that is not, and the one after it, keep their state and have no residual.
    layout, table
        As in `levels`.
    weights, whitening, shift_whitening : float32
        As in `ResidualBaseline`; single precision is ample for logarithms and half as much to read.
    state : (3, n_features) float64
        Smoothed residuals; updates so far, at the place of each tap's first feature; slow mean of the
        input's residuals.
    work : float32
        Work space, as long as 3 times the features of the largest tap, and 1.
    out_residual : (n_taps,) float64
        Root of the sum of squares over the whitened directions; NaN while not known.
    out_shift : (1 + input's features,) float64
        The same of the input's smoothed residuals less their slow mean, and these differences; NaN while
        not known.
    """
    smooth, updates, slow = state[0], state[1], state[2]
    largest = math.nan
    out_shift[:] = math.nan
    for tap in range(usable.size):
        out_residual[tap] = math.nan
        if not usable[tap] or (tap > 0 and not usable[tap - 1]):
            continue
        f = layout[tap, FIRST_FEATURE]
        n = layout[tap, N_GROUPS] + layout[tap, N_VOXELS] + layout[tap, N_STATISTICS]
        m = f - layout[tap - 1, FIRST_FEATURE] if tap > 0 else 0
        w = layout[tap, FIRST_WEIGHT]
        predicted = work[:n]
        inputs = work[n : n + 2 * m + 1]
        for i in range(m):
            x, level = logs[f - m + i], levels[f - m + i]
            if x < table[LOW, f - m + i] or x > table[HIGH, f - m + i]:
                x = min(max(x, table[LOW, f - m + i]), table[HIGH, f - m + i])
                level = math.exp(x)
            inputs[i], inputs[m + i] = x, level
        inputs[2 * m] = 1.0
        multiply(inputs, weights[w : w + inputs.size * n], predicted)
        for j in range(n):
            residual = min(max(logs[f + j] - predicted[j], -CLIP), CLIP)
            # One NaN would stay in the mean for good (test_one_nan_does_not_stay).
            if not math.isnan(residual):
                smooth[f + j] += SMOOTHING * (residual - smooth[f + j])
                if tap == 0:
                    slow[j] += max(SLOW, 1.0 / (updates[0] + 1.0)) * (residual - slow[j])
        updates[f] += 1.0
        if updates[f] < WARM:
            continue
        start = layout[tap, FIRST_WHITENING]
        out_residual[tap] = distance(smooth[f : f + n], whitening[start : start + n * n], work)
        if tap == 0 and updates[0] >= WARM_SLOW:
            for j in range(n):
                out_shift[1 + j] = smooth[j] - slow[j]
            out_shift[0] = distance(out_shift[1:], shift_whitening, work)
        if tap > 0 and (math.isnan(largest) or out_residual[tap] > largest):
            largest = out_residual[tap]
    return largest


@kernel("void(float64[:, ::1], float64, float64[:, ::1], float64[:, ::1])")
def drives(voxels: FloatArray, frames: float, nodes: FloatArray, out_drives: FloatArray) -> None:
    """Prepare the live tracts (D8): r of every voxel, and ``-(alpha + beta mean a)``.

    ``voxels`` (n_voxels, 3): sum |a|, sum a, sum a^2 over ``frames`` frames; (sum |a| + sum a) / 2 is
    the sum of the positive part, exactly. ``nodes`` (4, n_voxels): elements of one frame, alpha, beta, log r
    from which a source is active. ``out_drives`` (2, n_voxels): see its rows; bounded, so that log and exp
    are finite.
    """
    for g in range(voxels.shape[0]):
        out_drives[SOURCE, g] = max(0.5 * (voxels[g, 0] + voxels[g, 1]) / frames, SILENT)
        closed = -(nodes[1, g] + nodes[2, g] * voxels[g, 1] / (nodes[0, g] * frames))
        out_drives[CLOSED, g] = min(max(closed, -STEEPEST), STEEPEST)


@kernel("int64(float64[:, ::1], boolean[::1], int64[:, ::1], float64[:, ::1], float64[:, ::1], float64[::1])")
def tracts(
    log_drives: FloatArray,
    usable: BoolArray,
    layout: IntArray,
    nodes: FloatArray,
    baseline: FloatArray,
    out_z: FloatArray,
) -> int:
    """Robust z of every live tract (D8); return the tract with the lowest, -1 if none is known.

    Parameters
    ----------
    log_drives : (2, n_voxels) float64
        log r, and log(1 + exp(-(alpha + beta mean a))), which is -log sigma.
    nodes
        As in `drives`.
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
            if not (known and drive >= nodes[3, g]):
                out_z[tract : tract + n_targets] = math.nan
                tract += n_targets
                continue
            for h in range(target, target + n_targets):
                z = (drive - log_drives[CLOSED, h] - baseline[0, tract]) * baseline[1, tract]
                out_z[tract] = z
                if z < lowest:  # never true of NaN
                    lowest, weakest = z, tract
                tract += 1
    return weakest


@kernel(
    "int64(float64[::1], float64[::1], int64[:, ::1], int64[::1], float64[:, ::1], boolean[::1], "
    "boolean[:, ::1])"
)
def root_cause(
    residual: FloatArray,
    smooth: FloatArray,
    layout: IntArray,
    edges: IntArray,
    table: FloatArray,
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
            farthest = max(farthest, abs(smooth[f + k]) / table[LIMIT, f + k])
        for g in range(n_voxels):
            # Voxels of one channel group lie one after the other.
            group = g // cells
            n_split = n_voxels // cells
            low, high = group * n_channels // n_split, (group + 1) * n_channels // n_split
            ratio = abs(smooth[f + n_groups + g]) / table[LIMIT, f + n_groups + g]
            for k in range(n_groups):
                if edges[edge + k] < high and edges[edge + k + 1] > low:
                    ratio = max(ratio, abs(smooth[f + k]) / table[LIMIT, f + k])
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
    nodes: FloatArray,
    state_usable: BoolArray,
    out: FloatArray,
) -> None:
    """`levels` and `drives` in one call, into ``out`` (n_features + 2 n_voxels,): each call costs time."""
    n = table.shape[1]
    levels(voxels, channels, picture, frames, layout, edges, table, state_usable, out[:n])
    drives(voxels, frames, nodes, out[n:].reshape((2, voxels.shape[0])))


@kernel(
    "int64(float64[::1], float64[::1], boolean[::1], int64[:, ::1], float64[:, ::1], float32[::1], "
    "float32[::1], float32[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float32[::1], "
    "float64[::1], float64[::1], float64[::1])"
)
def compare(
    values: FloatArray,
    logs: FloatArray,
    usable: BoolArray,
    layout: IntArray,
    table: FloatArray,
    weights: Float32Array,
    whitening: Float32Array,
    shift_whitening: Float32Array,
    nodes: FloatArray,
    baseline: FloatArray,
    state: FloatArray,
    work: Float32Array,
    out_residual: FloatArray,
    out_shift: FloatArray,
    out_tract_z: FloatArray,
) -> int:
    """`residuals` and `tracts` in one call; return the weakest tract.

    ``values`` and ``logs`` (n_features + 2 n_voxels,): what `prepare` gives, with the closed drives
    exponentiated, and its logarithms. ``out_residual`` (1 + n_taps,): the largest of the network's own
    taps, and those of all taps.
    """
    n = table.shape[1]
    out_residual[0] = residuals(
        values[:n],
        logs[:n],
        usable,
        layout,
        table,
        weights,
        whitening,
        shift_whitening,
        state,
        work,
        out_residual[1:],
        out_shift,
    )
    log_drives = logs[n:].reshape((2, nodes.shape[1]))
    return tracts(log_drives, usable, layout, nodes, baseline, out_tract_z)
