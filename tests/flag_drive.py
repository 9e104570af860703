"""Findings made by hand, and a tracker that is driven with them."""

from __future__ import annotations

import msgspec
import numpy as np

from edge_monitor.findings import Findings, Limits
from edge_monitor.flag_table import FLAGS
from edge_monitor.flags import FlagTracker
from edge_monitor.reports import CHANNELS, Consistency, Evidence, FlagStatus, Vitals
from edge_monitor.types import ProbeEvent, StatRow, TapSpec

SECOND = 10**9
PERIOD_NS = SECOND / 30
TAPS = (TapSpec("image", (3, 8, 8), (3, 2, 2)), TapSpec("relu_1", (4, 8, 8), (2, 2, 2)))
LIMITS = Limits(
    rate_hz=30.0,
    deadline_ns=33_000_000,
    silence_ns=SECOND // 2,
    repeats_by_nature=False,
    dead_rows=1,
    least_agreement=0.7,
)
INACTIVE, PENDING, CONFIRMED, HEALED = FlagStatus
CODES = [row.code for row in FLAGS]


def vitals(**changes):
    clean = Vitals(
        missing=0,
        repeated=0,
        stale=0,
        nonfinite=0,
        rate_hz=30.0,
        latency_ns=5_000_000,
        silence_ns=0,
        entropy=None,
        confidence=None,
    )
    return msgspec.structs.replace(clean, **changes)


def frame(*, tap_nonfinite=0, latency_ns=5_000_000, limits=LIMITS, ratios=None, views=None, **changes):
    """Findings at a frame, clean unless told; ``ratios``: evidence per channel, ``changes``: vitals."""
    row = StatRow(0, 0, latency_ns, np.ones(2), np.array([0, tap_nonfinite]), 0)
    ratio = np.array([(ratios or {}).get(channel, 0.1) for channel in CHANNELS])
    largest = float(max(ratio[~np.isnan(ratio)], default=np.nan))
    evidence = Evidence(ratio * 3, ratio * 10, ratio, overexposed=False, largest=largest)
    return Findings(limits, TAPS, vitals(**changes), row=row, evidence=evidence, **(views or {}))


def agreeing(agreement):
    """Views of a frame whose two views agree so far."""
    return {"consistency": Consistency(0.25, agreement, None, None, 0.5, 2)}


def tick(silence_ns=0, event=None):
    return Findings(LIMITS, TAPS, vitals(silence_ns=silence_ns), event=event)


def told(code):
    return tick(event=ProbeEvent(0, code, f"detail of {code}"))


RAISERS = {
    "NON_FINITE": frame(tap_nonfinite=3, nonfinite=3),
    "INPUT_FROZEN": frame(repeated=1),
    "ROWS_DEAD": frame(dead_rows=2),
    "ACTIVATIONS_STALE": frame(stale=1),
    "NO_FRAMES": tick(silence_ns=SECOND),
    "RATE_LOW": frame(rate_hz=20.0),
    "LATENCY_HIGH": frame(latency_ns=50_000_000),
    "INPUT_ABNORMAL": frame(ratios={"input": 1.5}),
    "REGION_ABNORMAL": frame(ratios={"spatial": 1.5}),
    "RHYTHM_ABNORMAL": frame(ratios={"temporal": 1.5}),
    "OUTPUT_ABNORMAL": frame(ratios={"output": 1.5}),
    "CONNECTIVITY_ABNORMAL": frame(ratios={"residual": 1.5}),
    "TRACT_BROKEN": frame(ratios={"tracts": 1.5}),
    "INPUT_SHIFTED": frame(ratios={"shift": 1.5}),
    "INPUT_FLICKERS": frame(ratios={"line": 1.5}),
    "INPUT_STALLED": frame(ratios={"stall": 1.5}),
    "CAMERA_MOVED": frame(ratios={"jump": 1.5}),
    "FAULT_RECOGNISED": frame(ratios={"faults": 1.5}),
    "TIME_BACKWARDS": frame(backwards=True),
    "FRAMES_LOST": frame(missing=1),
    "VIEWS_DISAGREE": frame(views=agreeing(0.6)),
    "PROBE_DETACHED": told("PROBE_DETACHED"),
    "ANSWER_CHANGED": told("ANSWER_CHANGED"),
    "SELF_TEST_FAILED": told("SELF_TEST_FAILED"),
}
CLEAN = frame()


class Drive:
    """A tracker fed at 30 frames/s, and the transitions it told with their times in seconds."""

    def __init__(self, *, past_grace=True):
        self.tracker = FlagTracker()
        self.frames = 0
        self.first = None
        self.story = []
        if past_grace:
            self.feed(CLEAN, 121)

    def feed(self, findings, n=1):
        for _ in range(n):
            t_ns = int(self.frames * PERIOD_NS)
            if self.first is None and findings.row is not None:
                self.first = t_ns
            age_ns = 0 if self.first is None else t_ns - self.first
            aged = msgspec.structs.replace(findings.vitals, age_ns=age_ns)
            findings = msgspec.structs.replace(findings, vitals=aged)
            for transition in self.tracker.update(self.frames, t_ns, findings):
                assert (transition.frame, transition.t_ns) == (self.frames, t_ns)
                when = round(t_ns / SECOND, 2)
                self.story.append((when, transition.code, transition.before, transition.after))
            self.frames += 1
        return self

    def flag(self, code):
        return self.tracker.states[CODES.index(code)]

    def standing(self):
        return {flag.code for flag in self.tracker.states if flag.status is CONFIRMED}
