"""NN-EEG: band powers of every tap's temporal signal, their z-scores and the tap's state (design D4-D6)."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from edge_monitor.errors import InputError, MapError
from edge_monitor.kernels import goertzel, line
from edge_monitor.kernels.structure import LAGS, LENGTH, structure
from edge_monitor.region_map import EegBaseline
from edge_monitor.types import BANDS, STATES, BandPowers, BoolArray, FloatArray, IntArray

EDGES_HZ = ((0.5, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 100.0))
"""The EEG's bands at 200 frames/s (design D5)."""

REFERENCE_RATE_HZ = 200.0
WINDOWS = (256, 256, 128, 64, 32)
"""Frames each band looks back on, `BANDS` order (design D5)."""

LINE_FIRST = 2
"""First bin in which lines are sought: below, driving itself has lines."""
LINE_BINS = line.WINDOW // 2 + 1 - LINE_FIRST
LINE = len(WINDOWS)
"""Place of that window behind those of the bands."""

IDLE = STATES.index("idle")

_FLOAT64, _BOOL = np.dtype(np.float64), np.dtype(np.bool_)


class BandPlan(msgspec.Struct, frozen=True, eq=False):
    """Which DFT bins of which window make up each band (design D5).

    ``edges_hz`` (n_bands, 2) float64: lower edge (in the band) and upper edge (in it only at
    Nyquist, in the top band). ``bins`` (n_bands, 2) int64: first bin and the one after the last; bin
    k of a window of N frames lies at ``k frame_rate_hz / N``. A band without bins is unobservable.
    """

    frame_rate_hz: float
    windows: tuple[int, ...]
    edges_hz: FloatArray
    bins: IntArray

    @classmethod
    def make(cls, scale_mode: str, frame_rate_hz: float) -> BandPlan:
        """Plan the bands for a frame rate.

        Parameters
        ----------
        scale_mode : str
            "nyquist" scales all edges by ``frame_rate_hz`` / 200, so that gamma ends at Nyquist;
            "hz" keeps the EEG's own edges and leaves bands beyond Nyquist unobservable.
        frame_rate_hz : float
            Frames per second.

        Raises
        ------
        InputError
            Unknown scale, or a rate that is not a positive number.
        """
        if not (math.isfinite(frame_rate_hz) and frame_rate_hz > 0):
            raise InputError("frame rate", f"{frame_rate_hz} Hz is not a positive number")
        if scale_mode not in ("nyquist", "hz"):
            raise InputError("bands.scale", f"{scale_mode!r} is neither 'nyquist' nor 'hz'")
        rate_of_edges = REFERENCE_RATE_HZ if scale_mode == "nyquist" else frame_rate_hz
        edges = np.array(EDGES_HZ) / rate_of_edges  # cycles per frame
        windows = np.array(WINDOWS)
        # An edge that falls on a bin must not slip to its neighbour by a rounding error.
        bins = np.ceil(edges * windows[:, None] - 1e-9).astype(np.int64)
        nyquist = windows // 2
        if bins[-1, 1] == nyquist[-1]:
            bins[-1, 1] += 1
        bins = np.clip(bins, 1, nyquist[:, None] + 1)  # bin 0 is the mean, which is removed
        return cls(float(frame_rate_hz), WINDOWS, edges * frame_rate_hz, bins)

    def with_line(self) -> BandPlan:
        """Return the same bands, and behind them the window of `line.WINDOW` frames up to Nyquist."""
        edges = np.array([[LINE_FIRST / line.WINDOW, 0.5]]) * self.frame_rate_hz
        bins = np.array([[LINE_FIRST, line.WINDOW // 2 + 1]])
        return BandPlan(
            self.frame_rate_hz,
            (*self.windows, line.WINDOW),
            np.vstack([self.edges_hz, edges]),
            np.vstack([self.bins, bins]),
        )

    @property
    def observable(self) -> BoolArray:
        """(n_bands,) bool: the band has bins at this frame rate."""
        return self.bins[:, 1] > self.bins[:, 0]


class BandBank:
    """Band powers of all taps, one update per frame (design D1, D4, D5).

    Frequencies are normalised (frame rate 1): ``power`` is in signal units squared and does not
    depend on the frame rate.

    Parameters
    ----------
    plan : BandPlan
        The bands.
    n_taps : int
        Signals per frame.
    segments : int, optional
        Welch's K: how many segments of N frames, half a window apart, are averaged.
    n_powers : int, optional
        How many bands have their power given, the first of them; default: all.

    Raises
    ------
    InputError
        ``n_taps`` or ``segments`` below 1.
    """

    def __init__(self, plan: BandPlan, n_taps: int, segments: int = 1, n_powers: int | None = None) -> None:
        for name, value in (("n_taps", n_taps), ("segments", segments)):
            if value < 1:
                raise InputError(name, f"{value} is below 1")
        self._plan = plan
        self._n_taps = n_taps
        self._segments = segments
        self._n_powers = len(plan.windows) if n_powers is None else n_powers
        self._span = max(plan.windows) * (segments + 1) // 2
        self._bands, self._twiddle = _band_table(plan)
        self._none_good = np.zeros(n_taps, bool)
        self._row = np.zeros(2 * n_taps)
        self._taps = np.zeros((n_taps, 3), np.int64)
        self._ring = np.zeros((max(plan.windows), 2 * n_taps))
        width = self._bands[:, goertzel.WIDTH].max()
        self._n_bins = (plan.bins[:, 1] - plan.bins[:, 0]).tolist()
        densities = (segments - 1) * max(plan.windows) // 2 + 1
        self._sums = np.zeros((n_taps, len(plan.windows), goertzel.DENSITY + densities, width))
        self._tail = np.zeros((n_taps, self._twiddle.size))
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if new."""
        self._frame = 0
        self._fewest = 0
        for state in (self._row, self._taps, self._ring, self._sums, self._tail):
            state.fill(0)
        self._taps[:, goertzel.GAP] = goertzel.GAP_LIMIT  # there is no last good sample to hold yet

    def update(self, samples: FloatArray, good: BoolArray, missing: int) -> FloatArray:
        """Take in one frame.

        Parameters
        ----------
        samples : (n_taps,) float64
            The taps' temporal signals (D1).
        good : (n_taps,) bool
            False where a sample must not be used; it is held like a non-finite one.
        missing : int
            Frames lost since the one before, held too. More than 3 unusable frames in a row
            restart a tap's warm-up.

        Returns
        -------
        (n_taps, n_powers) float64
            Band powers, NaN where the band is not warm or unobservable.

        Raises
        ------
        InputError
            An array of another type, shape or memory layout, or a negative ``missing``.
        """
        self._check("signals", samples, _FLOAT64)
        self._check("good", good, _BOOL)
        power = np.empty((self._n_taps, self._n_powers))
        if missing:
            if missing < 0:
                raise InputError("missing", f"{missing} frames is negative")
            for _ in range(min(missing, goertzel.GAP_LIMIT + 1)):
                self._step(samples, self._none_good, power)
        self._step(samples, good, power)
        return power

    @property
    def count(self) -> IntArray:
        """(n_taps,) int64: samples since the last restart of the warm-up."""
        return self._taps[:, goertzel.COUNT].copy()

    @property
    def held(self) -> IntArray:
        """(n_taps,) int64: held samples among those in the longest window."""
        return self._taps[:, goertzel.HELD].copy()

    @property
    def warm(self) -> bool:
        """Whether every tap's longest window is full."""
        return self._fewest >= self._span

    @property
    def samples(self) -> IntArray:
        """(n_taps,) int64: a view of what `count` copies."""
        return self._taps[:, goertzel.COUNT]

    def latest(self, band: int) -> FloatArray:
        """View of the band's latest density, (n_taps, n_bins): what `psd` copies for one segment.

        It says something once `samples` has reached the band's window.
        """
        return self._sums[:, band, goertzel.DENSITY, : self._n_bins[band]]

    def psd(self, band: int) -> FloatArray:
        """One-sided power density of one band's bins after the last update.

        Returns
        -------
        (n_taps, n_bins) float64
            In signal units squared per (cycle per frame), NaN where the band is not warm.
        """
        window, width, _, _ = self._bands[band]
        hop = window // 2
        span = (self._segments - 1) * hop
        recent = goertzel.DENSITY + (self._frame - 1 - hop * np.arange(self._segments)) % (span + 1)
        density: FloatArray = self._sums[:, band, recent, : max(width // 2 - 2, 0)].mean(axis=1)
        density[self._taps[:, goertzel.COUNT] < window + span] = np.nan
        return density

    def _check(self, name: str, array: FloatArray | BoolArray, dtype: np.dtype[Any]) -> None:
        if array.dtype != dtype or array.shape != (self._n_taps,) or not array.flags.c_contiguous:
            raise InputError(
                name,
                f"need {self._n_taps} contiguous {dtype} values, got {array.dtype} "
                f"of shape {array.shape}, strides {array.strides}",
            )

    def _step(self, samples: FloatArray, good: BoolArray, out_power: FloatArray) -> None:
        self._fewest = goertzel.update(
            samples,
            good,
            self._frame,
            self._segments,
            self._bands,
            self._twiddle,
            self._row,
            self._taps,
            self._ring,
            self._sums,
            self._tail,
            out_power,
        )
        self._frame += 1


def _band_table(plan: BandPlan) -> tuple[IntArray, FloatArray]:
    """Band table and twiddles for `goertzel.update`.

    A band has N rows of twiddles: the real, then the imaginary parts of ``w^(k n)``, one column per
    bin; in the last two columns cosine and sine of ``2 pi n / N``.
    """
    n_bins = plan.bins[:, 1] - plan.bins[:, 0]
    windows = np.array(plan.windows)
    widths = np.where(n_bins > 0, 2 * (n_bins + 2), 0)
    ends = np.cumsum(windows * (widths + 2))
    bands = np.column_stack([windows, widths, ends - windows * (widths + 2), plan.bins[:, 1] > windows // 2])
    twiddle = np.zeros(ends[-1])
    for (window, width, start, _), end, (first, stop) in zip(bands, ends, plan.bins, strict=True):
        if width == 0:
            continue
        n = np.arange(window)
        k = np.arange(first - 1, stop + 1)
        angle = 2 * np.pi * (n[:, None] * k % window) / window  # reduced, so that it keeps all digits
        rows = twiddle[start:end].reshape(window, width + 2)
        rows[:, :-2] = np.hstack([np.cos(angle), -np.sin(angle)]) * np.tile(k > 0, 2)  # bin 0: zero
        rows[:, -2], rows[:, -1] = np.cos(2 * np.pi * n / window), np.sin(2 * np.pi * n / window)
    return np.ascontiguousarray(bands, np.int64), twiddle


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
        self._floor = np.array(baseline.floor, np.float64, order="C")
        self._mean = np.array(baseline.mean, np.float64, order="C")
        self._scale = np.where(known, baseline.scale, np.nan)
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
        if missing > goertzel.GAP_LIMIT:
            self._forget_structure()
        structure(signals, good, self._logs, self._samples, self._structure)
        z = np.empty(self._shape)
        state = np.empty(self._shape[0], np.int64)
        score = goertzel.standardise(power, self._floor, self._mean, self._scale, IDLE, z, state)
        line_z = np.empty(self._shape[0])
        line_score = line.peak_over_floor(
            self._bank.latest(LINE),
            self._bank.samples,
            self._line_weight,
            self._line,
            self._line_smooth,
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
