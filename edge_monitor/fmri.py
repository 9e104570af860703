"""NN-fMRI: where in the network the activations differ from clean driving (design D2, section 6)."""

from __future__ import annotations

import math

import numpy as np

from edge_monitor.arrays import BOOL, FLOAT, require_array
from edge_monitor.errors import InputError, MapError
from edge_monitor.kernels import voxels as kernel
from edge_monitor.region_map import FmriBaseline
from edge_monitor.reports import RegionScores
from edge_monitor.types import BoolArray, FloatArray, IntArray, SpatialBlock, TapSpec


def densities(voxels: FloatArray, counts: FloatArray | IntArray, floor: FloatArray) -> FloatArray:
    """Density of every voxel: D2, or the log level where there is a floor.

    Parameters
    ----------
    voxels : (n_voxels, 3) float64
        sum |a|, sum a, sum a^2.
    counts : (n_voxels,) int or float
        Elements summed: those of one frame times the frames.
    floor : (n_voxels,) float64
        As in `FmriBaseline`.

    Returns
    -------
    (n_voxels,) float64
        ``mean|a| + 0.1 log(var a + 1e-6)``, var with ddof 0; or ``log(mean|a| + floor)``.

    Raises
    ------
    InputError
        Shapes that do not fit.
    """
    if voxels.shape != (counts.size, 3):
        raise InputError("voxels", f"shape {voxels.shape}, expected {(counts.size, 3)}")
    if floor.shape != (counts.size,):
        raise InputError("floor", f"shape {floor.shape}, expected {(counts.size,)}")
    density = np.empty(counts.size)
    sums = np.ascontiguousarray(voxels, np.float64)
    kernel.densities(sums, counts.astype(np.float64), 1.0, np.array(floor, np.float64), density)
    return density


class FmriTracker:
    """Scores each spatial block against the clean densities.

    Parameters
    ----------
    taps : tuple[TapSpec, ...]
        The network's input, then the tapped tensors.
    baseline : FmriBaseline
    theta : (n_voxels,) float64
        Impact of every voxel: it ranks, and never decides whether there is an alarm.

    Raises
    ------
    MapError
        A baseline of another number of voxels.
    """

    def __init__(self, taps: tuple[TapSpec, ...], baseline: FmriBaseline, theta: FloatArray) -> None:
        counts = np.concatenate([tap.voxel_counts() for tap in taps])
        rows = {"median": baseline.median, "scale": baseline.scale, "theta": theta}
        rows |= {"floor": baseline.floor, "bright": baseline.bright}
        for name, row in rows.items():
            if row.shape != counts.shape:
                raise MapError(f"fmri.{name}", f"shape {row.shape}, expected {counts.shape}")
        self._baseline = np.array([counts, *rows.values()], np.float64)
        self._first_voxel = np.cumsum([0, *(tap.n_voxels for tap in taps)])
        self._n_taps = len(taps)
        self.reset()

    def reset(self) -> None:
        """Forget the last block."""
        n_taps, n_voxels = self._n_taps, self._baseline.shape[1]
        nothing = np.full(n_voxels, np.nan)
        self._last = RegionScores(
            density=nothing,
            z=nothing,
            tap_score=np.full(n_taps, np.nan),
            worst=None,
            severity=None,
            score=None,
            input_score=None,
            bright=None,
        )

    def update(self, block: SpatialBlock | None, good: BoolArray) -> RegionScores:
        """Score one frame's block; a frame without one repeats the last scores.

        Parameters
        ----------
        block : SpatialBlock or None
        good : (n_taps,) bool
            Taps without non-finite values. The others, and those not in the block, are masked.

        Raises
        ------
        InputError
            An array of another shape or dtype, strided or read-only; a block of no frames.
        """
        if block is None:
            return self._last
        if block.frames < 1:
            raise InputError("spatial.frames", f"{block.frames} is below 1")
        n_taps, n_voxels = self._n_taps, self._baseline.shape[1]
        require_array("spatial.voxels", block.voxels, (n_voxels, 3), FLOAT)
        require_array("spatial.taps", block.taps, (n_taps,), BOOL)
        require_array("good", good, (n_taps,), BOOL)
        scores = np.empty((2, n_voxels))
        taps = np.empty(n_taps)
        worst, *summary = kernel.compare(
            block.voxels,
            float(block.frames),
            self._baseline,
            self._first_voxel,
            block.taps,
            good,
            scores,
            taps,
        )
        severity, score, input_score, bright = [None if math.isnan(x) else x for x in summary]
        self._last = RegionScores(
            density=scores[0],
            z=scores[1],
            tap_score=taps,
            worst=None if worst < 0 else worst,
            severity=severity,
            score=score,
            input_score=input_score,
            bright=bright,
        )
        return self._last
