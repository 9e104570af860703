"""The table of safety flags (design section 6): what raises each, how fast, and how it clears.

A test of a row is a pure function of the frame's findings that answers *failed*, *passed* or
*nothing learned*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from edge_monitor.findings import PASSED, UNKNOWN, Findings, Verdict
from edge_monitor.flag_causes import (
    explain_fault,
    explain_input,
    explain_jump,
    explain_line,
    explain_output,
    explain_residual,
    explain_shift,
    explain_spatial,
    explain_stall,
    explain_temporal,
    explain_tract,
    likely,
)
from edge_monitor.reports import CHANNELS, HealthState

PASS_RATIO = 0.8
"""Evidence has to fall to this share of its threshold before it counts as passed."""


class FlagRow(NamedTuple):
    """One row of `FLAGS`.

    ``up`` and ``down`` are the fault counter's steps per failed and passed test. ``grace_s``: time
    after the start of the stream in which the test is not held. ``latched``: cleared only by an
    explicit release. ``budget_ms``: detection time the row is meant to keep at 30 frames/s. ``channel``: what
    channel of evidence the test reads, None for a guard.
    """

    code: str
    name: str
    severity: HealthState
    test: Callable[[Findings], Verdict]
    up: int
    down: int
    grace_s: float
    latched: bool
    budget_ms: int
    text: str
    channel: str | None = None


def _non_finite(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None:
        return UNKNOWN
    if f.vitals.nonfinite == 0:
        return PASSED
    where = next((t.name for t, n in zip(f.taps, f.row.nonfinite, strict=True) if n), "output")
    return Verdict(True, f"NaN or Inf in {where}", {"nonfinite": float(f.vitals.nonfinite)})


def _input_frozen(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None or f.limits.repeats_by_nature:
        return UNKNOWN
    if f.vitals.repeated == 0:
        return PASSED
    return Verdict(True, "input repeats bit for bit", {"repeated": float(f.vitals.repeated)})


def _rows_dead(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None or f.vitals.dead_rows is None:
        return UNKNOWN
    dead, most = f.vitals.dead_rows, f.limits.dead_rows
    if dead <= most:
        return PASSED
    text = f"{dead} rows of the picture carry nothing: flat, or copies of the row above"
    return Verdict(True, text, {"dead_rows": float(dead), "most_clean": float(most)})


def _activations_stale(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None or f.vitals.repeated:
        return UNKNOWN
    if f.vitals.stale == 0:
        return PASSED
    return Verdict(True, "activations repeat while the input changes", {"stale": float(f.vitals.stale)})


def _no_frames(f: Findings) -> Verdict:
    if f.vitals is None:
        return UNKNOWN
    if f.vitals.silence_ns <= f.limits.silence_ns:
        return PASSED if f.row is not None else UNKNOWN
    return Verdict(True, "no frame arrives", {"silence_s": f.vitals.silence_ns / 1e9})


def _rate_low(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None or f.vitals.rate_hz is None:
        return UNKNOWN
    if f.vitals.rate_hz >= 0.8 * f.limits.rate_hz:
        return PASSED
    return Verdict(True, "frame rate is low", {"rate_hz": f.vitals.rate_hz, "nominal_hz": f.limits.rate_hz})


def _latency_high(f: Findings) -> Verdict:
    if f.row is None:
        return UNKNOWN
    if f.row.latency_ns <= f.limits.deadline_ns:
        return PASSED
    latency_ms, deadline_ms = f.row.latency_ns / 1e6, f.limits.deadline_ns / 1e6
    return Verdict(True, "model misses its deadline", {"latency_ms": latency_ms, "deadline_ms": deadline_ms})


def _time_backwards(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None:
        return UNKNOWN
    return Verdict(True, "a frame was taken before the one that came first") if f.vitals.backwards else PASSED


def _frames_lost(f: Findings) -> Verdict:
    if f.row is None or f.vitals is None:
        return UNKNOWN
    if f.vitals.missing == 0:
        return PASSED
    return Verdict(True, "frames are missing again and again", {"missing": float(f.vitals.missing)})


def _views_disagree(f: Findings) -> Verdict:
    if f.consistency is None or f.consistency.agreement is None:
        return UNKNOWN
    agreement, least = f.consistency.agreement, f.limits.least_agreement
    if agreement >= least:
        return PASSED
    text = "NN-EEG and NN-fMRI contradict each other"
    return Verdict(True, text, {"agreement": agreement, "least_clean": least})


def _evidence(
    channel: str, explain: Callable[[Findings], str], *, guess: bool = True
) -> Callable[[Findings], Verdict]:
    """Return the test of one evidence channel: failed at its threshold, passed well below it.

    Its cause ends with the fault head's ``guess``, unless the channel knows by itself what is wrong.
    """
    index = CHANNELS.index(channel)

    def test(f: Findings) -> Verdict:
        if f.evidence is None:
            return UNKNOWN
        ratio = float(f.evidence.ratio[index])
        if ratio < PASS_RATIO:
            return PASSED
        if not ratio >= 1.0:  # between the two thresholds, or NaN
            return UNKNOWN
        values = {
            "ratio": ratio,
            "surprise": float(f.evidence.surprise[index]),
            "score": float(f.evidence.score[index]),
        }
        return Verdict(True, f"{explain(f)}{likely(f) if guess else ''}", values)

    return test


def _reported(code: str) -> Callable[[Findings], Verdict]:
    """Return the test of a flag that the probe itself reports; a row shows that it is at work again."""

    def test(f: Findings) -> Verdict:
        if f.event is None or f.event.code != code:
            return UNKNOWN if f.row is None else PASSED
        return Verdict(True, f.event.detail)

    return test


_WARN, _STALE, _FAIL = HealthState.WARN, HealthState.STALE, HealthState.FAIL
_ONCE = 255  # one failed test takes the counter from one end to the other

# fmt: off
FLAGS: tuple[FlagRow, ...] = (
    FlagRow("NON_FINITE", "non-finite values", _FAIL, _non_finite, _ONCE, 8, 0.0, True, 34,
            "A tensor holds NaN or Inf. Its frame is left out of all statistics."),
    FlagRow("INPUT_FROZEN", "frozen input", _FAIL, _input_frozen, 64, 16, 0.0, False, 100,
            "The camera delivers the same picture again and again."),
    FlagRow("ACTIVATIONS_STALE", "stale activations", _FAIL, _activations_stale, 64, 16, 0.0, False, 100,
            "The picture changes but the network's inside does not: stale buffers or a dead accelerator."),
    FlagRow("NO_FRAMES", "no frames", _STALE, _no_frames, _ONCE, _ONCE, 0.0, False, 1000,
            "The perception process has gone silent."),
    FlagRow("RATE_LOW", "low frame rate", _WARN, _rate_low, 8, 8, 2.0, False, 2000,
            "Frames arrive at less than 80 % of the nominal rate."),
    FlagRow("LATENCY_HIGH", "deadline missed", _WARN, _latency_high, 32, 1, 2.0, False, 500,
            "The model takes longer than its deadline again and again."),
    FlagRow("INPUT_ABNORMAL", "abnormal picture", _FAIL, _evidence("input", explain_input), 16, 8, 2.0,
            False, 1000, "Brightness or structure of the input lies outside what calibration saw.",
            channel="input"),
    FlagRow("REGION_ABNORMAL", "abnormal regions", _FAIL, _evidence("spatial", explain_spatial), 16, 8, 2.0,
            False, 1000, "Voxel densities of the layers lie outside what calibration saw (NN-fMRI).",
            channel="spatial"),
    FlagRow("RHYTHM_ABNORMAL", "abnormal rhythm", _WARN, _evidence("temporal", explain_temporal), 8, 8, 2.0,
            False, 9000, "Band powers of the layers lie outside what calibration saw (NN-EEG).",
            channel="temporal"),
    FlagRow("OUTPUT_ABNORMAL", "unsure output", _WARN, _evidence("output", explain_output), 8, 8, 2.0,
            False, 3000, "The entropy of the answers stays higher than calibration ever saw.",
            channel="output"),
    FlagRow("PROBE_DETACHED", "probe detached", _WARN, _reported("PROBE_DETACHED"), _ONCE, 8, 0.0, True, 34,
            "The probe met an error of its own and let go; the model serves unwatched."),
    FlagRow("ANSWER_CHANGED", "answers would change", _FAIL, _reported("ANSWER_CHANGED"), _ONCE, 8, 0.0, True,
            34, "The tapped model did not answer as the untapped one; the probe did not attach."),
    FlagRow("SELF_TEST_FAILED", "self-test failed", _FAIL, _reported("SELF_TEST_FAILED"), _ONCE, 8, 0.0, True,
            34, "Golden frames give other activations than recorded: changed weights, delegate or buffers."),
    FlagRow("CONNECTIVITY_ABNORMAL", "abnormal connectivity", _FAIL, _evidence("residual", explain_residual),
            32, 8, 2.0, False, 1000, "A layer does not follow from the one before it as in calibration: "
            "broken weights, units or buffers, or a picture that is far off.", channel="residual"),
    FlagRow("TRACT_BROKEN", "broken tract", _WARN, _evidence("tracts", explain_tract), 16, 8, 2.0,
            False, 1000, "A voxel is active and what it drives stays silent.", channel="tracts"),
    FlagRow("INPUT_SHIFTED", "sudden change of the picture", _FAIL, _evidence("shift", explain_shift), 32, 8,
            4.0, False, 500, "Level, sharpness or noise of the picture leave the last seconds' faster than "
            "any scene.", channel="shift"),
    FlagRow("INPUT_FLICKERS", "flicker", _FAIL, _evidence("line", explain_line), 32, 8, 4.0, False, 2500,
            "One frequency stands out: flicker, a hunting exposure control, a rolling band.", channel="line"),
    FlagRow("INPUT_STALLED", "stalled scene", _FAIL, _evidence("stall", explain_stall), 32, 8, 4.0, False,
            1500, "The vehicle drives, the picture has fresh noise, but the scene stands still.",
            channel="stall"),
    FlagRow("CAMERA_MOVED", "camera moved", _FAIL, _evidence("jump", explain_jump, guess=False),
            32, 8, 2.0, False, 500,
            "The same scene is suddenly seen elsewhere in the picture: the camera was knocked.",
            channel="jump"),
    FlagRow("FAULT_RECOGNISED", "recognised fault", _FAIL, _evidence("faults", explain_fault), 32, 8, 4.0,
            False, 500, "The fault head takes what it sees for a fault that it was trained on.",
            channel="faults"),
    FlagRow("TIME_BACKWARDS", "time runs back", _FAIL, _time_backwards, _ONCE, 4, 0.0, False, 34,
            "A frame carries an earlier capture time than the one before: reordered or repeated buffers."),
    FlagRow("FRAMES_LOST", "lost frames", _WARN, _frames_lost, 56, 1, 2.0, False, 1500,
            "Single frames are missing again and again."),
    FlagRow("VIEWS_DISAGREE", "views disagree", _WARN, _views_disagree, 1, 1, 2.0, False, 9000,
            "NN-EEG and NN-fMRI contradict each other for longer than they ever did in clean driving."),
    FlagRow("ROWS_DEAD", "dead rows", _FAIL, _rows_dead, 32, 16, 0.0, False, 140,
            "More rows of the picture carry nothing than in clean driving: a dead driver, a stuck counter."),
)
# fmt: on


def is_calm(f: Findings) -> bool:
    """Whether no test can fail: by far the most frequent case, told at once.

    tests/test_flag_table.py::test_calm_findings_fail_no_test keeps it true to the tests.
    """
    v, e, limits = f.vitals, f.evidence, f.limits
    return (
        f.row is not None
        and f.event is None
        and v is not None
        and e is not None
        and not e.largest >= PASS_RATIO
        and v.nonfinite + v.repeated + v.stale + v.missing + v.backwards + v.silence_ns == 0
        and (v.dead_rows is None or v.dead_rows <= limits.dead_rows)
        and (v.rate_hz is None or v.rate_hz >= 0.8 * limits.rate_hz)
        and f.row.latency_ns <= limits.deadline_ns
        and (
            f.consistency is None
            or f.consistency.agreement is None
            or f.consistency.agreement >= limits.least_agreement
        )
    )
