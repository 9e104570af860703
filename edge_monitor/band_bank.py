"""Sliding DFT of all taps: Welch's power densities and band powers after every frame (design D4)."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_monitor.band_plan import BandPlan
from edge_monitor.errors import InputError
from edge_monitor.kernels import goertzel
from edge_monitor.types import BoolArray, FloatArray, IntArray

_FLOAT64, _BOOL = np.dtype(np.float64), np.dtype(np.bool_)


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

    Attributes
    ----------
    taps, sums : int64, float64 arrays
        The state of `goertzel.update`, to be read.

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
        self.taps = np.zeros((n_taps, 3), np.int64)
        self._ring = np.zeros((max(plan.windows), 2 * n_taps))
        width = self._bands[:, goertzel.WIDTH].max()
        densities = (segments - 1) * max(plan.windows) // 2 + 1
        self.sums = np.zeros((n_taps, len(plan.windows), goertzel.DENSITY + densities, width))
        self._tail = np.zeros((n_taps, self._twiddle.size))
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if new."""
        self._frame = 0
        self._fewest = 0
        for state in (self._row, self.taps, self._ring, self.sums, self._tail):
            state.fill(0)
        self.taps[:, goertzel.GAP] = goertzel.GAP_LIMIT  # there is no last good sample to hold yet

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
        return self.taps[:, goertzel.COUNT].copy()

    @property
    def held(self) -> IntArray:
        """(n_taps,) int64: held samples among those in the longest window."""
        return self.taps[:, goertzel.HELD].copy()

    @property
    def warm(self) -> bool:
        """Whether every tap's longest window is full."""
        return self._fewest >= self._span

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
        density: FloatArray = self.sums[:, band, recent, : max(width // 2 - 2, 0)].mean(axis=1)
        density[self.taps[:, goertzel.COUNT] < window + span] = np.nan
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
            self.taps,
            self._ring,
            self.sums,
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
