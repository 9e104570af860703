"""Functional residual: how the features of a tap follow from those of the tap before it (design D10)."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.signal import lfilter
from sklearn.covariance import ledoit_wolf

from edge_monitor.features import FeatureBank
from edge_monitor.kernels.residual import CLIP, SLOW, SMOOTHING, WARM, WARM_SLOW
from edge_monitor.region_map import ResidualBaseline
from edge_monitor.types import PICTURE, FloatArray, StatRow, TapSpec

RIDGE = 1e-3
"""Ridge penalty per row, on standardised features."""
RIDGE_SHARE = 2 / 3
"""Share of the rows that fits the ridge; what is left over is measured on the others."""
LEAST_SLOW = 3 * WARM_SLOW
"""Blocks in which the slow mean forgets where it began: with fewer no shift is measured."""
MIN_ROWS = 6 * WARM
"""With fewer blocks nothing can be said about residuals: those left over hold less than two windows."""
STEADY = 1e-4
"""A feature that varies by a smaller share of itself predicts nothing: the device computes in single
precision and cannot tell its changes from rounding (test_live_residual_is_as_precise_as_the_fit)."""
FLOOR = 0.03
"""Below this share of a feature's clean mean its logarithm is levelled out."""
PRECISION = 0.01
"""No log feature is taken to be known better than to this."""
CORE = 2.5
"""No direction is measured in units smaller than so many of its clean sigmas ..."""
TAIL = 0.9995
"""... nor in units smaller than this quantile of its clean values."""
TINY = 1e-30


def fit_residual(
    taps: tuple[TapSpec, ...], rows: list[StatRow], workstation: ResidualBaseline | None = None
) -> ResidualBaseline:
    """Learn from consecutive clean rows what each tap's features are given the tap before.

    Parameters
    ----------
    taps : tuple[TapSpec, ...]
    rows : list of StatRow
        Rows without a block, or with a block that lacks a tap, are left out.
    workstation : ResidualBaseline, optional
        Takes floors, bounds and ridge weights from here and fits only what depends on the device.
    """
    levels = _levels(taps, rows)
    n_fit = int(len(levels) * RIDGE_SHARE)
    ends = np.cumsum([0, *(tap.n_features for tap in taps)])
    parts = [slice(a, b) for a, b in itertools.pairwise(ends.tolist())]
    if workstation is not None:
        floor, low, high, flat = (getattr(workstation, name) for name in ("floor", "low", "high", "weights"))
        logs = np.log(levels + floor)
        weights = _unflatten(flat, parts)
    else:
        floor = _floors(levels[:n_fit], taps)
        logs = np.log(levels + floor)
        low, high = (logs[:n_fit].min(axis=0), logs[:n_fit].max(axis=0)) if n_fit else (floor * 0, floor * 0)
        weights = [
            _ridge(_inputs(logs[:n_fit], before, low, high), logs[:n_fit, own])
            for before, own in zip([None, *parts], parts, strict=False)
        ]
    whitening, limits = [], []
    shift = np.zeros(parts[0].stop ** 2)
    for before, own, weight in zip([None, *parts], parts, weights, strict=False):
        off = np.clip(logs[:, own] - _inputs(logs, before, low, high) @ weight, -CLIP, CLIP)
        smooth = lfilter([SMOOTHING], [1.0, SMOOTHING - 1.0], off[n_fit:], axis=0)[WARM - 1 :]
        matrix, limit = _measure(smooth) if len(levels) >= MIN_ROWS else _nothing(off.shape[1])
        if before is None and len(smooth) >= LEAST_SLOW + MIN_ROWS:
            slow = lfilter([SLOW], [1.0, SLOW - 1.0], off[n_fit:], axis=0)[WARM - 1 :]
            shift = _measure((smooth - slow)[LEAST_SLOW:])[0].ravel()
        whitening.append(matrix.ravel())
        limits.append(limit)
    return ResidualBaseline(
        floor=floor,
        low=low,
        high=high,
        weights=np.concatenate([weight.ravel() for weight in weights]),
        whitening=np.concatenate(whitening),
        shift=shift,
        limit=np.concatenate(limits),
    )


def _levels(taps: tuple[TapSpec, ...], rows: list[StatRow]) -> FloatArray:
    """Mean |a| of every feature, (n_rows, n_features)."""
    no_floor = np.zeros(sum(tap.n_features for tap in taps))
    no_gate = np.full((sum(tap.n_voxels for tap in taps), 2), np.nan)  # the drives are not looked at
    bank = FeatureBank(taps, no_floor, no_gate)
    blocks = [(row.spatial, row.picture) for row in rows if row.spatial and row.spatial.taps.all()]
    levels = np.empty((len(blocks), bank.n_features))
    for i, (block, picture) in enumerate(blocks):
        levels[i] = bank.update(block, picture, np.ones(len(taps), np.bool_))[: bank.n_features]
    return levels[np.isfinite(levels).all(axis=1)]  # the first frames have no picture before them


def _floors(levels: FloatArray, taps: tuple[TapSpec, ...]) -> FloatArray:
    """Floor of every feature: a share of its own mean, and a little of its kind's for what is silent."""
    mean = levels.mean(axis=0) if len(levels) else np.zeros(levels.shape[1])
    kinds = []
    for number, tap in enumerate(taps):
        first = 100 * number
        kinds += [first] * (tap.n_features - tap.n_statistics)
        kinds += [first + 1 + k % len(PICTURE) for k in range(tap.n_statistics)]
    kind = np.array(kinds)
    kind_mean = np.array([mean[kind == k].mean() for k in kinds])
    return np.asarray(FLOOR * mean + 1e-3 * kind_mean + TINY)


def _inputs(logs: FloatArray, before: slice | None, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return what predicts: bounded logs of the tap before, the same on a linear scale, and 1."""
    one = np.ones((len(logs), 1))
    if before is None:
        return one
    bounded = np.clip(logs[:, before], low[before], high[before])
    return np.hstack([bounded, np.exp(bounded), one])


def _ridge(inputs: FloatArray, targets: FloatArray) -> FloatArray:
    """Ridge regression on standardised inputs, weights for the plain ones; the last input is the constant."""
    if len(inputs) == 0:
        return np.zeros((inputs.shape[1], targets.shape[1]))
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    reference = np.abs(mean)
    reference[: len(mean) // 2] = 1.0  # logs vary by shares as they are
    scale[scale < STEADY * reference] = 0.0
    gain = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    x, center = (inputs - mean) * gain, targets.mean(axis=0)
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (targets - center)) * gain[:, None]
    weights[-1] = center - mean[:-1] @ weights[:-1]
    return np.asarray(weights)


def _measure(smooth: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Whitening and limits from clean smoothed residuals (n, n_features).

    Each whitened direction is divided by its own tail, all of them by the largest distance seen.
    """
    # Smoothing makes neighbours alike; one row per window is what the shrinkage may count.
    covariance, _ = ledoit_wolf(smooth[::WARM], assume_centered=True)
    variances, directions = np.linalg.eigh(covariance + PRECISION**2 * np.eye(smooth.shape[1]))
    matrix = directions / np.sqrt(variances)
    matrix /= np.maximum(CORE, np.quantile(np.abs(smooth @ matrix), TAIL, axis=0))
    matrix /= max(1.0, float(np.sqrt(((smooth @ matrix) ** 2).sum(axis=1)).max()))
    sigma = np.hypot(np.sqrt((smooth**2).mean(axis=0)), PRECISION)
    return np.ascontiguousarray(matrix), np.maximum(CORE * sigma, np.abs(smooth).max(axis=0))


def _nothing(n: int) -> tuple[FloatArray, FloatArray]:
    """Whitening in which every residual is 0."""
    return np.zeros((n, n)), np.ones(n)


def _unflatten(weights: FloatArray, parts: list[slice]) -> list[FloatArray]:
    """Weight matrices of all taps."""
    matrices, start, inputs = [], 0, 1
    for part in parts:
        n = part.stop - part.start
        matrices.append(weights[start : start + inputs * n].reshape(inputs, n))
        start += inputs * n
        inputs = 2 * n + 1
    return matrices
