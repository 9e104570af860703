"""What a page keeps of a recording while it is replayed: time courses, events, freeze frames; bounded."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

import msgspec
import numpy as np

from edge_monitor.errors import RecordingError
from edge_monitor.flag_table import FLAGS
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.plots_recording import CONFIRMED, PENDING
from edge_monitor.offline.replay import Replay
from edge_monitor.offline.time_course import TimeCourse, farthest, largest, smallest
from edge_monitor.region_map import RegionMap
from edge_monitor.reports import (
    CHANNELS,
    Consistency,
    FlagStatus,
    HealthReport,
    HealthState,
    Transition,
)
from edge_monitor.types import BANDS, FloatArray

AROUND = 32
"""Reports kept before and after a confirmation."""
EVENTS = 200
"""Transitions kept; the rest are counted."""
TERMS = ("score", "rho", "agreement", "coherence")

_PENDING_OR_CONFIRMED = {FlagStatus.PENDING: PENDING, FlagStatus.CONFIRMED: CONFIRMED}


class FreezeFrame(msgspec.Struct, frozen=True, eq=False):
    """The first confirmation of a flag.

    ``at_s``: seconds since the first input. ``reports``: those around it in order, ``index`` the one that
    confirmed. ``seen``: the last report up to then that tells about regions; None before the first.
    """

    transition: Transition
    at_s: float
    reports: list[HealthReport]
    index: int
    seen: HealthReport | None


class Watching:
    """Takes in the reports of a replay, one after the other.

    Attributes
    ----------
    course : TimeCourse
        Tracks ``state`` (1), ``flags`` (one a row of `FLAGS`), ``log_power`` (n_taps x n_bands), ``z``
        (n_voxels), ``consistency`` (`TERMS`), ``ratio`` (n_channels) and ``residual`` (n_taps).
    frames, reports : int
        Reports on a frame; all reports.
    states : Counter of HealthState
        Reports in each state.
    events : list of (float, Transition)
        Second and transition, the first `EVENTS` of them; ``n_events`` in all.
    freeze_frames : dict of str to FreezeFrame
        By code, in the order of confirmation.
    last : HealthReport or None
    """

    def __init__(self, region_map: RegionMap) -> None:
        n_taps = len(region_map.taps)
        n_voxels = sum(tap.n_voxels for tap in region_map.taps)
        self.course = TimeCourse(
            {
                "state": (1, largest),
                "flags": (len(FLAGS), largest),
                "log_power": (n_taps * len(BANDS), largest),
                "z": (n_voxels, farthest),
                "consistency": (len(TERMS), smallest),
                "ratio": (len(CHANNELS), largest),
                "residual": (n_taps, largest),
            },
            # Two frames wide from the start: frames that come a little late leave no gap.
            column_ns=int(2e9 / region_map.provenance.frame_rate_hz),
        )
        self.frames = self.reports = self.n_events = 0
        self.states: Counter[HealthState] = Counter()
        self.events: list[tuple[float, Transition]] = []
        self.freeze_frames: dict[str, FreezeFrame] = {}
        self.last: HealthReport | None = None
        self._floor = region_map.eeg.floor
        self._recent: deque[HealthReport] = deque(maxlen=AROUND + 1)
        self._seen: HealthReport | None = None

    def add(self, report: HealthReport) -> None:
        """Take in the next report."""
        at_s = self.course.move(report.t_ns)
        self.reports += 1
        self.frames += report.bands is not None
        self.states[report.state] += 1
        self.last = report
        self._draw(report)
        for freeze in self.freeze_frames.values():
            if len(freeze.reports) - freeze.index <= AROUND:
                freeze.reports.append(report)
        self._recent.append(report)
        if report.regions is not None:
            self._seen = report
        for transition in report.transitions:
            self.n_events += 1
            if len(self.events) < EVENTS:
                self.events.append((at_s, transition))
            if _confirms(transition) and transition.code not in self.freeze_frames:
                before = list(self._recent)
                freeze = FreezeFrame(transition, at_s, before, len(before) - 1, self._seen)
                self.freeze_frames[transition.code] = freeze

    def _draw(self, report: HealthReport) -> None:
        """Add a report to the time courses."""
        add = self.course.add
        add("state", np.array([report.state], np.float64))
        add("flags", np.array([_PENDING_OR_CONFIRMED.get(flag.status, 0.0) for flag in report.flags]))
        if report.bands is not None:
            # The floor of the baselines: a power of 0 is known, its logarithm must be finite.
            add("log_power", np.log10(report.bands.power + self._floor).ravel())
        if report.regions is not None:
            add("z", report.regions.z)
        if report.connectivity is not None:
            add("residual", report.connectivity.residual)
        if report.consistency is not None:
            add("consistency", _terms(report.consistency))
        if report.evidence is not None:
            add("ratio", report.evidence.ratio)


def _confirms(transition: Transition) -> bool:
    return transition.code != "HEALTH" and transition.after == FlagStatus.CONFIRMED.value


def _terms(consistency: Consistency) -> FloatArray:
    terms = (getattr(consistency, name) for name in TERMS)
    return np.array([np.nan if term is None else term for term in terms])


class Watched(msgspec.Struct, frozen=True, eq=False):
    """A replayed recording and what was seen."""

    path: Path
    region_map: RegionMap
    metadata: dict[str, str]
    watching: Watching
    identical: int
    truncated: bool
    lost: int


def watch_recording(path: Path, progress: Progress = silent) -> Watched:
    """Replay a recording and watch its reports.

    Raises
    ------
    RecordingError
        It holds no whole input; and see `Replay`.
    """
    replay = Replay(path)
    watching = Watching(replay.region_map)
    for report in replay.reports(progress):
        watching.add(report)
    if watching.last is None:
        raise RecordingError(path, "holds no whole input")
    return Watched(
        path, replay.region_map, replay.metadata, watching, replay.identical, replay.truncated, replay.lost
    )
