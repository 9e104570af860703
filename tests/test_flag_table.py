"""The table of flags: what raises each row, how fast, and what it says."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flag_drive import (
    CLEAN,
    CODES,
    INACTIVE,
    LIMITS,
    PENDING,
    PERIOD_NS,
    RAISERS,
    SECOND,
    TAPS,
    Drive,
    agreeing,
    frame,
    tick,
    told,
)
from hypothesis import given
from hypothesis import strategies as st

import edge_monitor
from edge_monitor.findings import Findings
from edge_monitor.flag_causes import locate
from edge_monitor.flag_table import FLAGS, is_calm
from edge_monitor.reports import (
    CHANNELS,
    BandPowers,
    Connectivity,
    FaultGuess,
    HealthState,
    RegionScores,
)
from edge_monitor.types import BANDS, TapSpec


def test_codes_are_unique_and_fit_the_health_page():
    assert len(set(CODES)) == len(CODES) <= 64
    for code in CODES:
        assert re.fullmatch(r"[A-Z][A-Z_]{2,31}", code)


@pytest.mark.parametrize("row", FLAGS, ids=CODES)
def test_a_row_is_sane(row):
    assert row.name
    assert row.name == row.name.lower()
    assert row.text[0].isupper()
    assert row.text.endswith(".")
    assert row.severity in {HealthState.WARN, HealthState.STALE, HealthState.FAIL}
    assert 1 <= row.up <= 255
    assert 1 <= row.down <= 255
    assert row.grace_s >= 0
    assert row.budget_ms > 0


def test_every_row_can_be_raised_and_nothing_else_is():
    assert RAISERS.keys() == set(CODES)


@pytest.mark.parametrize("row", FLAGS, ids=CODES)
def test_a_row_is_raised_alone_within_its_budget_and_says_why(row):
    drive = Drive()
    frames = 0
    while not drive.standing():
        drive.feed(RAISERS[row.code])
        frames += 1
    assert drive.standing() == {row.code}
    assert frames * PERIOD_NS <= row.budget_ms * 1e6
    assert drive.flag(row.code).cause
    assert all(isinstance(value, float) for value in drive.flag(row.code).values.values())
    assert drive.story[-1][1:] == (row.code, "inactive", "confirmed")


def test_every_event_of_the_probe_has_a_row():
    files = Path(edge_monitor.__file__).parent.glob("*.py")
    found = (re.findall(r'_emit\(\s*"(\w+)"', file.read_text(encoding="utf-8")) for file in files)
    emitted = {code for codes in found for code in codes}
    assert {"PROBE_DETACHED", "ANSWER_CHANGED", "SELF_TEST_FAILED"} <= emitted <= set(CODES)


def test_clean_frames_raise_nothing():
    drive = Drive(past_grace=False).feed(CLEAN, 300)
    assert drive.story == []
    assert {flag.status for flag in drive.tracker.states} == {INACTIVE}


# Tests of single rows.


def test_two_repeats_confirm_a_frozen_input():
    drive = Drive().feed(frame(repeated=1))
    assert drive.flag("INPUT_FROZEN").status is PENDING
    assert drive.feed(frame(repeated=2)).standing() == {"INPUT_FROZEN"}


def test_a_source_that_repeats_by_nature_is_never_frozen():
    limits = msgspec.structs.replace(LIMITS, repeats_by_nature=True)
    assert Drive().feed(frame(repeated=9, limits=limits), 300).standing() == set()


def test_a_repeated_input_says_nothing_about_activations():
    drive = Drive().feed(frame(stale=1)).feed(frame(repeated=1, stale=1), 5)
    assert drive.flag("ACTIVATIONS_STALE").counter == 64


@pytest.mark.parametrize(
    ("findings", "code", "failed"),
    [
        (frame(rate_hz=24.0), "RATE_LOW", False),
        (frame(rate_hz=23.9), "RATE_LOW", True),
        (frame(rate_hz=None), "RATE_LOW", None),
        (frame(latency_ns=33_000_000), "LATENCY_HIGH", False),
        (frame(latency_ns=33_000_001), "LATENCY_HIGH", True),
        (tick(silence_ns=SECOND // 2), "NO_FRAMES", None),
        (tick(silence_ns=SECOND // 2 + 1), "NO_FRAMES", True),
        (CLEAN, "NO_FRAMES", False),
        (frame(ratios={"input": 0.79}), "INPUT_ABNORMAL", False),
        (frame(ratios={"input": 0.8}), "INPUT_ABNORMAL", None),
        (frame(ratios={"input": 0.99}), "INPUT_ABNORMAL", None),
        (frame(ratios={"input": 1.0}), "INPUT_ABNORMAL", True),
        (frame(ratios={"input": np.inf}), "INPUT_ABNORMAL", True),
        (frame(ratios={"input": np.nan}), "INPUT_ABNORMAL", None),
        (CLEAN, "TIME_BACKWARDS", False),
        (tick(), "TIME_BACKWARDS", None),
        (CLEAN, "FRAMES_LOST", False),
        (tick(), "FRAMES_LOST", None),
        (frame(views=agreeing(0.7)), "VIEWS_DISAGREE", False),
        (frame(views=agreeing(0.69)), "VIEWS_DISAGREE", True),
        (frame(views=agreeing(None)), "VIEWS_DISAGREE", None),
        (CLEAN, "VIEWS_DISAGREE", None),
        (told("ANSWER_CHANGED"), "PROBE_DETACHED", None),
        (CLEAN, "PROBE_DETACHED", False),
    ],
)
def test_a_verdict(findings, code, failed):
    assert FLAGS[CODES.index(code)].test(findings).failed is failed


@pytest.mark.parametrize("row", FLAGS, ids=CODES)
def test_without_frames_or_findings_nothing_is_learned(row):
    assert row.test(Findings(LIMITS, TAPS, None)).failed is None


CALM = frame(views=agreeing(0.9))


@pytest.mark.parametrize("row", FLAGS, ids=CODES)
def test_what_raises_a_flag_is_not_calm(row):
    assert is_calm(CALM)
    assert not is_calm(RAISERS[row.code])


@pytest.mark.parametrize(
    "findings",
    [
        *(frame(ratios={channel: 1.0}) for channel in CHANNELS),
        frame(rate_hz=23.9),
        frame(latency_ns=33_000_001),
        frame(views=agreeing(0.69)),
    ],
)
def test_what_barely_fails_a_test_is_not_calm(findings):
    assert sum(bool(row.test(findings).failed) for row in FLAGS) == 1
    assert not is_calm(findings)


@given(
    st.builds(
        frame,
        tap_nonfinite=st.integers(0, 1),
        latency_ns=st.sampled_from([5_000_000, 33_000_000, 33_000_001]),
        ratios=st.dictionaries(st.sampled_from(CHANNELS), st.sampled_from([0.5, 0.8, 1.0, np.nan, np.inf])),
        views=st.sampled_from([None, agreeing(0.9), agreeing(0.6), agreeing(None)]),
        nonfinite=st.integers(0, 1),
        repeated=st.integers(0, 1),
        stale=st.integers(0, 1),
        missing=st.integers(0, 1),
        backwards=st.booleans(),
        rate_hz=st.sampled_from([None, 30.0, 24.0, 23.9]),
        silence_ns=st.sampled_from([0, SECOND]),
    ),
    st.sampled_from([None, *(RAISERS[code].event for code in ("PROBE_DETACHED", "SELF_TEST_FAILED"))]),
)
def test_calm_findings_fail_no_test(findings, event):
    """Findings that are told at once to be calm must be so to every test of the table."""
    findings = msgspec.structs.replace(findings, event=event)
    if is_calm(findings):
        assert not any(row.test(findings).failed for row in FLAGS)


def test_a_frame_taken_before_its_predecessor_is_confirmed_at_once_and_heals():
    drive = Drive(past_grace=False).feed(CLEAN, 5).feed(RAISERS["TIME_BACKWARDS"])
    assert drive.standing() == {"TIME_BACKWARDS"}
    assert drive.feed(CLEAN, 64).standing() == set()


def test_frames_are_lost_at_the_fourth_time_within_a_hundred_frames():
    drive = Drive()
    for _ in range(3):
        assert drive.feed(frame(missing=2)).feed(CLEAN, 32).standing() == set()
    assert drive.feed(frame(missing=1)).standing() == {"FRAMES_LOST"}


def test_frames_that_are_missing_now_and_then_are_no_fault():
    drive = Drive()
    for _ in range(10):
        drive.feed(RAISERS["FRAMES_LOST"]).feed(CLEAN, 60)
    assert drive.story == []


def test_views_may_disagree_for_a_while():
    """As long as their window is: one event that only one of them sees is no contradiction."""
    apart = RAISERS["VIEWS_DISAGREE"]
    assert Drive().feed(apart, 126).feed(CALM, 300).story == []
    assert Drive().feed(apart, 127).standing() == {"VIEWS_DISAGREE"}
    drive = Drive().feed(apart, 100).feed(CALM, 50).feed(apart, 76)
    assert drive.standing() == set()
    drive.feed(apart)
    values = drive.flag("VIEWS_DISAGREE").values
    assert (values["agreement"], values["least_clean"]) == (0.6, 0.7)


OF_EVIDENCE = {
    code: channel
    for channel in CHANNELS
    for code in CODES
    if RAISERS[code].evidence is not None and RAISERS[code].evidence.ratio[CHANNELS.index(channel)] > 1
}


def test_every_channel_has_a_flag():
    assert sorted(OF_EVIDENCE.values()) == sorted(CHANNELS)


@pytest.mark.parametrize(("code", "channel"), OF_EVIDENCE.items())
def test_an_alarm_tells_how_far_the_views_agree(code, channel):
    """Terms that are valid, next to the numbers that raised it."""
    flag = Drive().feed(frame(ratios={channel: 2.0}, views=agreeing(0.9)), 20).flag(code)
    numbers = {"ratio": 2.0, "surprise": 20.0, "score": 6.0}
    assert flag.values == numbers | {"consistency": 0.5, "rho": 0.25, "agreement": 0.9}
    assert Drive().feed(frame(ratios={channel: 2.0}), 20).flag(code).values == numbers


@pytest.mark.parametrize(
    ("guess", "words"),
    [
        (None, ""),
        (FaultGuess(None, None, 0.0, None), ""),
        (FaultGuess(3.0, "blur", 0.874, "snow"), "; looks like blur (87%)"),
        (FaultGuess(3.0, None, 0.4, "snow"), "; fault unknown"),
        (FaultGuess(-0.1, "blur", 0.9, "snow"), "; fault unknown"),
    ],
)
@pytest.mark.parametrize(("code", "channel"), OF_EVIDENCE.items())
def test_a_cause_names_the_likely_fault(code, channel, guess, words):
    found = FLAGS[CODES.index(code)].test(frame(ratios={channel: 2.0}, views={"guess": guess}))
    plain = FLAGS[CODES.index(code)].test(frame(ratios={channel: 2.0}))
    assert plain.cause
    # A camera that moved is no matter of likelihood.
    assert found.cause == plain.cause + ("" if code == "CAMERA_MOVED" else words)
    frozen = frame(ratios={channel: 2.0}, views={"guess": guess}, repeated=1)
    assert FLAGS[CODES.index(code)].test(frozen).cause == plain.cause


def test_silence_comes_and_goes_at_once():
    drive = Drive().feed(tick(silence_ns=SECOND)).feed(tick(silence_ns=2 * SECOND))
    assert drive.standing() == {"NO_FRAMES"}
    assert drive.flag("NO_FRAMES").values == {"silence_s": 1.0}
    assert drive.feed(CLEAN).standing() == set()
    assert [step[2:] for step in drive.story] == [("inactive", "confirmed"), ("confirmed", "healed")]


def abnormal(channel, **views):
    return frame(ratios={channel: 2.0}, views=views)


def regions(worst, z_worst):
    z = np.zeros(12 + 8)
    z[worst], z[0] = z_worst, np.nan
    return RegionScores(z, z, np.zeros(2), worst, None, None, None, None)


def bands(tap, band):
    z = np.full((2, 5), np.nan)
    z[0, 0], z[tap, BANDS.index(band)] = 1.0, -7.0
    line = np.array([np.nan, 2.0])
    return BandPowers(z, z, np.zeros(2, np.int64), np.zeros(2, np.int64), 1.0, line, 2.0, np.zeros((2, 5)))


BROKEN = "CONNECTIVITY_ABNORMAL"


def broken(root, picture=0.1):
    alarming = np.zeros(12 + 8, bool)
    alarming[[root, -1, -2]] = True
    under = alarming & (np.arange(20) != root)
    return Connectivity(
        residual=np.array([picture, 3.0]),
        departure=np.zeros(27),
        shift=np.zeros(16),
        tract_z=np.zeros(96),
        alarming=alarming,
        under=under,
        root=root,
        weakest=(3, 19),
        residual_score=3.0,
        shift_score=0.0,
        tract_score=5.0,
    )


@pytest.mark.parametrize(
    ("code", "findings", "words"),
    [
        ("NON_FINITE", RAISERS["NON_FINITE"], "NaN or Inf in relu_1"),
        ("NON_FINITE", frame(nonfinite=3), "NaN or Inf in output"),
        ("INPUT_ABNORMAL", abnormal("input"), "the picture is unusual"),
        ("INPUT_ABNORMAL", abnormal("input", regions=regions(3, -9.0)), "level is lower than"),
        ("INPUT_ABNORMAL", abnormal("input", regions=regions(3, 9.0)), "level is higher than"),
        ("REGION_ABNORMAL", abnormal("spatial"), "layer densities are unusual"),
        ("REGION_ABNORMAL", abnormal("spatial", regions=regions(17, 9.0)), "density of relu_1 [1, 0, 1]"),
        ("RHYTHM_ABNORMAL", abnormal("temporal"), "band powers are unusual"),
        ("RHYTHM_ABNORMAL", abnormal("temporal", bands=bands(1, "gamma")), "gamma power of relu_1"),
        ("OUTPUT_ABNORMAL", abnormal("output"), "the model is unsure"),
        ("OUTPUT_ABNORMAL", frame(ratios={"output": 2.0}, entropy=1.25), "entropy 1.25 nats"),
        (BROKEN, abnormal("residual"), "a layer does not follow from the one before it"),
        (BROKEN, abnormal("residual", connectivity=broken(17)), "relu_1 [1, 0, 1] does not follow"),
        (
            BROKEN,
            abnormal("residual", connectivity=broken(17)),
            "drives it; alarms of later layers under it: 2",
        ),
        (BROKEN, abnormal("residual", connectivity=broken(17, 1.0)), "; the picture is out of its range"),
        ("TRACT_BROKEN", abnormal("tracts"), "a tract carries less than it should"),
        ("TRACT_BROKEN", abnormal("tracts", connectivity=broken(17)), "hardly drives relu_1 [1, 1, 1]"),
        ("INPUT_FLICKERS", abnormal("line"), "a layer's level swings at one frequency"),
        ("INPUT_FLICKERS", abnormal("line", bands=bands(1, "gamma")), "level of relu_1 swings at one"),
        ("INPUT_SHIFTED", abnormal("shift"), "the picture changes more than"),
        ("INPUT_STALLED", abnormal("stall"), "the scene stands still"),
        ("CAMERA_MOVED", abnormal("jump"), "displaced from one frame to the next"),
        ("FAULT_RECOGNISED", abnormal("faults"), "all findings together"),
        ("ROWS_DEAD", RAISERS["ROWS_DEAD"], "2 rows of the picture carry nothing"),
        ("TIME_BACKWARDS", RAISERS["TIME_BACKWARDS"], "taken before"),
        ("FRAMES_LOST", RAISERS["FRAMES_LOST"], "missing again and again"),
        ("VIEWS_DISAGREE", RAISERS["VIEWS_DISAGREE"], "contradict each other"),
        ("PROBE_DETACHED", RAISERS["PROBE_DETACHED"], "detail of PROBE_DETACHED"),
    ],
)
def test_a_cause_says_what_and_where(code, findings, words):
    verdict = FLAGS[CODES.index(code)].test(findings)
    assert verdict.failed
    assert words in verdict.cause


def test_locate_names_every_voxel_once():
    taps = (TapSpec("a", (3, 8, 8), (3, 2, 4)), TapSpec("b", (8, 8, 8), (2, 5, 3)))
    expected = [(tap, place) for tap in taps for place in itertools.product(*map(range, tap.grid))]
    assert [locate(taps, voxel) for voxel in range(24 + 30)] == expected
    with pytest.raises(IndexError):
        locate(taps, 54)


@pytest.mark.parametrize(("dead", "failed"), [(None, None), (0, False), (1, False), (2, True)])
def test_rows_are_dead_when_more_of_them_carry_nothing_than_in_any_clean_picture(dead, failed):
    verdict = FLAGS[CODES.index("ROWS_DEAD")].test(frame(dead_rows=dead))
    assert verdict.failed is failed
    if failed:
        assert verdict.values == {"dead_rows": 2.0, "most_clean": 1.0}
