"""Benchmarks of the band powers: against SciPy, against NumPy, against window length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.signal
from _bench_measure import Effort, interleaved, ratios

from edge_monitor.band_bank import BandBank
from edge_monitor.band_plan import BandPlan

N_TAPS = 8
CYCLE = 32
"""Updates per timed call. A band's window starts anew for one tap after the other, every N / 8 frames of
N: the costly frames of all windows up to 256 are in it in their true proportion."""


class Race:
    """One cycle of updates, and SciPy and NumPy doing what one of them does."""

    def __init__(self) -> None:
        self.plan = BandPlan.make("nyquist", 30.0)
        self._bank = BandBank(self.plan, N_TAPS)
        self._good = np.ones(N_TAPS, np.bool_)
        self._samples = 1.0 + 0.1 * np.random.default_rng(0).standard_normal((256, N_TAPS))
        self._history = np.ascontiguousarray(self._samples.T)
        self._hann = [scipy.signal.get_window("hann", n) for n in self.plan.windows]
        for samples in self._samples:
            power = self._bank.update(samples, self._good, 0)
        welch = self.welch()
        if not (np.allclose(power, welch) and np.allclose(self.numpy(), welch)):
            raise AssertionError("the bank, SciPy and NumPy compute different band powers")

    def update(self) -> None:
        for samples in self._samples[:CYCLE]:
            self._bank.update(samples, self._good, 0)

    def welch(self) -> np.ndarray:
        power = np.empty((N_TAPS, len(self.plan.windows)))
        for tap in range(N_TAPS):
            for band, (n, (first, end)) in enumerate(zip(self.plan.windows, self.plan.bins, strict=True)):
                _, density = scipy.signal.welch(
                    self._history[tap, -n:], window="hann", nperseg=n, detrend="constant"
                )
                power[tap, band] = density[first:end].sum() / n
        return power

    def numpy(self) -> np.ndarray:
        power = np.empty((N_TAPS, len(self.plan.windows)))
        for band, (n, (first, end)) in enumerate(zip(self.plan.windows, self.plan.bins, strict=True)):
            x, hann = self._history[:, -n:], self._hann[band]
            spectrum = np.fft.rfft((x - x.mean(axis=1, keepdims=True)) * hann)[:, first:end]
            squared = 2 * (spectrum.real**2 + spectrum.imag**2)
            if end > n // 2:
                squared[:, -1] /= 2  # Nyquist has no twin on the other side
            power[:, band] = squared.sum(axis=1) / (n * (hann @ hann))
        return power


def against(rival: Callable[[Race], object]) -> Callable[[Effort], list[float]]:
    """Time of one round of ``rival`` over that of one update."""

    def measure(effort: Effort) -> list[float]:
        race = Race()
        functions = (lambda: rival(race), race.update)
        return [CYCLE * ratio for ratio in ratios(functions, effort.blocks, effort.repeats // 4)]

    return measure


def window_length(effort: Effort) -> list[float]:
    """Time per bin and frame with windows of 1024 frames over that with windows of 64.

    Both have the same 24 bins; what a frame costs without any is taken off. A timed call is 1024 / 8
    frames, for the reason of `CYCLE`.
    """
    samples = 1.0 + 0.1 * np.random.default_rng(0).standard_normal((1024 // N_TAPS, N_TAPS))
    good = np.ones(N_TAPS, np.bool_)

    def frames(window: int, n_bins: int) -> Callable[[], None]:
        plan = BandPlan(1.0, (window,), np.zeros((1, 2)), np.array([[1, 1 + n_bins]]))
        bank = BandBank(plan, N_TAPS)

        def update() -> None:
            for sample in samples:
                bank.update(sample, good, 0)

        for _ in range(N_TAPS):
            update()  # fills the window
        return update

    functions = (frames(1024, 24), frames(64, 24), frames(64, 0))
    medians = [interleaved(functions, effort.repeats // 2) for _ in range(effort.blocks + 1)][1:]
    return [(long - empty) / (short - empty) for long, short, empty in medians]
