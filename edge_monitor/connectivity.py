"""How the layers drive one another: functional residual, live tracts, root cause (design D8, D10)."""

from __future__ import annotations

import itertools
import math

import numpy as np

from edge_monitor.arrays import BOOL, require_array
from edge_monitor.errors import MapError
from edge_monitor.features import FeatureBank
from edge_monitor.kernels.connectivity import compare
from edge_monitor.kernels.features import FIRST_VOXEL, N_VOXELS
from edge_monitor.kernels.tracts import root_cause
from edge_monitor.region_map import ResidualBaseline, TractBaseline
from edge_monitor.reports import Connectivity
from edge_monitor.types import BoolArray, FloatArray, SpatialBlock, TapSpec

STRONG = 0.5
"""A tract is strong when it carries at least this share of the target's strongest tract."""


class ConnectivityTracker:
    """Compares how each tap follows from the one before it with calibration.

    Parameters
    ----------
    taps : tuple[TapSpec, ...]
        The network's input, then the tapped tensors.
    residual : ResidualBaseline
    tracts : TractBaseline

    Raises
    ------
    MapError
        A baseline that does not fit the taps.
    """

    def __init__(self, taps: tuple[TapSpec, ...], residual: ResidualBaseline, tracts: TractBaseline) -> None:
        sizes = [tap.n_features for tap in taps]
        n_features = sum(sizes)
        n_voxels = sum(tap.n_voxels for tap in taps)
        n_tracts = sum(a.n_voxels * b.n_voxels for a, b in itertools.pairwise(taps))
        n_weights = sizes[0] + sum((2 * m + 1) * n for m, n in itertools.pairwise(sizes))
        # The kernels trust these shapes: they would read beyond the end of a shorter array.
        for name, array, shape in (
            ("residual.floor", residual.floor, (n_features,)),
            ("residual.low", residual.low, (n_features,)),
            ("residual.high", residual.high, (n_features,)),
            ("residual.weights", residual.weights, (n_weights,)),
            ("residual.whitening", residual.whitening, (sum(n * n for n in sizes),)),
            ("residual.shift", residual.shift, (sizes[0] ** 2,)),
            ("residual.limit", residual.limit, (n_features,)),
            ("tracts.strength", tracts.strength, (n_tracts,)),
            ("tracts.gate", tracts.gate, (n_voxels, 2)),
            ("tracts.median", tracts.median, (n_tracts,)),
            ("tracts.scale", tracts.scale, (n_tracts,)),
            ("tracts.active", tracts.active, (n_voxels,)),
        ):
            if array.shape != shape:
                raise MapError(name, f"shape {array.shape}, expected {shape}")
        self._bank = FeatureBank(taps, residual.floor, tracts.gate)
        self._bounds = np.array([residual.low, residual.high], np.float64)
        self._limit = np.array(residual.limit, np.float64)
        self._weights = np.array(residual.weights, np.float32)
        self._whitening = np.array(residual.whitening, np.float32)
        self._shift_whitening = np.array(residual.shift, np.float32)
        self._n_input = sizes[0]
        self._active = np.array(tracts.active, np.float64)
        with np.errstate(over="ignore"):  # a scale next to 0 is silly, and no reason to warn or stop
            self._tracts = np.array([tracts.median, 1.0 / tracts.scale])
        self._ends = [
            (g, h)
            for (source, n_sources), (target, n_targets) in itertools.pairwise(
                self._bank.layout[:, [FIRST_VOXEL, N_VOXELS]].tolist()
            )
            for g in range(source, source + n_sources)
            for h in range(target, target + n_targets)
        ]
        self._strong = strong_tracts(taps, tracts.strength)
        self._state = np.zeros((3, n_features))
        self._work = np.empty((2, 2 * max(sizes) + 1), np.float32)
        self._logs = np.empty(n_features + 2 * n_voxels)
        self._quiet = np.zeros(n_voxels, np.bool_)
        self._n_taps = len(taps)
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._state.fill(0.0)
        self._last = Connectivity(
            residual=np.full(self._n_taps, np.nan),
            departure=np.full(self._state.shape[1], np.nan),
            shift=np.full(1 + self._n_input, np.nan),
            tract_z=np.full(self._tracts.shape[1], np.nan),
            alarming=self._quiet,
            under=self._quiet,
            root=None,
            weakest=None,
            residual_score=None,
            shift_score=None,
            tract_score=None,
        )

    def update(self, block: SpatialBlock | None, picture: FloatArray | None, good: BoolArray) -> Connectivity:
        """Take in one frame's block; a frame without one repeats the last scores.

        Parameters
        ----------
        block : SpatialBlock or None
        picture : (n_picture,) float64 or None
            As in `StatRow`.
        good : (n_taps,) bool
            Taps without non-finite values. The others, and those not in the block, are masked.

        Raises
        ------
        InputError
            See `FeatureBank.update`.
        """
        if block is None:
            return self._last
        require_array("spatial.taps", block.taps, (self._n_taps,), BOOL)
        require_array("good", good, (self._n_taps,), BOOL)
        usable = good & block.taps
        bank = self._bank
        values = bank.update(block, picture, usable)
        # NumPy's logarithm of an array takes several at once, the compiled scalar one does not.
        np.log(values, out=self._logs)
        residual = np.empty(self._n_taps)
        shift = np.empty(1 + self._n_input)
        tract_z = np.empty(self._tracts.shape[1])
        weakest, lowest, largest, of_input, shifted = compare(
            values,
            self._logs,
            usable,
            bank.layout,
            self._bounds,
            self._weights,
            self._whitening,
            self._shift_whitening,
            self._active,
            self._tracts,
            self._state,
            self._work,
            residual,
            shift,
            tract_z,
        )
        alarming = under = self._quiet
        root = -1
        if largest >= 1.0 or of_input >= 1.0:
            marked = np.empty((2, bank.n_voxels), np.bool_)
            alarming, under = marked
            root = root_cause(
                residual, self._state[0], bank.layout, bank.edges, self._limit, self._strong, marked
            )
        self._last = Connectivity(
            residual=residual,
            departure=self._state[0].copy(),
            shift=shift,
            tract_z=tract_z,
            alarming=alarming,
            under=under,
            root=None if root < 0 else root,
            weakest=None if weakest < 0 else self._ends[weakest],
            residual_score=None if math.isnan(largest) else largest,
            shift_score=None if math.isnan(shifted) else shifted,
            tract_score=None if weakest < 0 else -lowest,
        )
        return self._last


def strong_tracts(taps: tuple[TapSpec, ...], strength: FloatArray) -> BoolArray:
    """Tracts along which an alarm spreads, (n_tracts,) bool.

    Where a transition could not be traced nothing is known, and every tract may carry it.
    """
    strong = np.empty(strength.shape, np.bool_)
    start = 0
    for source, target in itertools.pairwise(taps):
        stop = start + source.n_voxels * target.n_voxels
        matrix = strength[start:stop].reshape(source.n_voxels, target.n_voxels)
        carries = (matrix > 0) & (matrix >= STRONG * matrix.max(axis=0))
        strong[start:stop] = (carries | np.isnan(matrix)).ravel()
        start = stop
    return strong
