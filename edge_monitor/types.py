"""What a monitor is fed: the taps' rows frame by frame, what happens to the probe, and time.

Arrays are never written after they were put into one of these. "Not known yet" is NaN in a float
array or ``None`` in a field, never 0.
"""

from __future__ import annotations

from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BANDS = ("delta", "theta", "alpha", "beta", "gamma")
"""EEG band names, lowest first (design D5)."""

PICTURE = ("across", "down", "laplacian", "change_1", "change_2", "same", "flat")
"""Statistics of each region of a picture, see `kernels.picture`."""

WHOLE_PICTURE = ("dead_rows", "motion_1", "motion_16", "jump")
"""Statistics of the whole picture, behind those of the regions."""

CHANNEL_GROUPS = 32
"""At most so many channel groups of a tap enter the functional residual (design D10)."""


class TapSpec(msgspec.Struct, frozen=True):
    """One tapped tensor and its voxel grid (design D3). Tap 0 is the network's input.

    ``shape`` is (channels, height, width) without the batch axis; a dense layer of N units is
    (N, 1, 1). ``grid`` is (channel groups, rows, columns), already clamped to the shape.
    ``step`` is the spatial stride at which the tensor is read: 1 except for the input, of which at
    most 64 x 64 points are looked at. ``shape`` is the shape after that stride. ``picture``: rows and
    columns of regions for which the input has the statistics of `PICTURE`.
    """

    name: str
    shape: tuple[int, int, int]
    grid: tuple[int, int, int]
    step: tuple[int, int] = (1, 1)
    picture: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """Elements of one frame."""
        return prod(self.shape)

    @property
    def n_voxels(self) -> int:
        return prod(self.grid)

    @property
    def n_channels(self) -> int:
        return self.shape[0]

    @property
    def n_features(self) -> int:
        """Features of the functional residual: channel groups, voxels, statistics of the picture."""
        return min(self.n_channels, CHANNEL_GROUPS) + self.n_voxels + self.n_statistics

    @property
    def n_statistics(self) -> int:
        """Statistics of the picture: `PICTURE` of the first region, of the second, and so on."""
        return self.picture[0] * self.picture[1] * len(PICTURE)

    @property
    def n_picture(self) -> int:
        """Length of `StatRow.picture`: statistics of the regions, then those of the whole."""
        return self.n_statistics + len(WHOLE_PICTURE)

    def group_edges(self) -> IntArray:
        """First channel of each channel group, and the end of the last: ``floor(k C / g)``."""
        groups = min(self.n_channels, CHANNEL_GROUPS)
        return np.arange(groups + 1) * self.n_channels // groups

    def voxel_counts(self) -> IntArray:
        """Elements of each voxel, shape (n_voxels,), channel group slowest; edges ``floor(k n / g)``."""
        sizes = [np.diff(np.arange(g + 1) * n // g) for n, g in zip(self.shape, self.grid, strict=True)]
        counts = sizes[0][:, None, None] * sizes[1][None, :, None] * sizes[2][None, None, :]
        return counts.reshape(-1).astype(np.int64)


class SpatialBlock(msgspec.Struct, frozen=True, eq=False):
    """Voxel and channel sums over ``frames`` frames, all taps one after the other.

    ``taps`` (n_taps,) bool: which taps contributed. ``voxels`` (n_voxels, 3) float64: sum |a|,
    sum a, sum a^2. ``channels`` (n_channels,) float64: sum |a|. Non-finite elements are left out
    of the sums and counted in ``StatRow.nonfinite``.
    """

    frames: int
    taps: BoolArray
    voxels: FloatArray
    channels: FloatArray


class OutputSummary(msgspec.Struct, frozen=True):
    """What the model answered: winner, its probability, entropy in nats, count of non-finite values.

    ``confidence`` and ``entropy`` are None when the output holds a non-finite value or is no
    probability vector.
    """

    top1: int
    confidence: float | None
    entropy: float | None
    nonfinite: int


class StatRow(msgspec.Struct, frozen=True, eq=False):
    """Everything the monitor learns from one frame (design section 2).

    ``t_ns`` is CLOCK_MONOTONIC at the end of inference, ``t_capture_ns`` the caller's own time of
    the frame. ``signals`` (n_taps,) float64: mean |a| over finite elements (D1); ``nonfinite``
    (n_taps,) int64. ``fingerprint``: 64-bit hash of the sampled input. ``context``: named numbers
    from the vehicle (speed_mps, exposure, ...). ``picture`` (n_picture,) float64: statistics of
    the input's regions, then how many of its rows carry nothing, how much its thumbnail moved over 1 and
    over 16 frames, and how well a displacement of the whole explains the change from the last frame; NaN
    while there are not so many frames.
    """

    frame: int
    t_ns: int
    latency_ns: int
    signals: FloatArray
    nonfinite: IntArray
    fingerprint: int
    t_capture_ns: int | None = None
    spatial: SpatialBlock | None = None
    output: OutputSummary | None = None
    context: dict[str, float] = {}
    picture: FloatArray | None = None


class ProbeEvent(msgspec.Struct, frozen=True):
    """Something that happened to the probe itself: ``code`` is a row of ``flag_table.FLAGS``."""

    t_ns: int
    code: str
    detail: str


class Tick(msgspec.Struct, frozen=True):
    """Time passed without a frame; lets silence be noticed (design section 8)."""

    t_ns: int


MonitorInput = StatRow | ProbeEvent | Tick
"""Everything a monitor can be fed; a recording is a sequence of these."""
