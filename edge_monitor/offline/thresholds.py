"""From clean scores to thresholds that keep a stated false-alarm budget (design section 6)."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import chi2

from edge_monitor.flag_table import FLAGS, PASS_RATIO
from edge_monitor.kernels.debounce import confirmations
from edge_monitor.region_map import EvidenceNull
from edge_monitor.reports import CHANNELS
from edge_monitor.types import BoolArray, FloatArray

TAIL = np.geomspace(1.0, 0.005, 64)
"""Tail probabilities at which clean scores are tabulated."""
DEBOUNCE = 4
"""Frames over its threshold after which a flag of a channel that detects confirms (`FLAGS`): events are
counted the same way. Flags of the others take longer."""
SHARES = dict.fromkeys(("stall", "jump"), 0.1) | dict.fromkeys(
    ("input", "spatial", "temporal", "output", "tracts"), 0.02
)
"""Share of the budget of channels that are no full members: the stall and the jump speak rarely, and the last
ones explain more than they find. The others have equal shares of what is left."""
OVEREXPOSED_MARGIN = 1.25
"""While overexposed a channel alarms at so many times its clean maximum (design section 6)."""
COMMON = 0.2
"""A stratum with a larger share of the clean frames is no exception, and has no thresholds of its own."""
EVENT_FRAMES = 90
"""Frames in which all that happens is one event (three seconds at 30 frames/s)."""
EPISODE_FRAMES = 1800
"""Clean frames are alike for so long (a minute at 30 frames/s: a street, a light, a queue) that their peaks
are not independent of one another."""
UNSEEN = -float(np.log(TAIL[-1]))
"""Threshold of a channel in which clean frames say nothing: what they do not show is rarer than this."""
SPREAD_OF_CONSTANT = {"jump": 0.2}
"""Scale of a channel that calibration may well never see move: the scene of a fixed camera jumps only when
the camera is knocked. Other channels that never varied are off."""
SCALES = np.geomspace(0.5, 3.0, 251)
"""Scales that are tried, steps of 0.7 %."""
FOLDS = 8
"""Stretches of clean data that are left out in turn: what one street, light or weather raises counts with
thresholds that never saw it."""
_ROWS = {row.channel: row for row in FLAGS if row.channel is not None}
STEPS = np.array([(_ROWS[channel].up, _ROWS[channel].down) for channel in CHANNELS], np.int64)
"""Steps of every channel's fault counter, up and down."""


def budget_shares() -> FloatArray:
    """Share of every channel in the budget; they add up to 1."""
    full = [channel for channel in CHANNELS if channel not in SHARES]
    rest = (1.0 - sum(SHARES.values())) / len(full)
    return np.array([SHARES.get(channel, rest) for channel in CHANNELS])


def fit_evidence(
    scores: FloatArray, overexposed: BoolArray, rate_hz: float, alarms_per_hour: float
) -> EvidenceNull:
    """Null distributions and thresholds from clean rows that fitted nothing else.

    What was fitted, above all the fault head, is surer of the rows it knows than of any other. So are nulls
    and thresholds: every channel has its share of the budget, and one scale for all is set by
    cross-validation over `FOLDS` stretches, each with the nulls and thresholds of all the others.

    Parameters
    ----------
    scores : (n, n_channels) float64
        Smoothed scores of clean rows, NaN where there is none.
    overexposed : (n,) bool
    """
    shares = budget_shares() * alarms_per_hour
    unseen = np.empty(scores.shape)
    for fold in np.array_split(np.arange(len(scores)), FOLDS):
        rest = np.delete(np.arange(len(scores)), fold)
        quantiles, excess = fit_nulls(scores[rest])
        surprise = surprises_of(scores[rest], quantiles, excess)
        threshold = fit_thresholds(surprise, overexposed[rest], rate_hz, shares)
        surprise = surprises_of(scores[fold], quantiles, excess)
        unseen[fold] = surprise / np.where(overexposed[fold, None], threshold[:, 1], threshold[:, 0])
    hours = len(scores) / rate_hz / 3600.0
    quantiles, excess = fit_nulls(scores)
    surprise = surprises_of(scores, quantiles, excess)
    threshold = fit_thresholds(surprise, overexposed, rate_hz, shares)
    seen = surprise / np.where(overexposed[:, None], threshold[:, 1], threshold[:, 0])
    allowed = int(alarms_per_hour * hours + 1e-9)
    # Less data allows a channel no more events, but perhaps less: its thresholds may be the higher ones. Of
    # frames that set their own thresholds n events are n + 1 on fresh data, on average: one less is allowed.
    threshold *= max(common_scale(unseen, allowed), common_scale(seen, max(allowed - 1, 0)))
    return EvidenceNull(TAIL, quantiles, excess, threshold, alarms_per_hour, 0, hours, 0, 0.0)


def common_scale(ratio: FloatArray, allowed: int) -> float:
    """Smallest scale of all thresholds with which all channels together raise at most ``allowed`` events.

    The largest that is tried where even that raises more: what comes of it is counted on further frames.

    Parameters
    ----------
    ratio : (n, n_channels) float64
        Surprise over the threshold, of consecutive clean frames.
    """
    # Where the budget allows no event, none was seen to be within it: nothing speaks for lower thresholds.
    least, chosen = (SCALES[0] if allowed else 1.0), float(SCALES[-1])
    # From above: far below, alarms run into one another and are few again (tests/test_thresholds.py).
    for scale in SCALES[least <= SCALES][::-1].tolist():
        if count_alarms(ratio / scale) > allowed:
            break
        chosen = scale
    return chosen


def fit_thresholds(
    surprise: FloatArray, overexposed: BoolArray, rate_hz: float, budgets: FloatArray
) -> FloatArray:
    """Thresholds (n_channels, 2) with which every channel by itself keeps its budget, alarms per hour.

    Parameters
    ----------
    surprise : (n, n_channels) float64
        Of consecutive clean frames, NaN where there is none.
    overexposed : (n,) bool
    budgets : (n_channels,) float64
    """
    if overexposed.mean() > COMMON:
        overexposed = np.zeros_like(overexposed)
    lasting = debounced(surprise)
    threshold = np.empty((surprise.shape[1], 2))
    for c, budget in enumerate(budgets.tolist()):
        ordinary = np.where(overexposed, np.nan, lasting[:, c])
        # What clean frames do not show at all (`SPREAD_OF_CONSTANT`) has to be rarer than what they do.
        least = -np.inf if np.nan_to_num(ordinary).any() else UNSEEN
        threshold[c, 0] = max(event_threshold(ordinary, rate_hz, budget), least)
        bright = lasting[overexposed & np.isfinite(lasting[:, c]), c]
        most = OVEREXPOSED_MARGIN * float(bright.max()) if bright.size else 0.0
        threshold[c, 1] = max(threshold[c, 0], most)
    return threshold


def count_alarms(ratio: FloatArray) -> int:
    """Count the events in which the flags of the channels would be confirmed.

    ``ratio`` (n, n_channels): surprise over the threshold, of consecutive frames.
    """
    confirmed = np.empty(len(ratio), np.bool_)
    confirmations(np.ascontiguousarray(ratio), PASS_RATIO, STEPS, confirmed)
    return count_events(confirmed)


def count_events(confirmed: BoolArray) -> int:
    """Count separate events: what lies within `EVENT_FRAMES` of the one before belongs to it."""
    places = np.flatnonzero(confirmed)
    return 1 + int((np.diff(places) > EVENT_FRAMES).sum()) if places.size else 0


def debounced(values: FloatArray) -> FloatArray:
    """Smallest of each value and the `DEBOUNCE` - 1 before it, column by column; NaN where one is missing."""
    padded = np.vstack([np.full((DEBOUNCE - 1, values.shape[1]), np.nan), values])
    return np.asarray(sliding_window_view(padded, DEBOUNCE, axis=0).min(axis=-1), np.float64)


def poisson_interval(events: int, hours: float) -> tuple[float, float]:
    """95 % interval of a rate per hour of which ``events`` were counted in ``hours`` (Garwood, 1936)."""
    low = chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    return float(low) / hours, float(chi2.ppf(0.975, 2 * events + 2) / 2) / hours


def fit_null(
    scores: FloatArray, tail: FloatArray, spread_of_constant: float = np.nan
) -> tuple[FloatArray, float]:
    """Null distribution of one channel from clean smoothed scores.

    Parameters
    ----------
    scores : (n,) float64
        Clean scores, NaN left out.
    tail : (n_points,) float64
        Falling tail probabilities.
    spread_of_constant : float
        Scale of the tail when the channel never varied.

    Returns
    -------
    quantiles : (n_points,) float64
    excess : float
        Median excess over the last quantile, divided by ln 2: the scale of an exponential tail.
        NaN, with NaN quantiles, when the channel never varied and has no ``spread_of_constant``.
    """
    finite = scores[np.isfinite(scores)]
    if finite.size < 2:
        return np.full(tail.shape, np.nan), float("nan")
    if finite.min() == finite.max():
        known = np.nan if np.isnan(spread_of_constant) else finite[0]
        return np.full(tail.shape, known), spread_of_constant
    quantiles = np.quantile(finite, 1.0 - tail)
    beyond = finite[finite > quantiles[-1]] - quantiles[-1]
    excess = float(np.median(beyond)) / float(np.log(2.0)) if beyond.size else 0.0
    # A tail without spread would make any new maximum infinitely surprising.
    return quantiles, max(excess, 1e-3 * float(finite.std()))


def fit_nulls(scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fit `fit_null` of every column of scores (n, n_channels): (n_channels, n_points) and (n_channels,)."""
    fitted = [
        fit_null(column, TAIL, SPREAD_OF_CONSTANT.get(channel, np.nan))
        for channel, column in zip(CHANNELS, scores.T, strict=True)
    ]
    return np.stack([q for q, _ in fitted]), np.array([e for _, e in fitted])


def surprises_of(scores: FloatArray, quantiles: FloatArray, excess: FloatArray) -> FloatArray:
    """Surprise of all channels' scores, (n, n_channels)."""
    columns = zip(scores.T, quantiles, excess, strict=True)
    return np.column_stack([surprise_of(column, TAIL, q, e) for column, q, e in columns])


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
    shape 0: Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, chapter 4), and once more
    to those of whole episodes (declustered: chapter 5), for peaks of one episode are alike and pass for
    a spread far too small. Each is continued from every one of its peaks, and the highest result counts: one
    rare clean event far above the rest has to raise the threshold, not to pass for noise.

    Parameters
    ----------
    surprise_of_frames : (n,) float64
        Surprise of consecutive held-out clean frames, NaN where there is none.

    Returns
    -------
    float
        NaN when there is no finite value to learn from.
    """
    peaks = np.sort(block_peaks(surprise_of_frames, EVENT_FRAMES))[::-1]
    if peaks.size == 0:
        return float("nan")
    hours = surprise_of_frames.size / frame_rate_hz / 3600.0
    allowed = min(int(events_per_hour * hours + 1e-9), peaks.size)
    if allowed > 0:  # fresh data of the same length exceeds the n-th largest value n times on average
        # Where less than so many peaks are above 0 at all, whatever is rarer than the tail's end may alarm.
        return float(np.nextafter(peaks[allowed - 1], np.inf)) if peaks[allowed - 1] > 0 else UNSEEN
    return max(
        _continued(block_peaks(surprise_of_frames, frames), hours, events_per_hour)
        for frames in (EVENT_FRAMES, EPISODE_FRAMES)
    )


def _continued(peaks: FloatArray, hours: float, events_per_hour: float) -> float:
    """Level that peaks like these exceed ``events_per_hour`` times an hour, by an exponential tail."""
    largest = np.sort(peaks)[::-1][:20]
    spread = max(float((largest - largest[-1]).mean()), 0.1)
    rates = np.arange(1, largest.size + 1) / hours
    return float((largest + spread * np.log(np.maximum(rates / events_per_hour, 1.0))).max())


def block_peaks(values: FloatArray, frames: int) -> FloatArray:
    """Largest value of each stretch of so many consecutive frames, NaN-only stretches left out."""
    n = -(-values.size // frames) * frames
    padded = np.full(n, -np.inf)
    padded[: values.size] = np.where(np.isfinite(values), values, -np.inf)
    peaks = padded.reshape(-1, frames).max(axis=1)
    return np.asarray(peaks[np.isfinite(peaks)], np.float64)
