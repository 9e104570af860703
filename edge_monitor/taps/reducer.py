"""From one frame's activations to the numbers of a StatRow: one kernel call (design D1-D3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, MapError
from edge_monitor.kernels import displacement, picture
from edge_monitor.kernels.fingerprint import fingerprint
from edge_monitor.kernels.tap_moments import tap_moments
from edge_monitor.taps.tap_table import ALIGNMENT, Layout, TapTable, aligned_zeros
from edge_monitor.types import BoolArray, FloatArray, IntArray, SpatialBlock, TapSpec

INPUT_POINTS = 64
"""At most this many rows and columns of the network's input are looked at (design section 2)."""

COLOURS = 4
"""Channel groups of an input at most: each channel of RGB or RGBA stands for itself."""

COLOUR_GRID, PICTURE_GRID = (4, 4), (3, 3)
"""Rows and columns of the input's voxels, and of its regions that have statistics of the picture."""

DEFAULT_GRID = (4, 2, 2)
"""Channel groups, rows, columns (design D3)."""


class Reduction(msgspec.Struct, frozen=True, eq=False):
    """One frame, reduced; every array of numbers is fresh.

    ``signals`` (n_taps,) float64: mean |a| over finite elements (D1), NaN when a tap has none;
    ``nonfinite`` (n_taps,) int64; ``fingerprint``: 64-bit hash of the sampled input; ``picture``
    (n_picture,) float64 as in `StatRow`.
    """

    signals: FloatArray
    nonfinite: IntArray
    spatial: SpatialBlock | None
    fingerprint: int
    picture: FloatArray


class TapReducer:
    """Reduces the activations of one frame where they lie.

    Parameters
    ----------
    taps : tuple[TapSpec, ...]
        The network's input, then the tapped tensors.
    layouts : tuple[Layout, ...]
        How the tapped tensors lie in memory, one per tap behind the input.

    Attributes
    ----------
    input : (C, H, W) float32
        The sampled input of the frame, tap 0.

    Raises
    ------
    InputError
        No tap, a grid that does not fit its shape, or a layout that is not read (`TapTable`).
    """

    def __init__(self, taps: tuple[TapSpec, ...], layouts: tuple[Layout, ...]) -> None:
        if not taps:
            raise InputError("taps", "none given; the first one is the network's input")
        for tap in taps:
            if not all(1 <= g <= n for g, n in zip(tap.grid, tap.shape, strict=True)):
                raise InputError(tap.name, f"grid {tap.grid} does not fit shape {tap.shape}")
        self._spec = spec = taps[0]
        self._table = TapTable(taps, (Layout(), *layouts))
        # The padding stays zero, so that the words are those of the frame alone.
        memory = aligned_zeros(-(-4 * spec.size // ALIGNMENT) * ALIGNMENT)
        self._words = memory.view(np.uint64)
        self.input = memory.view(np.float32)[: spec.size].reshape(spec.shape)
        self._table.place(0, self.input.ctypes.data)
        self._points = (..., slice(None, None, spec.step[0]), slice(None, None, spec.step[1]))
        self._shapes = spec.shape, (1, *spec.shape)
        self._placed = len(taps) == 1
        self._n_voxels, self._n_channels = sum(t.n_voxels for t in taps), sum(t.n_channels for t in taps)
        self._scan = np.ones(len(taps), np.bool_)
        self._scanned, self._whole = len(taps), True
        height, width = spec.shape[1:]
        rows, columns = min(displacement.THUMB, height), min(displacement.THUMB, width)
        self._pictures = np.zeros(1, np.int64)
        # In the order in which `kernels.picture.statistics` takes them.
        self._picture = (
            self.input,
            *spec.picture,
            np.arange(columns + 1) * width // columns,
            np.zeros((3, height, width), np.float32),
            np.zeros((displacement.LAG + 1, rows * columns)),
            np.zeros((2, height + width)),
            self._pictures,
            np.zeros((picture.N_STATISTICS, width), np.float32),
            np.zeros((2, max(height, width) // 4 + 1)),
        )
        self._n_picture = spec.n_picture

    def place(self, addresses: Sequence[int]) -> None:
        """Say where the tensors of the taps behind the input are; the caller keeps that memory."""
        for tap, address in zip(range(1, self._scan.size), addresses, strict=True):
            self._table.place(tap, address)
        self._placed = True

    def load_input(self, frame: NDArray[Any]) -> None:
        """Sample the network's input into `input`.

        Parameters
        ----------
        frame : array of any real dtype, any strides
            (channels, height, width) or (units,), or the same behind a batch axis of 1.

        Raises
        ------
        InputError
            Another shape, or a dtype that holds no real numbers.
        """
        spec = self._spec
        sampled = frame[self._points] if frame.ndim > 2 else frame[..., None, None]
        if sampled.shape not in self._shapes:
            raise InputError(
                spec.name,
                f"frame of shape {frame.shape}, expected {spec.shape} after a stride of {spec.step}",
            )
        if frame.dtype.kind not in "fiub":
            raise InputError(spec.name, f"frame of dtype {frame.dtype}, expected real numbers")
        if frame.dtype.itemsize <= 4:  # asking NumPy for errstate costs more than the copy
            self.input[...] = sampled
        else:
            with np.errstate(over="ignore"):  # beyond float32 is inf, and is counted as such
                self.input[...] = sampled

    def restart(self) -> None:
        """Forget the pictures so far: the next one has none before it."""
        self._pictures[0] = 0

    def choose(self, scan: BoolArray) -> None:
        """Choose the taps (n_taps,) whose voxels are read from now on; without any there is no block."""
        if scan is self._scan:
            return
        self._scan, self._scanned = scan, int(np.count_nonzero(scan))
        self._whole = self._scanned == scan.size
        self._table.choose(scan)

    def reduce(self) -> Reduction:
        """Reduce what the taps hold now.

        Raises
        ------
        InputError
            The taps have not been placed.
        """
        if not self._placed:
            raise InputError("taps", "not placed in memory")
        table, n_taps = self._table, self._scan.size
        signals = np.empty(n_taps)
        nonfinite = np.empty(n_taps, np.int64)
        voxels = np.empty((self._n_voxels, 3))
        channels = np.empty(self._n_channels)
        if not self._whole:  # nobody shall take for voxels what nothing was written to
            voxels.fill(np.nan)
        tap_moments(table.taps, table.program, table.scales, signals, nonfinite, voxels, channels)
        spatial = None
        if self._scanned:
            spatial = SpatialBlock(frames=1, taps=self._scan, voxels=voxels, channels=channels)
        statistics = np.empty(self._n_picture)
        picture.statistics(*self._picture, statistics)
        return Reduction(signals, nonfinite, spatial, int(fingerprint(self._words)), statistics)


def input_spec(name: str, shape: tuple[int, ...]) -> TapSpec:
    """Tap 0 for a model input of shape (channels, height, width) or (units,), without batch axis.

    The stride leaves at most 64 x 64 points; up to four channels have a voxel group each.

    Raises
    ------
    InputError
        Any other number of axes, or an empty one.
    """
    channels, height, width = _three_axes(name, shape)
    step = (-(-height // INPUT_POINTS), -(-width // INPUT_POINTS))
    sampled = (channels, -(-height // step[0]), -(-width // step[1]))
    regions = min(PICTURE_GRID[0], sampled[1]), min(PICTURE_GRID[1], sampled[2])
    return TapSpec(name, sampled, _clamp((COLOURS, *COLOUR_GRID), sampled), step, regions)


def tap_spec(name: str, shape: tuple[int, ...], grid: tuple[int, int, int] = DEFAULT_GRID) -> TapSpec:
    """Tap of a tensor of shape (channels, height, width) or (units,), its grid clamped to the shape.

    Raises
    ------
    InputError
        Any other number of axes, an empty one, or a grid below 1.
    """
    full = _three_axes(name, shape)
    if min(grid) < 1:
        raise InputError(name, f"grid {grid} must be at least 1 on every axis")
    return TapSpec(name, full, _clamp(grid, full))


def match_specs(natural: tuple[TapSpec, ...], recorded: tuple[TapSpec, ...] | None) -> tuple[TapSpec, ...]:
    """Specifications that a map records, else the ``natural`` ones of the model.

    Raises
    ------
    MapError
        A recorded tap has another name or shape than the model's.
    """
    if recorded is None:
        return natural
    for spec, own in zip(recorded, natural, strict=True):
        if (spec.name, spec.shape) != (own.name, own.shape):
            raise MapError(
                f"tap {spec.name}", f"is {spec.shape} in the map, the model has {own.name} {own.shape}"
            )
    return recorded


def _three_axes(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (1, 3) or prod(shape) < 1:
        raise InputError(name, f"shape {shape} is neither (channels, height, width) nor (units,)")
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    return channels, height, width


def _clamp(grid: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return min(grid[0], shape[0]), min(grid[1], shape[1]), min(grid[2], shape[2])
