"""Scores become evidence: -log p under the calibrated null, over the channel's threshold."""

from __future__ import annotations

import numpy as np

from edge_monitor.errors import MapError
from edge_monitor.kernels import surprise
from edge_monitor.region_map import EvidenceNull
from edge_monitor.types import CHANNELS, Evidence, FloatArray

MEAN_OF_8 = 2.0 / (8 + 1)
"""Weight of a new score in an exponentially weighted mean over 8 frames (design section 6)."""
SMOOTHING = np.array(
    [1.0 if channel in {"residual", "shift", "line", "stall"} else MEAN_OF_8 for channel in CHANNELS]
)
"""Weight of a new score of each channel; the others are smoothed where they are made."""
OVEREXPOSED, OVEREXPOSED_FRAMES = 0.15, 45
"""A picture is overexposed for so many frames from one on that has this share of its regions next to full
scale: clean drives have most of their false events at tunnel exits (design section 6)."""


class EvidenceTracker:
    """Keeps the smoothed scores of all channels.

    Parameters
    ----------
    null : EvidenceNull
        Calibrated null distributions and thresholds; a channel whose threshold is NaN is off.

    Raises
    ------
    MapError
        A null of another number of channels or tail probabilities.
    """

    def __init__(self, null: EvidenceNull) -> None:
        n = len(CHANNELS)
        for name, shape in (("quantiles", (n, null.tail.size)), ("excess", (n,)), ("threshold", (n, 2))):
            found = getattr(null, name).shape
            if found != shape:
                raise MapError(f"evidence.{name}", f"shape {found}, expected {shape}")
        self._null = null
        self._thresholds = tuple(np.ascontiguousarray(null.threshold.T))
        self._scores, self._smooth = np.empty(n), np.empty(n)
        self.reset()

    def reset(self) -> None:
        """Start the smoothing anew, as after a gap in the stream."""
        self._smooth.fill(np.nan)
        self._overexposed = 0

    def update(self, scores: tuple[float | None, ...], bright: float | None) -> Evidence:
        """Take in one frame's scores, in the order of `CHANNELS`; None where there is none.

        ``bright``: share of the picture's regions next to full scale.
        """
        self._overexposed = max(0, self._overexposed - 1)
        if bright is not None and bright >= OVEREXPOSED:
            self._overexposed = OVEREXPOSED_FRAMES
        self._scores[:] = scores  # None becomes NaN
        null = self._null
        unlikely, ratio = np.empty(self._smooth.size), np.empty(self._smooth.size)
        largest = surprise.update(
            self._scores,
            SMOOTHING,
            null.tail,
            null.quantiles,
            null.excess,
            self._thresholds[self._overexposed > 0],
            self._smooth,
            unlikely,
            ratio,
        )
        return Evidence(self._smooth.copy(), unlikely, ratio, self._overexposed > 0, largest)


def fit_null(scores: FloatArray, tail: FloatArray) -> tuple[FloatArray, float]:
    """Null distribution of one channel from clean smoothed scores.

    Parameters
    ----------
    scores : (n,) float64
        Clean scores, NaN left out.
    tail : (n_points,) float64
        Falling tail probabilities.

    Returns
    -------
    quantiles : (n_points,) float64
    excess : float
        Median excess over the last quantile, divided by ln 2: the scale of an exponential tail.
        NaN, with NaN quantiles, when the channel never varied.
    """
    finite = scores[np.isfinite(scores)]
    if finite.size < 2 or finite.min() == finite.max():
        return np.full(tail.shape, np.nan), float("nan")
    quantiles = np.quantile(finite, 1.0 - tail)
    beyond = finite[finite > quantiles[-1]] - quantiles[-1]
    excess = float(np.median(beyond)) / float(np.log(2.0)) if beyond.size else 0.0
    # A tail without spread would make any new maximum infinitely surprising.
    return quantiles, max(excess, 1e-3 * float(finite.std()))


def surprise_of(scores: FloatArray, tail: FloatArray, quantiles: FloatArray, excess: float) -> FloatArray:
    """Surprise of one channel's scores, (n,) float64, as `EvidenceTracker` computes it; NaN stays NaN."""
    if np.isnan(quantiles).any():
        return np.full(scores.shape, np.nan)
    high = np.clip(np.searchsorted(quantiles, scores, side="left"), 1, tail.size - 1)
    low = high - 1
    rise = quantiles[high] - quantiles[low]
    share = np.divide(scores - quantiles[low], rise, out=np.zeros(scores.shape), where=rise > 0)
    within = -np.log(tail[low]) + share * np.log(tail[low] / tail[high])
    beyond = -np.log(tail[-1]) + (scores - quantiles[-1]) / excess
    surprising = np.where(scores > quantiles[-1], beyond, np.where(scores <= quantiles[0], 0.0, within))
    return np.where(np.isnan(scores), np.nan, surprising)


def event_threshold(surprise_of_frames: FloatArray, frame_rate_hz: float, events_per_hour: float) -> float:
    """Surprise that clean data exceeds in at most ``events_per_hour`` separate events.

    All exceedances within one stretch of `EVENT_FRAMES` frames are one event. Where the data allows
    events, they are counted. Where it does not allow a single one, the rate of events over a
    high level is continued by an exponential fitted to the largest event peaks (peaks over threshold, with
    shape 0: Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, chapter 4).
    It is continued from every one of these peaks and the highest result counts: one rare clean
    event far above the rest has to raise the threshold, not to pass for noise.

    Parameters
    ----------
    surprise_of_frames : (n,) float64
        Surprise of consecutive held-out clean frames, NaN where there is none.

    Returns
    -------
    float
        NaN when there is no finite value to learn from.
    """
    peaks = np.sort(event_peaks(surprise_of_frames))[::-1]
    if peaks.size == 0:
        return float("nan")
    hours = surprise_of_frames.size / frame_rate_hz / 3600.0
    allowed = min(int(events_per_hour * hours), peaks.size - 1)
    if allowed > 0:
        return float(np.nextafter(peaks[allowed], np.inf))
    largest = peaks[:20]
    spread = max(float((largest - largest[-1]).mean()), 0.1)
    rates = np.arange(1, largest.size + 1) / hours
    return float((largest + spread * np.log(np.maximum(rates / events_per_hour, 1.0))).max())


EVENT_FRAMES = 90
"""Frames in which all that happens is one event (three seconds at 30 frames/s)."""


def event_peaks(values: FloatArray) -> FloatArray:
    """Largest value of each stretch of `EVENT_FRAMES` consecutive frames, NaN-only stretches left out."""
    n = -(-values.size // EVENT_FRAMES) * EVENT_FRAMES
    padded = np.full(n, -np.inf)
    padded[: values.size] = np.where(np.isfinite(values), values, -np.inf)
    peaks = padded.reshape(-1, EVENT_FRAMES).max(axis=1)
    return np.asarray(peaks[np.isfinite(peaks)], np.float64)
