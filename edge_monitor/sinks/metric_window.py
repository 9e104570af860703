"""Folds the reports of a few seconds into one message."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from edge_monitor.reports import CHANNELS, HealthReport, HealthState
from edge_monitor.types import FloatArray, MonitorInput, StatRow


class Spread(msgspec.Struct, frozen=True):
    """Mean and maximum of a score over the frames of a window that had one."""

    mean: float
    max: float


class Window(msgspec.Struct, frozen=True):
    """What happened between ``t_first_ns`` and ``t_last_ns`` (CLOCK_MONOTONIC).

    ``state``: the worst health state. ``skipped``: reports since boot that no window holds because
    the sender was busy. ``missing``: frames the stream lost; ``nonfinite``: NaN and Inf in taps and
    output. ``latency_ns_max``: slowest inference, None without a frame. ``scores``: temporal,
    spatial, input, consistency. ``ratios``: evidence over threshold by channel. ``power``: mean band
    power [tap][band], signal units squared, null where no frame had one.
    """

    t_first_ns: int
    t_last_ns: int
    frames: int
    skipped: int
    state: str
    rate_hz: float | None
    latency_ns_max: int | None
    missing: int
    nonfinite: int
    scores: dict[str, Spread]
    ratios: dict[str, Spread]
    power: list[list[float | None]]


class WindowBuilder:
    """Collects reports until `build` makes a window of them."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.t_first_ns: int | None = None
        self._t_last_ns = 0
        self._state = HealthState.OK
        self._rate_hz: float | None = None
        self._latencies: list[int] = []
        self._missing = 0
        self._nonfinite = 0
        self._scores: dict[str, list[float]] = {}
        self._ratios: dict[str, list[float]] = {}
        self._powers: list[FloatArray] = []

    def update(self, item: MonitorInput, report: HealthReport) -> None:
        """Add one report; only frames count in rates and scores."""
        if self.t_first_ns is None:
            self.t_first_ns = report.t_ns
        self._t_last_ns = report.t_ns
        self._state = max(self._state, report.state)
        self._rate_hz = report.vitals.rate_hz
        if not isinstance(item, StatRow):
            return
        self._latencies.append(report.vitals.latency_ns)
        self._missing += report.vitals.missing
        self._nonfinite += report.vitals.nonfinite
        if report.bands is not None:
            _add(self._scores, "temporal", report.bands.score)
            self._powers.append(report.bands.power)
        if report.regions is not None:
            _add(self._scores, "spatial", report.regions.score)
            _add(self._scores, "input", report.regions.input_score)
        if report.consistency is not None:
            _add(self._scores, "consistency", report.consistency.score)
        if report.evidence is not None:
            for channel, ratio in zip(CHANNELS, report.evidence.ratio, strict=True):
                _add(self._ratios, channel, float(ratio))

    def build(self, skipped: int) -> Window | None:
        """Return the window so far and begin the next one; None if nothing was added."""
        if self.t_first_ns is None:
            return None
        window = Window(
            t_first_ns=self.t_first_ns,
            t_last_ns=self._t_last_ns,
            frames=len(self._latencies),
            skipped=skipped,
            state=self._state.name,
            rate_hz=self._rate_hz,
            latency_ns_max=max(self._latencies, default=None),
            missing=self._missing,
            nonfinite=self._nonfinite,
            scores=_spreads(self._scores),
            ratios=_spreads(self._ratios),
            power=_mean_power(self._powers),
        )
        self._reset()
        return window


def _add(series: dict[str, list[float]], name: str, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        series.setdefault(name, []).append(value)


def _spreads(series: dict[str, list[float]]) -> dict[str, Spread]:
    return {name: Spread(math.fsum(values) / len(values), max(values)) for name, values in series.items()}


def _mean_power(powers: list[FloatArray]) -> list[list[float | None]]:
    if not powers:
        return []
    known = np.isfinite(powers)
    count = known.sum(axis=0)
    total = np.where(known, powers, 0.0).sum(axis=0)
    return [
        [float(t / n) if n else None for t, n in zip(*row, strict=True)]
        for row in zip(total, count, strict=True)
    ]
