"""Reports made by hand, for tests of what happens after the pipeline."""

import numpy as np

from edge_monitor.reports import (
    BandPowers,
    Connectivity,
    Consistency,
    Evidence,
    FlagState,
    FlagStatus,
    HealthReport,
    HealthState,
    RegionScores,
    Transition,
    Vitals,
)
from edge_monitor.types import ProbeEvent, StatRow

MS = 1_000_000


def row(frame=0):
    return StatRow(frame, frame * 33 * MS, 5 * MS, np.ones(3), np.zeros(3, np.int64), 0)


def probe_event(code="PROBE_DETACHED", detail="three errors in a row"):
    return ProbeEvent(7, code, detail)


def transition(n=0, code="NONFINITE", **values):
    return Transition(n, n * 33 * MS, code, "inactive", "confirmed", f"cause {n}", values)


def flag(code="NONFINITE", status=FlagStatus.CONFIRMED, occurrences=1, **values):
    return FlagState(code, status, 127, occurrences, 99, "cause", values)


def vitals(missing=0, nonfinite=0, latency_ns=5 * MS, rate_hz=30.0):
    return Vitals(missing, 0, 0, nonfinite, rate_hz, latency_ns, 0, None, None)


def report(frame=0, *, transitions=(), flags=(), state=HealthState.OK, vital=None, **views):
    return HealthReport(
        frame, frame * 33 * MS, state, (), vital or vitals(), tuple(flags), tuple(transitions), **views
    )


def bands(power, score):
    power = np.asarray(power, float)
    n = len(power)
    nothing = np.zeros(n, np.int64)
    return BandPowers(
        power,
        np.zeros_like(power),
        nothing,
        nothing,
        score,
        np.full(n, np.nan),
        None,
        np.full((n, 5), np.nan),
    )


def regions(score, input_score):
    return RegionScores(np.zeros(2), np.zeros(2), np.zeros(2), None, None, score, input_score, None)


def connectivity(residual, root):
    """Voxel 1 of three alarms under the root; the tract from voxel 0 to voxel 2 is the weakest."""
    marked = np.array([False, True, False])
    known = np.asarray(residual, float)
    return Connectivity(
        residual=known,
        departure=np.zeros(4),
        shift=np.full(3, np.nan),
        tract_z=np.array([-2.5, np.nan]),
        alarming=marked,
        under=marked,
        root=root,
        weakest=(0, 2),
        residual_score=None,
        shift_score=None,
        tract_score=2.5,
    )


def consistency(score):
    return Consistency(None, None, None, None, score, 1)


def evidence(ratio):
    ratio = np.asarray(ratio, float)
    largest = max(ratio[~np.isnan(ratio)].tolist(), default=np.nan)
    return Evidence(ratio, ratio, ratio, overexposed=False, largest=largest)
