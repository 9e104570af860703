"""What is normal: baselines of band powers and voxel densities from clean rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from edge_monitor.band_bank import BandBank
from edge_monitor.band_plan import LINE, LINE_BINS, BandPlan
from edge_monitor.eeg import log_powers, nearest_profile
from edge_monitor.flag_table import FLAGS, PASS_RATIO
from edge_monitor.fmri import densities
from edge_monitor.kernels import line
from edge_monitor.kernels.debounce import confirmations
from edge_monitor.offline.observe import Progress
from edge_monitor.region_map import EegBaseline, FmriBaseline
from edge_monitor.reports import STATES
from edge_monitor.types import BANDS, FloatArray, StatRow, TapSpec
from edge_monitor.vitals import VitalsTracker, dead_rows

PROFILE_S = 10.0
"""Length of one layer profile, seconds (design D6)."""
MAD_TO_SIGMA = 1.4826
INPUT_FLOOR = 0.01
"""Level below which the input is simply dark, as a share of the clean level."""
TINY = 1e-30
"""Keeps logarithms finite where clean data is 0."""
LINE_FLOOR = 0.01
"""Density below which a bin is simply quiet, as a share of the tap's median density."""
FULL_SCALE = 0.955
"""From here on, as a share of the range that clean data has, a region is bright (design section 6)."""
_ROWS_DEAD = next(row for row in FLAGS if row.code == "ROWS_DEAD")


def band_powers(
    rows: list[StatRow], plan: BandPlan, taps: tuple[TapSpec, ...], progress: Progress
) -> tuple[FloatArray, NDArray[np.float32]]:
    """Band powers of all rows, (n_rows, n_taps, n_bands), and the densities in which lines are sought.

    The second are (n_rows, n_taps, n_bins). NaN until the windows are full.
    """
    bank = BandBank(plan.with_line(), len(taps))
    vitals = VitalsTracker(plan.frame_rate_hz, taps[0])
    good = np.ones(len(taps), np.bool_)
    powers = np.empty((len(rows), len(taps), len(BANDS)))
    densities_of_lines = np.empty((len(rows), len(taps), LINE_BINS), np.float32)
    for i, row in enumerate(rows):
        powers[i] = bank.update(row.signals, good, vitals.update(row).missing)[:, :LINE]
        densities_of_lines[i] = bank.psd(LINE)
        if i % 1000 == 0:
            progress("bands", i, len(rows))
    progress("bands", len(rows), len(rows))
    return powers, densities_of_lines


def fit_line(density: NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
    """Clean level of every bin, and baseline of the peak over the floor.

    ``density`` (n_rows, n_taps, n_bins).
    """
    warm = density[np.isfinite(density).all(axis=(1, 2))].astype(np.float64)
    n_taps, n_bins = density.shape[1:]
    if len(warm) < 2:
        return np.full((n_taps, n_bins), np.nan), np.full((n_taps, 3), np.nan)
    floor = LINE_FLOOR * np.median(warm, axis=(0, 2)) + TINY
    logs = np.log(warm + floor[:, None])
    level = logs.mean(axis=0)
    ratio = (logs - level).max(axis=2) - (logs - level).mean(axis=2)
    smooth = lfilter([line.SMOOTHING], [1.0, line.SMOOTHING - 1.0], ratio, axis=0)[3 * 8 :]
    median, scale = robust(smooth)
    return level, np.column_stack([floor, median, scale])


def robust(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median and 1.4826 MAD over the first axis; a scale of 0 becomes NaN, "never varied"."""
    with _no_empty_slice_warning():
        median = np.nanmedian(values, axis=0)
        scale = MAD_TO_SIGMA * np.nanmedian(np.abs(values - median), axis=0)
    scale[~(scale > 0)] = np.nan
    return median, scale


def fit_eeg(
    powers: FloatArray, density: NDArray[np.float32], n_fit: int, scale_mode: str, rate_hz: float
) -> EegBaseline:
    """Baselines and profiles of all taps from the first ``n_fit`` rows; accuracy from the others."""
    with _no_empty_slice_warning():
        median_power = np.nanmedian(powers[:n_fit], axis=0)
    # A floor far below clean power keeps log finite when a stream freezes and its power vanishes.
    floor = np.nan_to_num(1e-6 * median_power, nan=0.0) + TINY
    logs = log_powers(powers, floor)
    mean, scale = robust(logs[:n_fit])
    mean[np.isnan(scale)] = np.nan
    length = max(1, int(PROFILE_S * rate_hz))
    fit, held_out = _profiles(logs[:n_fit], length), _profiles(logs[n_fit:], length)
    profile_mean, profile_covariance = _signatures(fit) if len(fit) >= 2 else (mean, _diagonal(scale**2))
    named = [
        nearest_profile(profile[tap], profile_mean, profile_covariance) == tap
        for profile in held_out
        for tap in range(profile.shape[0])
    ]
    line_level, line_baseline = fit_line(density[:n_fit])
    return EegBaseline(
        scale_mode=scale_mode,
        floor=floor,
        mean=mean,
        scale=scale,
        profile_mean=profile_mean,
        profile_covariance=profile_covariance,
        state_mix=np.zeros((powers.shape[1], len(STATES))),
        profile_accuracy=float(np.mean(named)) if named else None,
        line_level=line_level,
        line=line_baseline,
    )


def _profiles(logs: FloatArray, length: int) -> FloatArray:
    """Mean log powers over consecutive windows of ``length`` warm frames, (n, n_taps, n_bands)."""
    warm = logs[np.isfinite(logs).any(axis=(1, 2))]
    n = len(warm) // length
    with _no_empty_slice_warning():
        return np.asarray(np.nanmean(warm[: n * length].reshape(n, length, *logs.shape[1:]), axis=1))


def _signatures(profiles: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and covariance over profiles (n, n_taps, n_bands); NaN where a band never varied.

    Few profiles say little about how bands move together: the covariance is shrunk towards its
    diagonal, the more the fewer they are.
    """
    n, _, n_bands = profiles.shape
    mean = profiles.mean(axis=0)
    off = profiles - mean
    covariance = np.einsum("nti,ntj->tij", off, off) / n
    variance = np.diagonal(covariance, axis1=1, axis2=2).copy()
    variance[~(variance > 0)] = np.nan
    weight = n_bands / (n + n_bands)
    return mean, (1 - weight) * covariance + weight * _diagonal(variance)


def _diagonal(variance: FloatArray) -> FloatArray:
    """Diagonal matrices (n_taps, n_bands, n_bands) of variances (n_taps, n_bands)."""
    return variance[:, :, None] * np.eye(variance.shape[1])


def fit_fmri(taps: tuple[TapSpec, ...], rows: list[StatRow], n_fit: int) -> FmriBaseline:
    """Clean densities of all voxels in the first ``n_fit`` rows, and the rows that are dead in them.

    The input's floors are a share of its clean levels.
    """
    counts = np.concatenate([tap.voxel_counts() for tap in taps])
    blocks = [row.spatial for row in rows[:n_fit] if row.spatial is not None]
    first = taps[0].n_voxels
    levels = [block.voxels[:first, 0] / (counts[:first] * block.frames) for block in blocks]
    floor = np.full(counts.size, np.nan)
    floor[:first] = INPUT_FLOOR * np.median(levels, axis=0) + TINY
    median, scale = robust(
        np.stack([densities(block.voxels, counts * block.frames, floor) for block in blocks])
    )
    means = np.stack([block.voxels[:first, 1] / (counts[:first] * block.frames) for block in blocks])
    bright = np.full(counts.size, np.nan)
    for colour in np.split(np.arange(first), taps[0].grid[0]):
        low, high = means[:, colour].min(), means[:, colour].max()
        if high > low:
            bright[colour] = low + FULL_SCALE * (high - low)
    return FmriBaseline(median, scale, floor, bright, most_dead_rows(rows))


def most_dead_rows(rows: list[StatRow]) -> int:
    """Fewest rows with which these clean pictures do not confirm the flag of dead rows.

    In single clean frames one row repeats another now and then, by chance: 152 of 2.9 million frames of the
    rendered roads, never three in succession.
    """
    counts = np.array([dead_rows(row) or 0 for row in rows])
    steps = np.array([[_ROWS_DEAD.up, _ROWS_DEAD.down]])
    confirmed = np.empty(counts.size, np.bool_)
    for most in sorted({0, *counts.tolist()}):
        confirmations((counts > most)[:, np.newaxis].astype(np.float64), PASS_RATIO, steps, confirmed)
        if not confirmed.any():
            break
    return int(most)


@contextmanager
def _no_empty_slice_warning() -> Iterator[None]:
    """All-NaN columns are bands without a baseline here; their NaN result is what is wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
