"""Features of every tap and drives of every voxel, the same in calibration and on the device (D8, D10)."""

from __future__ import annotations

import numpy as np

from edge_monitor.arrays import FLOAT, require_array
from edge_monitor.errors import InputError
from edge_monitor.kernels import connectivity as kernel
from edge_monitor.kernels.features import COUNT, FLOOR
from edge_monitor.types import BoolArray, FloatArray, IntArray, SpatialBlock, TapSpec


class FeatureBank:
    """Mean |a| of each tap's channel groups and voxels, statistics of the picture, and drives of voxels.

    Parameters
    ----------
    taps : tuple[TapSpec, ...]
        The network's input, then the tapped tensors.
    floor : (n_features,) float64
        Added to each mean, so that it has a logarithm.
    gate : (n_voxels, 2) float64
        As in `TractBaseline`; where it is NaN, it is not known what keeps the voxel from being driven.

    Attributes
    ----------
    n_features, n_voxels : int
    layout : (n_taps, 10) int64
        Columns as `kernels.features` names them.
    edges : (channel groups of all taps + n_taps,) int64
        `TapSpec.group_edges` of one tap after the other.
    """

    def __init__(self, taps: tuple[TapSpec, ...], floor: FloatArray, gate: FloatArray) -> None:
        self.layout = _layout(taps)
        self.edges = np.concatenate([tap.group_edges() for tap in taps])
        self.n_features = sum(tap.n_features for tap in taps)
        self.n_voxels = sum(tap.n_voxels for tap in taps)
        self._n_channels = sum(tap.n_channels for tap in taps)
        self._no_picture = np.full(taps[0].n_picture, np.nan)
        self._table = np.empty((2, self.n_features))
        self._table[COUNT] = np.concatenate(
            [
                part
                for tap in taps
                for part in (
                    np.diff(tap.group_edges()) * (tap.size // tap.n_channels),
                    tap.voxel_counts(),
                    np.ones(tap.n_statistics),
                )
            ]
        )
        self._table[FLOOR] = floor
        self._gates = np.array([np.concatenate([tap.voxel_counts() for tap in taps]), *gate.T], np.float64)
        self._values = np.empty(self.n_features + 2 * self.n_voxels)

    def update(self, block: SpatialBlock, picture: FloatArray | None, usable: BoolArray) -> FloatArray:
        """Take in one block.

        Parameters
        ----------
        block : SpatialBlock
        picture : (n_picture,) float64 or None
            As in `StatRow`.
        usable : (n_taps,) bool
            Is changed: without statistics of the picture the input is not.

        Returns
        -------
        (n_features + 2 n_voxels,) float64
            The features, NaN for a tap that is not usable, then the drives as `kernels.tracts.drives` has
            them; overwritten by the next call.

        Raises
        ------
        InputError
            An array of another shape or dtype, strided or read-only; a block of no frames.
        """
        if block.frames < 1:
            raise InputError("spatial.frames", f"{block.frames} is below 1")
        require_array("spatial.voxels", block.voxels, (self.n_voxels, 3), FLOAT)
        require_array("spatial.channels", block.channels, (self._n_channels,), FLOAT)
        if picture is None:
            picture = self._no_picture
        else:
            require_array("picture", picture, self._no_picture.shape, FLOAT)
        kernel.prepare(
            block.voxels,
            block.channels,
            picture,
            float(block.frames),
            self.layout,
            self.edges,
            self._table,
            self._gates,
            usable,
            self._values,
        )
        return self._values


def _layout(taps: tuple[TapSpec, ...]) -> IntArray:
    """Where each tap's part of every array begins; columns as `kernels.features` names them."""
    rows: list[tuple[int, ...]] = []
    channel = voxel = feature = edge = weight = whitening = 0
    inputs = 1
    for tap in taps:
        cells = tap.grid[1] * tap.grid[2]
        groups = tap.n_features - tap.n_voxels - tap.n_statistics
        starts = (channel, voxel, feature, edge, weight, whitening)
        rows.append((*starts, groups, tap.n_voxels, tap.n_statistics, cells))
        channel += tap.n_channels
        voxel += tap.n_voxels
        feature += tap.n_features
        edge += groups + 1
        weight += inputs * tap.n_features
        whitening += tap.n_features**2
        inputs = 2 * tap.n_features + 1
    return np.array(rows, np.int64)
