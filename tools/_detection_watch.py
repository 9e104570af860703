"""What a monitor says about clean rows and broken ones, and how false alarms are counted."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from _detection_config import RATE_HZ
from _detection_transforms import EVENT_GAP

from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import RegionMap
from edge_monitor.reports import CHANNELS, FlagStatus, HealthReport
from edge_monitor.types import BoolArray, FloatArray, StatRow

EXACT_FLAGS = (
    *("NON_FINITE", "INPUT_FROZEN", "ROWS_DEAD", "ACTIVATIONS_STALE", "TIME_BACKWARDS"),
    *("FRAMES_LOST", "LATENCY_HIGH", "RATE_LOW"),
)
"""Flags that need no threshold on activations; peers get them too."""


class Said(msgspec.Struct, frozen=True, eq=False):
    """What a monitor said about n rows.

    ``scores`` (n, n_channels); ``overexposed`` (n,); ``guard`` (n,): one of `EXACT_FLAGS` is confirmed;
    ``raised``: frame and code of every flag when it was confirmed.
    """

    scores: FloatArray
    overexposed: BoolArray
    guard: BoolArray
    raised: list[tuple[int, str]]


class Watcher:
    """A monitor that keeps what `Said` holds."""

    def __init__(self, monitor: Monitor) -> None:
        self.region_map = monitor.region_map
        self._monitor = monitor
        self._scores: list[FloatArray] = []
        self._overexposed: list[bool] = []
        self._guard: list[bool] = []
        self._raised: list[tuple[int, str]] = []
        self._codes = [flag.code for flag in monitor.report.flags]
        self._flags = monitor.report.flags
        self._up = self._confirmed()

    @property
    def report(self) -> HealthReport:
        return self._monitor.report

    def step(self, row: StatRow) -> HealthReport:
        report = self._monitor.step(row)
        if report.flags is not self._flags:
            self._flags = report.flags
            up = self._confirmed()
            self._raised += [(len(self._guard), code) for code in self._codes if code in up - self._up]
            self._up = up
        self._guard.append(any(code in self._up for code in EXACT_FLAGS))
        evidence = report.evidence
        self._overexposed.append(evidence is not None and evidence.overexposed)
        self._scores.append(np.full(len(CHANNELS), np.nan) if evidence is None else evidence.score)
        return report

    def said(self) -> Said:
        scores = np.array(self._scores).reshape(-1, len(CHANNELS))
        return Said(scores, np.array(self._overexposed, bool), np.array(self._guard, bool), self._raised)

    def _confirmed(self) -> set[str]:
        return {flag.code for flag in self._flags if flag.status is FlagStatus.CONFIRMED}


def watch(region_map: RegionMap, rows: Sequence[StatRow]) -> Said:
    """Run a monitor over rows, from nothing."""
    watcher = Watcher(Monitor(region_map))
    for row in rows:
        watcher.step(row)
    return watcher.said()


class Alarms(msgspec.Struct, frozen=True):
    """False alarms on clean rows: ``events`` in ``hours``, each flag by itself, and while standing still."""

    events: int
    hours: float
    flags: dict[str, int]
    standing_events: int
    standing_hours: float


def count_events(frames: Sequence[int]) -> int:
    """Separate events: alarms raised less than `EVENT_GAP` frames after the one before belong to it."""
    places = np.sort(np.asarray(frames, np.int64))
    return int(places.size > 0) + int((np.diff(places) >= EVENT_GAP).sum())


def alarms_of(raised: Sequence[tuple[int, str]], standing: BoolArray) -> Alarms:
    """Count false alarms among flags raised on clean rows."""
    frames = [frame for frame, _ in raised]
    codes = sorted({code for _, code in raised})
    return Alarms(
        events=count_events(frames),
        hours=standing.size / RATE_HZ / 3600.0,
        flags={code: count_events([frame for frame, c in raised if c == code]) for code in codes},
        standing_events=count_events([frame for frame in frames if standing[frame]]),
        standing_hours=int(standing.sum()) / RATE_HZ / 3600.0,
    )
