"""Features of every tap, and where each tap's part of every array lies (design D10)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_monitor.kernels._jit import kernel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

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

# Rows of the feature table (2, n_features): elements of one frame, floor.
COUNT, FLOOR = range(2)


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
    (2, n_features): see its rows. ``state_usable`` (n_taps,): the input becomes unusable while a statistic is
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
