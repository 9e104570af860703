"""NN-EEG: each tap's band powers and line against its clean baseline, and its state (design D5, D6)."""

from __future__ import annotations

import math

import numpy as np

from edge_monitor.band_bank import BandBank
from edge_monitor.band_plan import LINE, LINE_BINS, BandPlan
from edge_monitor.errors import MapError
from edge_monitor.kernels.eeg import compare
from edge_monitor.kernels.goertzel import GAP_LIMIT
from edge_monitor.kernels.structure import LAGS, LENGTH
from edge_monitor.region_map import EegBaseline
from edge_monitor.reports import STATES, BandPowers
from edge_monitor.types import BANDS, BoolArray, FloatArray

IDLE = STATES.index("idle")


class EegTracker:
    """NN-EEG of every tap against its clean baseline (design D5, D6).

    Parameters
    ----------
    baseline : EegBaseline
        From the region map.
    n_taps : int
        Signals per frame.
    frame_rate_hz : float
        Frames per second.

    Raises
    ------
    MapError
        A baseline of another shape, a scale that is not positive, or a band without a positive floor.
    """

    def __init__(self, baseline: EegBaseline, n_taps: int, frame_rate_hz: float) -> None:
        plan = BandPlan.make(baseline.scale_mode, frame_rate_hz)
        self._bank = BandBank(plan.with_line(), n_taps, n_powers=LINE)
        self._shape = (n_taps, len(BANDS))
        line_level = (n_taps, LINE_BINS)
        for name, expected in (
            *((name, self._shape) for name in ("floor", "mean", "scale")),
            *(("line_level", line_level), ("line", (n_taps, 3))),
        ):
            shape = getattr(baseline, name).shape
            if shape != expected:
                raise MapError(f"eeg.{name}", f"shape {shape} is not {expected}")
        known = plan.observable & ~np.isnan(baseline.mean) & ~np.isnan(baseline.scale)
        for name, values in (("floor", baseline.floor[known]), ("scale", baseline.scale[known])):
            if not np.all(values > 0):
                raise MapError(f"eeg.{name}", f"{values.min()} is not positive")
        scale = np.where(known, baseline.scale, np.nan)
        self._baseline = np.array([baseline.floor, baseline.mean, scale], np.float64)
        self._line_weight = np.exp(-np.array(baseline.line_level, np.float64, order="C"))
        self._line = np.array(baseline.line, np.float64, order="C")
        self._line_smooth = np.full(n_taps, np.nan)
        self._logs = np.zeros((LENGTH, n_taps))
        self._samples = np.zeros(n_taps, np.int64)
        self._structure = np.full((n_taps, len(LAGS)), np.nan)

    def reset(self) -> None:
        """Forget everything but the baseline."""
        self._bank.reset()
        self._line_smooth.fill(np.nan)
        self._forget_structure()

    def _forget_structure(self) -> None:
        self._samples.fill(0)
        self._structure.fill(np.nan)

    @property
    def warm(self) -> bool:
        """Whether every window of every tap is full."""
        return self._bank.warm

    def update(self, signals: FloatArray, good: BoolArray, missing: int) -> BandPowers:
        """Take in one frame; parameters and errors as for `BandBank.update`."""
        power = self._bank.update(signals, good, missing)
        if missing > GAP_LIMIT:
            self._forget_structure()
        z = np.empty(self._shape)
        state = np.empty(self._shape[0], np.int64)
        line_z = np.empty(self._shape[0])
        score, line_score = compare(
            signals,
            good,
            power,
            self._bank.taps,
            self._bank.sums,
            self._baseline,
            IDLE,
            self._line_weight,
            self._line,
            self._line_smooth,
            self._logs,
            self._samples,
            self._structure,
            z,
            state,
            line_z,
        )
        return BandPowers(
            power=power,
            z=z,
            state=state,
            held=self._bank.held,
            score=None if math.isnan(score) else score,
            line=line_z,
            line_score=None if math.isnan(line_score) else line_score,
            structure=self._structure.copy(),
        )


def log_powers(power: FloatArray, floor: FloatArray) -> FloatArray:
    """Natural logarithm of ``power + floor``, the scale on which baselines are fitted."""
    return np.asarray(np.log(power + floor), np.float64)


def nearest_profile(
    profile: FloatArray, profile_mean: FloatArray, profile_covariance: FloatArray
) -> int | None:
    """Which tap a band profile looks like (the layer's signature).

    Parameters
    ----------
    profile : (n_bands,) float64
        Mean log powers of an unknown tap, NaN where unknown.
    profile_mean, profile_covariance : (n_taps, n_bands), (n_taps, n_bands, n_bands) float64
        `EegBaseline`'s signatures, NaN where a tap has none.

    Returns
    -------
    int or None
        The tap at the smallest squared Mahalanobis distance per band, over the bands both know: a
        busier scene lifts all bands together, which a distance band by band takes for another layer.
        None when no tap shares a band with the profile.
    """
    distances = np.full(len(profile_mean), np.inf)
    for tap, (mean, covariance) in enumerate(zip(profile_mean, profile_covariance, strict=True)):
        shared = ~np.isnan(profile - mean + np.diag(covariance))
        if shared.any():
            off = (profile - mean)[shared]
            whitened = np.linalg.solve(covariance[np.ix_(shared, shared)], off)
            distances[tap] = off @ whitened / shared.sum()
    return int(distances.argmin()) if np.isfinite(distances).any() else None
