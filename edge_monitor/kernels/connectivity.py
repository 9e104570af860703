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

# Rows of the state (3, n_features): smoothed residuals; updates so far, at the place of each tap's first
# feature; slow mean of the input's residuals.
SMOOTH, UPDATES, SLOW_MEAN = range(3)

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
        of_tap = out_levels[f : f + n_groups + n_voxels + n_statistics]
        if not state_usable[tap]:
            of_tap[:] = math.nan
            continue
        first, edge = layout[tap, FIRST_CHANNEL], layout[tap, FIRST_EDGE]
        for k in range(n_groups):
            total = 0.0
            for c in range(first + edges[edge + k], first + edges[edge + k + 1]):
                total += channels[c]
            of_tap[k] = total
        for g in range(n_voxels):
            of_tap[n_groups + g] = voxels[layout[tap, FIRST_VOXEL] + g, 0]
        count, floor = table[COUNT, f : f + of_tap.size], table[FLOOR, f : f + of_tap.size]
        for k in range(n_groups + n_voxels):
            of_tap[k] = of_tap[k] / (count[k] * frames) + floor[k]
        for k in range(n_statistics):
            of_tap[n_groups + n_voxels + k] = picture[k] + floor[n_groups + n_voxels + k]


@kernel("void(float32[::1], int64, float32[::1], int64, int64, float32[::1])")
def multiply(
    vector: Float32Array, m: int, matrices: Float32Array, start: int, n: int, out_vector: Float32Array
) -> None:
    """Product of the first m of a vector and a matrix (m, n), flattened row by row from ``start`` on."""
    inputs, matrix, out = vector[:m], matrices[start : start + m * n], out_vector[:n]
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


@kernel("void(float64[::1], float64[::1], float64[:, ::1], int64, int64, float32[::1])")
def bound(
    levels: FloatArray, logs: FloatArray, table: FloatArray, first: int, stop: int, out: Float32Array
) -> None:
    """Give what predicts a tap: logs of features ``first`` to ``stop`` within bounds, their levels, and 1."""
    m = stop - first
    x, level, low, high = (
        logs[first:stop],
        levels[first:stop],
        table[LOW, first:stop],
        table[HIGH, first:stop],
    )
    out_logs, out_levels = out[:m], out[m : 2 * m]
    outside = 0
    for i in range(m):  # without a branch, so that the compiler can use vectors; NaN stays
        out_logs[i] = min(max(x[i], low[i]), high[i])
        out_levels[i] = level[i]
        outside += (x[i] < low[i]) | (x[i] > high[i])
    out[2 * m] = np.float32(1.0)
    if outside > 0:
        for i in range(m):
            if x[i] < low[i] or x[i] > high[i]:
                out_levels[i] = math.exp(min(max(x[i], low[i]), high[i]))


@kernel("void(float64[::1], float32[::1], int64, int64, float64, float64[:, ::1], int64)")
def smoothen(
    logs: FloatArray,
    predicted: Float32Array,
    first: int,
    n: int,
    weight: float,
    state: FloatArray,
    row: int,
) -> None:
    """Take the clipped residuals of n features from ``first`` on into their mean, a row of ``state``."""
    x, smooth = logs[first : first + n], state[row, first : first + n]
    for j in range(n):
        residual = min(max(x[j] - predicted[j], -CLIP), CLIP)
        # One NaN would stay in the mean for good (test_one_nan_does_not_stay).
        smooth[j] = smooth[j] if math.isnan(residual) else smooth[j] + weight * (residual - smooth[j])


@kernel("float64(float64[::1], int64, int64, float32[::1], int64, float32[::1], float32[::1])")
def distance(
    departure: FloatArray,
    first: int,
    n: int,
    whitening: Float32Array,
    start: int,
    work_inputs: Float32Array,
    work_directions: Float32Array,
) -> float:
    """Root of the sum of squares of n departures along whitened directions.

    ``departure``: the n from ``first`` on; ``whitening``: (n, n) row by row from ``start`` on. The work
    spaces are at least n long.
    """
    for k in range(n):
        work_inputs[k] = departure[first + k]
    multiply(work_inputs, n, whitening, start, n, work_directions)
    squares = 0.0
    for k in range(n):
        squares += float(work_directions[k]) * float(work_directions[k])
    return math.sqrt(squares)


@kernel(
    "float64(float64[::1], float64[::1], boolean[::1], int64[:, ::1], float64[:, ::1], float32[::1], "
    "float32[::1], float32[::1], float64[:, ::1], float32[:, ::1], float64[::1], float64[::1])"
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
        See its rows.
    work : (2, 2 times the features of the largest tap, and 1) float32
        Work space.
    out_residual : (n_taps,) float64
        Root of the sum of squares over the whitened directions; NaN while not known.
    out_shift : (1 + input's features,) float64
        The same of the input's smoothed residuals less their slow mean, and these differences; NaN while
        not known.
    """
    smooth, updates, slow = state[SMOOTH], state[UPDATES], state[SLOW_MEAN]
    inputs, outputs = work[0], work[1]
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
        bound(levels, logs, table, f - m, f, inputs)
        multiply(inputs, 2 * m + 1, weights, w, n, outputs)
        smoothen(logs, outputs, f, n, SMOOTHING, state, SMOOTH)
        if tap == 0:
            smoothen(logs, outputs, f, n, max(SLOW, 1.0 / (updates[0] + 1.0)), state, SLOW_MEAN)
        updates[f] += 1.0
        if updates[f] < WARM:
            continue
        start = layout[tap, FIRST_WHITENING]
        out_residual[tap] = distance(smooth, f, n, whitening, start, inputs, outputs)
        if tap == 0 and updates[0] >= WARM_SLOW:
            for j in range(n):
                out_shift[1 + j] = smooth[j] - slow[j]
            out_shift[0] = distance(out_shift, 1, n, shift_whitening, 0, inputs, outputs)
        if tap > 0 and (math.isnan(largest) or out_residual[tap] > largest):
            largest = out_residual[tap]
    return largest


@kernel("void(float64[:, ::1], float64, float64[:, ::1], float64[:, ::1])")
def drives(voxels: FloatArray, frames: float, nodes: FloatArray, out_drives: FloatArray) -> None:
    """Prepare the live tracts (D8): r of every voxel, and ``1 + exp(-(alpha + beta mean a))``.

    ``voxels`` (n_voxels, 3): sum |a|, sum a, sum a^2 over ``frames`` frames; (sum |a| + sum a) / 2 is
    the sum of the positive part, exactly. ``nodes`` (4, n_voxels): elements of one frame, alpha, beta, log r
    from which a source is active. ``out_drives`` (2, n_voxels): see its rows; bounded, so that their
    logarithms are finite.
    """
    for g in range(voxels.shape[0]):
        out_drives[SOURCE, g] = max(0.5 * (voxels[g, 0] + voxels[g, 1]) / frames, SILENT)
        closed = -(nodes[1, g] + nodes[2, g] * voxels[g, 1] / (nodes[0, g] * frames))
        out_drives[CLOSED, g] = 1.0 + math.exp(min(max(closed, -STEEPEST), STEEPEST))


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
    "float32[::1], float32[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float32[:, ::1], "
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

    ``values`` and ``logs`` (n_features + 2 n_voxels,): what `prepare` gives, and its logarithms.
    ``out_residual`` (1 + n_taps,): the largest of the network's own taps, and those of all taps.
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
