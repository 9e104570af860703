"""The table of safety flags and the fault life cycle (design section 6).

Each row says what raises the flag, how fast, and how it clears. A test of a row is a pure function
of the frame's findings that answers *failed*, *passed* or *nothing learned*; the fault counter of
automotive diagnostics (AUTOSAR Diagnostic Event Manager, counter-based debouncing) turns those
answers into pending, confirmed and healed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import numpy as np

from edge_monitor.types import (
    BANDS,
    CHANNELS,
    BandPowers,
    Connectivity,
    Consistency,
    Evidence,
    FaultGuess,
    FlagState,
    FlagStatus,
    HealthState,
    ProbeEvent,
    RegionScores,
    StatRow,
    TapSpec,
    Transition,
    Vitals,
)

COUNTER_FAILED, COUNTER_PASSED = 127, -128
AGING_NS = 600 * 10**9
"""A healed flag is forgotten after ten minutes without a new occurrence."""
STORAGE_NS = 10 * 10**9
"""Transitions of one flag leave the device at most one pair in this time."""
PASS_RATIO = 0.8
"""Evidence has to fall to this share of its threshold before it counts as passed."""


class Limits(msgspec.Struct, frozen=True):
    """What counts as too slow or too silent for one stream; times in nanoseconds, rate in Hz."""

    rate_hz: float
    deadline_ns: int
    silence_ns: int
    repeats_by_nature: bool
    least_agreement: float


class Findings(msgspec.Struct, frozen=True, eq=False):
    """All that one input told the monitor; None where the input carries no such thing."""

    limits: Limits
    taps: tuple[TapSpec, ...]
    vitals: Vitals | None
    row: StatRow | None = None
    bands: BandPowers | None = None
    regions: RegionScores | None = None
    connectivity: Connectivity | None = None
    consistency: Consistency | None = None
    evidence: Evidence | None = None
    guess: FaultGuess | None = None
    event: ProbeEvent | None = None


class Verdict(NamedTuple):
    """Answer of one test; ``failed`` None means that nothing was learned."""

    failed: bool | None
    cause: str = ""
    values: Mapping[str, float] = MappingProxyType({})


PASSED = Verdict(False)
UNKNOWN = Verdict(None)


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
        return Verdict(True, f"{explain(f)}{_likely(f.guess) if guess else ''}", values)

    return test


def _likely(guess: FaultGuess | None) -> str:
    """Words about the likely fault, as far as there is a head that knows."""
    if guess is None or guess.score is None:
        return ""
    if guess.name is None or guess.score < 0.0:
        return "; fault unknown"
    return f"; looks like {guess.name} ({guess.confidence:.0%})"


def _always(text: str) -> Callable[[Findings], str]:
    """Return an explanation that needs no findings."""
    return lambda _: text


_explain_shift = _always("the picture changes more than it does between scenes")
_explain_stall = _always("the vehicle drives and the scene stands still")
_explain_jump = _always("the whole scene was displaced from one frame to the next")
_explain_fault = _always("all findings together are those of a fault")


def _explain_line(f: Findings) -> str:
    if f.bands is None:
        return "a layer's level swings at one frequency"
    return f"the level of {f.taps[int(np.nanargmax(f.bands.line))].name} swings at one frequency"


def _explain_input(f: Findings) -> str:
    if f.regions is None:
        return "the picture is unusual"
    z = f.regions.z[: f.taps[0].n_voxels]
    # The level is that of what the model sees: with a mean subtracted, black may lie far from 0.
    level = "lower" if np.nansum(z) < 0 else "higher"
    return f"the input's level is {level} than it ever was in calibration"


def _explain_spatial(f: Findings) -> str:
    if f.regions is None or f.regions.worst is None:
        return "layer densities are unusual"
    tap, place = locate(f.taps, f.regions.worst)
    return f"density of {tap.name} {list(place)} is unusual"


def _explain_temporal(f: Findings) -> str:
    if f.bands is None:
        return "band powers are unusual"
    z = np.nan_to_num(np.abs(f.bands.z), nan=-1.0)
    tap, band = divmod(int(z.argmax()), len(BANDS))
    return f"{BANDS[band]} power of {f.taps[tap].name} is unusual"


def _explain_output(f: Findings) -> str:
    entropy = f.vitals.entropy if f.vitals else None
    return "the model is unsure" if entropy is None else f"the model is unsure, entropy {entropy:.2f} nats"


def _explain_residual(f: Findings) -> str:
    if f.connectivity is None or f.connectivity.root is None:
        return "a layer does not follow from the one before it"
    tap, place = locate(f.taps, f.connectivity.root)
    under = int(f.connectivity.under.sum())
    others = f"; alarms of later layers under it: {under}" if under else ""
    picture = "; the picture is out of its range" if f.connectivity.residual[0] >= 1.0 else ""
    return f"{tap.name} {list(place)} does not follow from what drives it{others}{picture}"


def _explain_tract(f: Findings) -> str:
    if f.connectivity is None or f.connectivity.weakest is None:
        return "a tract carries less than it should"
    (source, g), (target, h) = (locate(f.taps, voxel) for voxel in f.connectivity.weakest)
    return f"{source.name} {list(g)} is active and hardly drives {target.name} {list(h)}"


def _reported(code: str) -> Callable[[Findings], Verdict]:
    """Return the test of a flag that the probe itself reports; a row shows that it is at work again."""

    def test(f: Findings) -> Verdict:
        if f.event is None or f.event.code != code:
            return UNKNOWN if f.row is None else PASSED
        return Verdict(True, f.event.detail)

    return test


def locate(taps: tuple[TapSpec, ...], voxel: int) -> tuple[TapSpec, tuple[int, int, int]]:
    """Tap of a voxel, and the voxel's (channel group, row, column) in that tap's grid."""
    for tap in taps:
        if voxel < tap.n_voxels:
            _, rows, columns = tap.grid
            return tap, (voxel // (rows * columns), voxel // columns % rows, voxel % columns)
        voxel -= tap.n_voxels
    raise IndexError(voxel)


_WARN, _STALE, _FAIL = HealthState.WARN, HealthState.STALE, HealthState.FAIL
_INACTIVE = FlagStatus.INACTIVE
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
    FlagRow("INPUT_ABNORMAL", "abnormal picture", _FAIL, _evidence("input", _explain_input), 16, 8, 2.0,
            False, 1000, "Brightness or structure of the input lies outside what calibration saw.",
            channel="input"),
    FlagRow("REGION_ABNORMAL", "abnormal regions", _FAIL, _evidence("spatial", _explain_spatial), 16, 8, 2.0,
            False, 1000, "Voxel densities of the layers lie outside what calibration saw (NN-fMRI).",
            channel="spatial"),
    FlagRow("RHYTHM_ABNORMAL", "abnormal rhythm", _WARN, _evidence("temporal", _explain_temporal), 8, 8, 2.0,
            False, 9000, "Band powers of the layers lie outside what calibration saw (NN-EEG).",
            channel="temporal"),
    FlagRow("OUTPUT_ABNORMAL", "unsure output", _WARN, _evidence("output", _explain_output), 8, 8, 2.0,
            False, 3000, "The entropy of the answers stays higher than calibration ever saw.",
            channel="output"),
    FlagRow("PROBE_DETACHED", "probe detached", _WARN, _reported("PROBE_DETACHED"), _ONCE, 8, 0.0, True, 34,
            "The probe met an error of its own and let go; the model serves unwatched."),
    FlagRow("ANSWER_CHANGED", "answers would change", _FAIL, _reported("ANSWER_CHANGED"), _ONCE, 8, 0.0, True,
            34, "The tapped model did not answer as the untapped one; the probe did not attach."),
    FlagRow("SELF_TEST_FAILED", "self-test failed", _FAIL, _reported("SELF_TEST_FAILED"), _ONCE, 8, 0.0, True,
            34, "Golden frames give other activations than recorded: changed weights, delegate or buffers."),
    FlagRow("CONNECTIVITY_ABNORMAL", "abnormal connectivity", _FAIL, _evidence("residual", _explain_residual),
            32, 8, 2.0, False, 1000, "A layer does not follow from the one before it as in calibration: "
            "broken weights, units or buffers, or a picture that is far off.", channel="residual"),
    FlagRow("TRACT_BROKEN", "broken tract", _WARN, _evidence("tracts", _explain_tract), 16, 8, 2.0,
            False, 1000, "A voxel is active and what it drives stays silent.", channel="tracts"),
    FlagRow("INPUT_SHIFTED", "sudden change of the picture", _FAIL, _evidence("shift", _explain_shift), 32, 8,
            4.0, False, 500, "Level, sharpness or noise of the picture leave the last seconds' faster than "
            "any scene.", channel="shift"),
    FlagRow("INPUT_FLICKERS", "flicker", _FAIL, _evidence("line", _explain_line), 32, 8, 4.0, False, 2500,
            "One frequency stands out: flicker, a hunting exposure control, a rolling band.", channel="line"),
    FlagRow("INPUT_STALLED", "stalled scene", _FAIL, _evidence("stall", _explain_stall), 32, 8, 4.0, False,
            1500, "The vehicle drives, the picture has fresh noise, but the scene stands still.",
            channel="stall"),
    FlagRow("CAMERA_MOVED", "camera moved", _FAIL, _evidence("jump", _explain_jump, guess=False), 32, 8, 2.0,
            False, 500, "The same scene is suddenly seen elsewhere in the picture: the camera was knocked.",
            channel="jump"),
    FlagRow("FAULT_RECOGNISED", "recognised fault", _FAIL, _evidence("faults", _explain_fault), 32, 8, 4.0,
            False, 500, "The fault head takes what it sees for a fault that it was trained on.",
            channel="faults"),
    FlagRow("TIME_BACKWARDS", "time runs back", _FAIL, _time_backwards, _ONCE, 4, 0.0, False, 34,
            "A frame carries an earlier capture time than the one before: reordered or repeated buffers."),
    FlagRow("FRAMES_LOST", "lost frames", _WARN, _frames_lost, 56, 1, 2.0, False, 1500,
            "Single frames are missing again and again."),
    FlagRow("VIEWS_DISAGREE", "views disagree", _WARN, _views_disagree, 1, 1, 2.0, False, 9000,
            "NN-EEG and NN-fMRI contradict each other for longer than they ever did in clean driving."),
)
# fmt: on


def _terms(consistency: Consistency | None) -> dict[str, float]:
    """How far the two views agree: it is told with every flag (design D9)."""
    if consistency is None:
        return {}
    c = consistency
    terms = {"consistency": c.score, "rho": c.rho, "agreement": c.agreement, "coherence": c.coherence}
    return {name: term for name, term in terms.items() if term is not None}


def _is_calm(f: Findings) -> bool:
    """Whether no test can fail: by far the most frequent case, told at once.

    tests/test_flags.py::test_calm_findings_fail_no_test keeps it true to the tests.
    """
    v, e, limits = f.vitals, f.evidence, f.limits
    return (
        f.row is not None
        and f.event is None
        and v is not None
        and e is not None
        and not e.largest >= PASS_RATIO
        and v.nonfinite + v.repeated + v.stale + v.missing + v.backwards + v.silence_ns == 0
        and (v.rate_hz is None or v.rate_hz >= 0.8 * limits.rate_hz)
        and f.row.latency_ns <= limits.deadline_ns
        and (
            f.consistency is None
            or f.consistency.agreement is None
            or f.consistency.agreement >= limits.least_agreement
        )
    )


class FlagTracker:
    """Runs the life cycle of every flag of the table.

    Inactive -> pending (counter above 0) -> confirmed (127) -> healed (-128) -> inactive again
    after `AGING_NS`. Pending flags that come down again leave without a transition.

    Attributes
    ----------
    states : tuple of FlagState
        One per row of `FLAGS`.
    confirmed : tuple of int
        Which of them are confirmed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Clear every flag."""
        self.states = tuple(FlagState(row.code, FlagStatus.INACTIVE, COUNTER_PASSED, 0, 0) for row in FLAGS)
        self.confirmed: tuple[int, ...] = ()
        self._released: set[str] = set()
        self._at_rest = True  # every flag is inactive, its counter at the end
        self._told = [(FlagStatus.INACTIVE, -STORAGE_NS)] * len(FLAGS)

    def release(self, code: str) -> None:
        """Let a latched flag heal from the next passed test on; a failed one takes the release back.

        Raises
        ------
        KeyError
            No such flag.
        """
        if code not in {row.code for row in FLAGS}:
            raise KeyError(code)
        self._released.add(code)

    def update(self, frame: int, t_ns: int, findings: Findings) -> tuple[Transition, ...]:
        """Hold every test once and return the transitions to tell; ``states`` is then current."""
        if self._at_rest and _is_calm(findings):
            return ()
        # The stream's own age: played faster or slower, a recording has the same grace period.
        age_s = findings.vitals.age_ns / 1e9 if findings.vitals else 0.0
        transitions: list[Transition] = []
        states = list(self.states)
        moved = False
        for i, row in enumerate(FLAGS):
            verdict = row.test(findings) if age_s >= row.grace_s else UNKNOWN
            before = states[i]
            if not verdict.failed and before.counter == COUNTER_PASSED and before.status is _INACTIVE:
                continue  # nothing wrong and nothing to forget: by far the most frequent case
            states[i] = self._advance(row, before, verdict, findings.consistency, t_ns)
            moved = True
            told = self._tell(i, states[i], frame, t_ns)
            if told is not None:
                transitions.append(told)
        if moved:
            self.states = tuple(states)
            self.confirmed = tuple(i for i, flag in enumerate(states) if flag.status is FlagStatus.CONFIRMED)
            self._at_rest = all(
                flag.counter == COUNTER_PASSED and flag.status is _INACTIVE for flag in states
            )
        return tuple(transitions)

    def _advance(
        self, row: FlagRow, flag: FlagState, verdict: Verdict, consistency: Consistency | None, t_ns: int
    ) -> FlagState:
        """Step one fault counter and derive the status."""
        counter, status = flag.counter, flag.status
        cause, values, occurrences = flag.cause, flag.values, flag.occurrences
        if verdict.failed:
            counter = min(COUNTER_FAILED, max(counter, 0) + row.up)
            if status is not FlagStatus.CONFIRMED:  # what confirmed it stays its cause
                cause, values = verdict.cause, {**_terms(consistency), **verdict.values}
            self._released.discard(row.code)
            if counter == COUNTER_FAILED and status is not FlagStatus.CONFIRMED:
                status, occurrences = FlagStatus.CONFIRMED, occurrences + 1
            elif status is FlagStatus.INACTIVE:
                status = FlagStatus.PENDING
        elif verdict.failed is False:
            if status is FlagStatus.CONFIRMED and row.latched and row.code not in self._released:
                return flag
            counter = max(COUNTER_PASSED, counter - row.down)
            if counter == COUNTER_PASSED:
                if status is FlagStatus.CONFIRMED:
                    status = FlagStatus.HEALED
                elif status is FlagStatus.PENDING:
                    status = FlagStatus.INACTIVE
        healed = flag.status is status is FlagStatus.HEALED
        if healed and counter == COUNTER_PASSED and t_ns - flag.since_ns >= AGING_NS:
            status, cause, values = FlagStatus.INACTIVE, "", {}
        since_ns = flag.since_ns if status is flag.status else t_ns
        return FlagState(row.code, status, counter, occurrences, since_ns, cause, values)

    def _tell(self, i: int, flag: FlagState, frame: int, t_ns: int) -> Transition | None:
        """Transition to report, unless the flag flutters: a new pair waits for `STORAGE_NS`."""
        before, opened_ns = self._told[i]
        status = before if flag.status is FlagStatus.PENDING else flag.status
        opens = status is FlagStatus.CONFIRMED
        if status is before or (opens and t_ns - opened_ns < STORAGE_NS):
            return None
        self._told[i] = (status, t_ns if opens else opened_ns)
        return Transition(frame, t_ns, flag.code, before.value, status.value, flag.cause, flag.values)
