"""Live tracts: the estimate of C that a device makes from voxel sums (design D8)."""

from __future__ import annotations

import msgspec
import numpy as np
import scipy.optimize
from scipy.special import expit

from edge_monitor.errors import InputError
from edge_monitor.types import BoolArray, FloatArray

_STEEPEST = 30.0  # bound of alpha and beta while the target's mean is in its standard deviations


class LiveTracts(msgspec.Struct, frozen=True, eq=False):
    """``C_t(g->h) ~ gain(g,h) r_t(g) sigmoid(alpha_h + beta_h m_t(h))`` for one transition, all float64.

    r is the sum of ReLU(a) over the source voxel and m the mean of a over the target voxel.

    ``gain`` (n_g, n_h): kappa. ``gate`` (n_h, 2): alpha, and beta per unit of m. ``strength``
    (n_g, n_h): mean of exact C. ``fidelity`` (n_g, n_h): correlation of the estimate with exact C on frames
    that were not fitted; NaN where exact C does not vary there, 0 where only the estimate does not.
    """

    gain: FloatArray
    gate: FloatArray
    strength: FloatArray
    fidelity: FloatArray


def estimate_live(live: LiveTracts, source: FloatArray, target: FloatArray) -> FloatArray:
    """Estimate C, (n, n_g, n_h), from r (n, n_g) and m (n, n_h)."""
    gate: FloatArray = expit(live.gate[:, 0] + live.gate[:, 1] * target)
    return live.gain * source[:, :, None] * gate[:, None, :]


def fit_live(exact: FloatArray, source: FloatArray, target: FloatArray) -> LiveTracts:
    """Fit the live estimate of one transition on the first half of the frames, and judge it on the second.

    Parameters
    ----------
    exact : (n, n_g, n_h) float64
        Exact C of n frames; frames with a non-finite value anywhere are left out.
    source : (n, n_g) float64
        Sum of ReLU(a) over each source voxel.
    target : (n, n_h) float64
        Mean of a over each target voxel.

    Raises
    ------
    InputError
        The shapes do not fit together, or no frame is finite.
    """
    if exact.ndim != 3 or source.shape != exact.shape[:2] or target.shape != exact.shape[::2]:
        raise InputError("tracts", f"shapes {exact.shape}, {source.shape} and {target.shape} do not fit")
    finite = np.isfinite(exact).all((1, 2)) & np.isfinite(source).all(1) & np.isfinite(target).all(1)
    exact, source, target = exact[finite], source[finite], target[finite]
    if len(exact) == 0:
        raise InputError("tracts", f"finite in none of {finite.size} frames")
    half = (len(exact) + 1) // 2
    gate = np.stack(
        [_fit_gate(exact[:half, :, h], source[:half], target[:half, h]) for h in range(exact.shape[2])]
    )
    active = source[:half, :, None] * expit(gate[:, 0] + gate[:, 1] * target[:half])[:, None, :]
    live = LiveTracts(_gain(exact[:half], active), gate, exact.mean(0), np.empty(0))
    estimate = estimate_live(live, source[half:], target[half:])
    return msgspec.structs.replace(live, fidelity=_correlation(estimate, exact[half:]))


def _gain(exact: FloatArray, active: FloatArray) -> FloatArray:
    """Least-squares factor from ``active`` to ``exact`` over frames (axis 0); 0 where nothing was active."""
    power: FloatArray = np.sum(active**2, axis=0)
    gain = np.zeros_like(power)
    np.divide(np.sum(exact * active, axis=0), power, out=gain, where=power > 0)
    return gain


def _fit_gate(exact: FloatArray, source: FloatArray, mean: FloatArray) -> FloatArray:
    """Alpha and beta of one target voxel: least squares over its sources, each by its own spread.

    The gains follow in closed form from the gate (variable projection, Golub and Pereyra 1973).
    """
    centre, scale = float(mean.mean()), float(mean.std())
    spread = exact.std(axis=0)
    varying = spread > 1e-9 * np.abs(exact).max(axis=0)
    if scale <= 1e-9 * abs(centre) or not varying.any():
        return np.zeros(2)  # nothing to fit: half open, and the gains say the rest
    z = (mean - centre) / scale
    wanted, r = exact[:, varying] / spread[varying], source[:, varying]

    def residual(parameters: FloatArray) -> FloatArray:
        active = r * expit(parameters[0] + parameters[1] * z)[:, None]
        return np.ravel(wanted - _gain(wanted, active) * active)

    fits = [
        scipy.optimize.least_squares(residual, start, bounds=(-_STEEPEST, _STEEPEST))
        for start in ([0.0, 0.5], [0.0, -0.5], [-3.0, 1.0])
    ]
    alpha, beta = min(fits, key=lambda fit: float(fit.cost)).x
    return np.array([alpha - beta * centre / scale, beta / scale])


def _correlation(estimate: FloatArray, exact: FloatArray) -> FloatArray:
    """Pearson's, over frames (axis 0)."""
    if len(exact) < 2:
        return np.full(exact.shape[1:], np.nan)
    a, b = estimate - estimate.mean(0), exact - exact.mean(0)
    norm_a, norm_b = np.sqrt(np.sum(a**2, axis=0)), np.sqrt(np.sum(b**2, axis=0))
    still: BoolArray = norm_b <= 1e-9 * np.abs(exact).max(axis=0) * np.sqrt(len(exact))
    norm = norm_a * norm_b
    found = np.divide(np.sum(a * b, axis=0), norm, out=np.zeros_like(norm), where=norm > 0)
    return np.where(still, np.nan, found)
