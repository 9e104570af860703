"""From a detector's scores to alarms: smoothing, -log p, thresholds at a budget, events."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

EVENT_GAP = 90
"""Alarms closer than this many frames are one event (three seconds at 30 frames/s)."""
GATE = 1.25
"""Threshold of over-exposed frames, in units of the largest clean value among them."""
TAIL = 0.005
"""Share of the clean scores beyond which the null is an exponential."""
CUSUM_ALLOWANCE = 0.5
"""What a CUSUM takes off each standardised score."""
CUSUM_CAP = 1000.0
"""A CUSUM rises no further than this: after a long episode it must come down again."""


def frames_since_start(start: BoolArray) -> NDArray[np.int64]:
    """Frames since the first one of the trip, (n,); the very first frame always starts one."""
    index = np.arange(start.size)
    return index - np.maximum.accumulate(np.where(start, index, 0))


def over_last(values: FloatArray, start: BoolArray, window: int, combine: np.ufunc) -> FloatArray:
    """Combine each value with those of the ``window - 1`` frames before it in the same trip."""
    age = frames_since_start(start)
    result = values.copy()
    for lag in range(1, window):
        combine(result[lag:], values[:-lag], out=result[lag:], where=age[lag:] >= lag)
    return result


class Scale(msgspec.Struct, frozen=True):
    """Mean and standard deviation of clean scores; ``scale(scores)`` is standardised."""

    mean: float
    sigma: float

    @classmethod
    def fit(cls, clean: FloatArray) -> Scale:
        finite = clean[np.isfinite(clean)]
        if finite.size == 0:
            return cls(0.0, 1.0)
        return cls(float(finite.mean()), float(finite.std()) or 1.0)

    def __call__(self, scores: FloatArray) -> FloatArray:
        return (scores - self.mean) / self.sigma


def raw(scores: FloatArray, _start: BoolArray) -> FloatArray:
    return scores


def min_4(scores: FloatArray, start: BoolArray) -> FloatArray:
    """Smallest of the last 4 scores."""
    return np.where(np.isnan(scores), np.nan, over_last(scores, start, 4, np.fmin))


def mean_12(scores: FloatArray, start: BoolArray) -> FloatArray:
    """Mean of the last 12 scores."""
    known = ~np.isnan(scores)
    total = over_last(np.where(known, scores, 0.0), start, 12, np.add)
    count = over_last(known.astype(np.float64), start, 12, np.add)
    return np.divide(total, count, out=np.full(scores.shape, np.nan), where=known)


def cusum(scores: FloatArray, start: BoolArray) -> FloatArray:
    """One-sided cumulative sum (Page, 1954) of scores standardised by `Scale`."""
    result = np.full(scores.shape, np.nan)
    level = 0.0
    for i, (score, first) in enumerate(zip(scores.tolist(), start.tolist(), strict=True)):
        if first:
            level = 0.0
        if score == score:  # noqa: PLR0124 - not NaN, in the time of a comparison
            level = min(max(level + score - CUSUM_ALLOWANCE, 0.0), CUSUM_CAP)
            result[i] = level
    return result


Transform = Callable[[FloatArray, BoolArray], FloatArray]
TRANSFORMS: dict[str, Transform] = {"raw": raw, "min 4": min_4, "mean 12": mean_12, "CUSUM": cusum}
"""What a detector's standardised scores (n,) may go through, with the trips' first frames.

None looks ahead or over a trip's start. A NaN stays NaN, and is left out of its neighbours' windows.
"""


class Surprise(msgspec.Struct, frozen=True, eq=False):
    """-log p of scores under the distribution of clean ones; NaN stays NaN.

    p is the share of clean scores at least as large, and beyond the last 0.5 % of them an exponential whose
    median excess is theirs. ``knots`` are the clean scores, rising; ``end`` is where the exponential begins,
    ``excess`` its scale.
    """

    knots: FloatArray
    end: float
    excess: float

    @classmethod
    def fit(cls, clean: FloatArray) -> Surprise:
        knots = np.sort(clean[np.isfinite(clean)])
        if knots.size == 0:
            return cls(knots, np.nan, np.nan)
        end = float(knots[int((1.0 - TAIL) * (knots.size - 1))])  # a score that was seen
        beyond = knots[knots > end] - end
        excess = float(np.median(beyond) / np.log(2.0)) if beyond.size else 0.0
        # Without spread in the tail any new maximum would be infinitely surprising.
        return cls(knots, end, max(excess, 1e-3 * float(knots.std()), 1e-9 * max(1.0, abs(end))))

    def __call__(self, scores: FloatArray) -> FloatArray:
        if self.knots.size == 0:
            return np.full(scores.shape, np.nan)
        larger = self.knots.size - np.searchsorted(self.knots, np.fmin(scores, self.end), side="left")
        seen = -np.log(larger / self.knots.size)
        # Where more than 0.5 % of the clean scores are tied at the end, p still falls to 0.5 % beyond it.
        result = np.where(scores > self.end, -np.log(TAIL) + (scores - self.end) / self.excess, seen)
        return np.where(np.isnan(scores), np.nan, result)


class Threshold(msgspec.Struct, frozen=True):
    """What a score must exceed to be an alarm, on ordinary and on over-exposed frames."""

    ordinary: float
    overexposed: float

    def of(self, overexposed: BoolArray) -> FloatArray:
        """Threshold of every frame, (n,)."""
        return np.where(overexposed, self.overexposed, self.ordinary)

    def alarm(self, scores: FloatArray, overexposed: BoolArray, guard: BoolArray) -> BoolArray:
        """Where a guard fires or the score exceeds its threshold, (n,)."""
        return guard | (scores > self.of(overexposed))


def count_events(alarm: BoolArray, start: BoolArray) -> int:
    """Count separate events: alarms `EVENT_GAP` frames or more apart, or in different trips."""
    at = np.flatnonzero(alarm)
    trip = np.cumsum(start)[at]
    return int(at.size > 0) + int(((np.diff(at) >= EVENT_GAP) | (np.diff(trip) > 0)).sum())


def threshold_for(
    scores: FloatArray, start: BoolArray, overexposed: BoolArray, gate: bool, events: float
) -> Threshold:
    """Lowest threshold that keeps clean scores within a budget of events.

    Lowering a threshold can join two events to one, so that the count may fall again. The one meant is the
    lowest before the count exceeds the budget for the first time, coming from above; never below the
    smallest score.

    Parameters
    ----------
    scores : (n,) float64
        Clean scores as -log p (`Surprise`, `Fusion`): the gate is a multiple, and needs a zero that means
        something.
    start, overexposed : (n,) bool
    gate : bool
        Whether over-exposed frames have their own threshold: `GATE` times their clean maximum. Without any
        over-exposed frame there is nothing to set it by, and it is the ordinary one.
    events : float
        Budget for all of ``scores``.
    """
    of_gate = scores[overexposed & ~np.isnan(scores)] if gate else np.empty(0)
    ordinary = _lowest(np.where(overexposed, np.nan, scores) if of_gate.size else scores, start, events)
    return Threshold(ordinary, GATE * float(of_gate.max()) if of_gate.size else ordinary)


def _lowest(scores: FloatArray, start: BoolArray, events: float) -> float:
    """Take in frames from the highest score downwards until there is one event too many."""
    known = np.flatnonzero(~np.isnan(scores))
    if known.size == 0:
        return float("inf")
    order = known[np.argsort(-scores[known], kind="stable")]
    ends = np.append(np.flatnonzero(start[1:]) + 1, start.size)
    own_end = ends[np.searchsorted(ends, order, side="right")]
    # Alarms one may be joined with: fewer than EVENT_GAP frames away in the same trip.
    first = order - np.minimum(frames_since_start(start)[order], EVENT_GAP - 1)
    last = np.minimum(own_end, order + EVENT_GAP)
    alarmed = bytearray(scores.size)
    count, level = 0, float("inf")
    frames = zip(order.tolist(), scores[order].tolist(), first.tolist(), last.tolist(), strict=True)
    for i, score, low, high in frames:
        if score < level:  # all frames of the level above are in
            if count > events:
                return level
            level = score
        before, after = alarmed.rfind(1, low, i), alarmed.find(1, i + 1, high)
        joined = before >= 0 and after >= 0 and after - before < EVENT_GAP
        count += 1 - (before >= 0) - (after >= 0) + joined
        alarmed[i] = 1
    return level


class Fusion:
    """Many scores become one: each gets an equal share of the budget, the largest ratio counts.

    Parameters
    ----------
    columns : sequence of (n,) float64
        Clean scores of every detector.
    start, overexposed, gate, events
        As for `threshold_for`, which sets the final threshold on what `score` returns for the clean columns.
    """

    def __init__(
        self,
        columns: Sequence[FloatArray],
        start: BoolArray,
        overexposed: BoolArray,
        gate: bool,
        events: float,
    ) -> None:
        self._nulls = [Surprise.fit(column) for column in columns]
        share = events / len(columns)
        self._thresholds = [
            threshold_for(null(column), start, overexposed, gate, share)
            for null, column in zip(self._nulls, columns, strict=True)
        ]

    def score(self, columns: Sequence[FloatArray], overexposed: BoolArray) -> FloatArray:
        """Largest ratio of -log p to its threshold, (n,); NaN where no column says anything."""
        result = np.full(overexposed.shape, np.nan)
        for null, threshold, column in zip(self._nulls, self._thresholds, columns, strict=True):
            # A column that was constant on clean data has a threshold of 0.
            np.fmax(result, null(column) / np.maximum(threshold.of(overexposed), 1.0), out=result)
        return result
