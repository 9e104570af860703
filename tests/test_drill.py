"""The drill: what counts as detected, how soon, and how it is told."""

import io
import json
import re

import msgspec
import numpy as np
import pytest
from chromium import measured, screenshot
from PIL import Image
from rich.console import Console
from small_world import RATE_HZ, injector, region_map, scene
from test_report import parsed

from edge_monitor.errors import InputError
from edge_monitor.offline import drill as module
from edge_monitor.offline.drill import (
    UNBROKEN,
    Case,
    Outcome,
    all_cases,
    broken_rows,
    choose_cases,
    drill,
    judge,
)
from edge_monitor.offline.drill_table import cells, describe_drill, headers, remarks, summarize
from edge_monitor.offline.faults import EXTRAS, FAULTS
from edge_monitor.offline.injection import fork, warm
from edge_monitor.offline.page import to_html, write_page
from edge_monitor.offline.report_drill import drill_page
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import RegionMap


def no_evidence(known: RegionMap) -> RegionMap:
    """The same map without thresholds: only exact flags can be raised."""
    threshold = np.full_like(known.evidence.threshold, np.nan)
    return msgspec.structs.replace(
        known, evidence=msgspec.structs.replace(known.evidence, threshold=threshold)
    )


@pytest.fixture(scope="module")
def silent_map():
    return no_evidence(region_map())


@pytest.fixture(scope="module")
def warm_monitor(silent_map):
    monitor = Monitor(silent_map)
    warm(monitor, scene())
    return monitor


@pytest.fixture(scope="module")
def clean():
    return injector().rows(scene(), [])


def outcomes(known, cases, scenes=None, seed=0, skipped=lambda _case, _why: None):
    return list(drill(injector(), known, scenes or [scene()], cases, seed, skipped=skipped))


def with_nan(rows, *places):
    """Rows some of which hold a NaN."""
    bad = np.array([0, 1] + [0] * (len(rows[0].nonfinite) - 2))
    return [msgspec.structs.replace(row, nonfinite=bad) if i in places else row for i, row in enumerate(rows)]


CASE = Case("NaN/Inf", 1.0)


@pytest.mark.parametrize("place", [0, 1, 14, 299])
def test_delay_counts_frames_from_the_onset_and_that_one_too(warm_monitor, clean, place):
    outcome = judge(fork(warm_monitor), CASE, 0, clean, with_nan(clean, place))
    assert (outcome.delay, outcome.flag, outcome.named) == (place + 1, "NON_FINITE", "NaN/Inf")
    assert outcome.within(0.5, RATE_HZ) == (place < 15)
    assert not outcome.standing


def test_an_alarm_that_stands_before_the_onset_is_a_miss(warm_monitor, clean):
    monitor = fork(warm_monitor)
    monitor.step(with_nan(clean, 0)[0])  # latched
    rows = [msgspec.structs.replace(row, fingerprint=7) for row in clean[1:]]  # frozen from here on
    outcome = judge(fork(monitor), Case("frozen exact", 1.0), 0, clean[1:], rows)
    assert outcome.standing
    assert outcome.delay is None
    assert outcome.flag is None
    assert not outcome.within(3.0, RATE_HZ)


def test_a_flag_that_the_scene_raises_by_itself_counts_for_nothing_from_then_on(warm_monitor, clean):
    rows = with_nan(clean, 100)
    assert judge(fork(warm_monitor), CASE, 0, clean, rows, {"NON_FINITE": rows[100].frame}).delay is None
    assert judge(fork(warm_monitor), CASE, 0, clean, rows, {"NON_FINITE": rows[101].frame}).delay == 101
    assert judge(fork(warm_monitor), CASE, 0, clean, rows, {"INPUT_FROZEN": 0}).delay == 101


def test_a_drill_finds_out_by_itself_what_the_scene_raises(silent_map, clean, monkeypatch):
    """A scene with a NaN of its own at frame 50: what is put in before it counts, and nothing behind it."""
    own = with_nan(clean, 50)
    monkeypatch.setattr(type(injector()), "rows", lambda self, on, injections: own)
    late = [msgspec.structs.replace(row, fingerprint=7) if i > 200 else row for i, row in enumerate(own)]
    monkeypatch.setattr(module, "broken_rows", lambda *_, **__: late)
    unbroken, frozen = outcomes(silent_map, [Case(UNBROKEN, 0.0), Case("frozen exact", 1.0)])
    assert (unbroken.delay, unbroken.flag) == (51, "NON_FINITE")
    assert frozen.flag == "INPUT_FROZEN"
    assert frozen.delay == 204  # frames 202 and 203 repeat frame 201, the first of which is 0


def test_a_flag_that_flutters_is_seen_although_it_is_not_told_again(silent_map, clean):
    """Confirmed, healed and confirmed again within ten seconds: transitions say nothing of the second."""
    monitor = Monitor(silent_map)
    warm(monitor, scene())
    frozen = [msgspec.structs.replace(row, fingerprint=7) for row in clean[:5]]
    for row in [*frozen, *clean[5:60]]:
        monitor.step(row)
    rest = [
        msgspec.structs.replace(row, fingerprint=9) if i >= 10 else row for i, row in enumerate(clean[60:])
    ]
    told = [t for row in rest for t in fork(monitor).step(row).transitions]
    assert not any(t.code == "INPUT_FROZEN" for t in told)
    assert judge(monitor, CASE, 0, clean[60:], rest).delay == 13


def test_impact_is_the_share_of_decisions_changed_frame_by_frame(warm_monitor, clean):
    other = msgspec.structs.replace(clean[0].output, top1=99)
    rows = [msgspec.structs.replace(row, output=other) if i < 30 else row for i, row in enumerate(clean)]
    outcome = judge(fork(warm_monitor), CASE, 0, clean, rows)
    assert outcome.impact == pytest.approx(0.1)
    assert outcome.impacting
    assert (
        judge(fork(warm_monitor), CASE, 0, clean, rows[::-1][:270][::-1]).impact == 0.0
    )  # the first 30 lost
    assert judge(fork(warm_monitor), CASE, 0, clean, []).impact == 0.0


@pytest.mark.parametrize(
    ("speeds", "moving"),
    [([12.0, 12.0], True), ([12.0, 4.0], False), ([None, None], None), ([None, 9.0], True)],
)
def test_moving_is_driving_throughout(warm_monitor, clean, speeds, moving):
    rows = [
        msgspec.structs.replace(row, context={} if speed is None else {"speed_mps": speed})
        for row, speed in zip(clean, speeds, strict=False)
    ]
    assert judge(fork(warm_monitor), CASE, 0, clean, rows).moving is moving


@pytest.mark.parametrize(
    ("fault", "severity", "flag"),
    [
        ("frozen exact", 2.0, "INPUT_FROZEN"),
        ("NaN/Inf", 1.0, "NON_FINITE"),
        ("frame reorder", 3.0, "TIME_BACKWARDS"),
        ("dropped frames", 3.0, "FRAMES_LOST"),
    ],
)
def test_an_exact_flag_names_its_fault(silent_map, fault, severity, flag):
    (outcome,) = outcomes(silent_map, [Case(fault, severity)])
    assert (outcome.flag, outcome.named, outcome.named_at_once) == (flag, fault, fault)


def test_the_original_monitor_and_the_scene_stay_as_they_are(warm_monitor, clean):
    before = (warm_monitor.report.frame, scene().frames.copy(), [row.frame for row in scene().rows])
    judge(fork(warm_monitor), CASE, 0, clean, with_nan(clean, 3))
    broken_rows(injector(), scene(), Case("fog", 3.0), seed=0)
    assert warm_monitor.report.frame == before[0]
    np.testing.assert_array_equal(scene().frames, before[1])
    assert [row.frame for row in scene().rows] == before[2]


SOME = choose_cases(["gaussian noise", "dead channels", "frame reorder"], [1.0, 3.0])


def test_a_drill_is_the_same_for_the_same_seed_and_whatever_else_is_drilled():
    first = outcomes(region_map(), SOME, seed=4)
    assert outcomes(region_map(), SOME, seed=4) == first
    alone = [case for case in SOME if case.fault == "dead channels"]
    assert outcomes(region_map(), alone, seed=4) == [o for o in first if o.fault == "dead channels"]
    assert outcomes(region_map(), SOME, seed=5) != first
    with pytest.raises(InputError, match="seed: -1 is below 0"):
        outcomes(region_map(), SOME, seed=-1)


def test_a_ramp_starts_at_nothing_and_ends_at_full_strength():
    sudden, grown = (
        broken_rows(injector(), scene(), Case("blackout", 3.0, ramp=r), seed=1) for r in (False, True)
    )
    clean = injector().rows(scene(), [])
    assert grown[0].signals[0] == pytest.approx(clean[0].signals[0], rel=0.01)
    assert grown[-1].signals[0] == pytest.approx(sudden[-1].signals[0], rel=0.01)


def test_all_cases_are_every_fault_thrice_and_ramps_of_the_gradual_ones():
    cases = all_cases()
    names = [fault.name for fault in (*FAULTS, *EXTRAS)]
    assert len(cases) == len(set(cases)) == 28 * 3 + sum(fault.gradual for fault in FAULTS)
    assert {case.fault for case in cases} == set(names)
    assert {case.severity for case in cases if not case.ramp} == {1.0, 2.0, 3.0}
    assert choose_cases(["fog"], [2.0, 2.0], ramps=False) == [Case("fog", 2.0)]
    assert choose_cases(["NaN/Inf", "NaN/Inf"], [0.0]) == [Case("NaN/Inf", 0.0)]


@pytest.mark.parametrize(
    ("faults", "severities", "words"),
    [
        (["rust"], [1.0], "'rust' is none of frozen exact, .*dropped frames"),
        ([], [3.5], "severity: 3.5 is not in 0 ... 3"),
        ([], [-1.0], "severity: -1 is not in"),
        ([], [float("nan")], "severity: nan is not in"),
    ],
)
def test_cases_that_do_not_exist(faults, severities, words):
    with pytest.raises(InputError, match=words):
        choose_cases(faults, severities)


def test_what_cannot_be_put_in_is_told_scene_by_scene_and_the_rest_goes_on(silent_map):
    file = msgspec.structs.replace(scene(), again=None)
    told, progress = [], []
    cases = [Case("true freeze", 1.0), Case("NaN/Inf", 1.0)]
    found = list(
        drill(
            injector(), silent_map, [file, scene()], cases, 0,
            lambda *state: progress.append(state), lambda case, why: told.append((case.fault, why)),
        )
    )  # fmt: skip
    assert [(o.fault, o.scene) for o in found] == [("NaN/Inf", 0), ("true freeze", 1), ("NaN/Inf", 1)]
    assert told == [
        ("true freeze", "true freeze: needs a source that can show a scene again with fresh noise")
    ]
    assert progress[0] == ("drill", 0, 4)
    assert progress[-1] == ("drill", 4, 4)


# --- the table -----------------------------------------------------------------------------------


def outcome(fault="fog", severity=1.0, delay=10, **changes):
    values = {
        "ramp": False, "scene": 0, "impact": 0.5, "moving": True, "standing": False,
        "flag": None if delay is None else "INPUT_SHIFTED", "named": fault, "named_second": None,
        "named_at_once": fault, "agreement": 0.9, "consistency": 0.1,
    }  # fmt: skip
    return Outcome(fault=fault, severity=severity, delay=delay, **values | changes)


def summary(*found, skipped=()):
    return summarize(region_map(), "frames/", found, skipped, seed=7)


def test_a_line_counts_what_was_found_in_time():
    line = summary(
        outcome(delay=15), outcome(delay=16, named="defocus"), outcome(delay=90, impact=0.1),
        outcome(delay=91, flag="INPUT_FLICKERS"), outcome(delay=None, impact=0.9, standing=True),
    ).lines[0]  # fmt: skip
    assert (line.scenes, line.within, line.found) == (5, (1, 2, 3), 4)
    assert line.median_delay == 53.0
    assert (line.flag, line.named, line.alarmed_before) == ("INPUT_SHIFTED", 3, 1)
    assert line.impact == pytest.approx(0.5)
    assert dict(zip(headers(), cells(line), strict=True)) == {
        "fault": "fog", "sev.": "1", "0.5 s": "1/5", "1 s": "2/5", "3 s": "3/5", "end": "4/5",
        "delay": "53", "flag": "INPUT_SHIFTED", "named": "3/4", "impact": "50%",
    }  # fmt: skip


def test_a_true_freeze_counts_moving_scenes_only_and_standing_ones_apart():
    drilled = summary(
        outcome("true freeze", delay=30),
        outcome("true freeze", delay=None, moving=False),
        outcome("true freeze", delay=None, moving=None),
        outcome("frozen with noise", delay=None, moving=False),
    )
    freeze, noisy = drilled.lines
    assert (freeze.scenes, freeze.left_standing, freeze.found) == (2, 1, 1)
    assert (noisy.scenes, noisy.left_standing) == (1, 0)
    assert any("1 scenes not counted" in remark and "in principle" in remark for remark in remarks(drilled))


def test_only_standing_scenes_leave_dashes():
    line = summary(outcome("true freeze", delay=None, moving=False)).lines[0]
    assert line.impact is None
    assert set(cells(line)[2:]) == {"–"}


def test_a_fault_may_go_by_the_name_of_another():
    for told, right in (("frozen with noise", 1), ("true freeze", 0)):
        assert summary(outcome("true freeze", named=told)).lines[0].named == right


def test_a_fault_that_nobody_can_name_is_not_named_wrong():
    assert summary(outcome("stutter", named="true freeze")).lines[0].named is None
    assert summary(outcome("frame reorder", named="fog")).lines[0].named == 0


def test_ramps_have_lines_of_their_own_behind_the_sudden_ones():
    drilled = summary(
        outcome("fog"), outcome("defocus"), outcome("fog", 3.0, ramp=True, delay=200), outcome("fog", 3.0)
    )
    assert [(line.fault, line.severity, line.ramp) for line in drilled.lines] == [
        ("fog", 1.0, False), ("fog", 3.0, False), ("fog", 3.0, True), ("defocus", 1.0, False),
    ]  # fmt: skip
    assert cells(drilled.lines[2])[1:7] == ("ramp", "–", "–", "–", "1/1", "200")


def test_the_last_remark_counts_false_alarms():
    drilled = summary(
        outcome(UNBROKEN, 0.0, delay=None),
        outcome(UNBROKEN, 0.0, delay=7, scene=1),
        outcome(UNBROKEN, 0.0, delay=None, scene=2, standing=True),
        outcome("fog"),
        skipped=[(Case("channel swap", 1.0), "needs two channels")] * 2,
    )
    told = list(remarks(drilled))
    assert told[0] == "channel swap: left out of 2 cases: needs two channels"
    assert told[-1] == "unbroken, 2 of 3 scenes raised a flag (INPUT_SHIFTED) in 0.5 minutes"
    assert [line.fault for line in drilled.lines] == ["fog"]
    assert drilled.unbroken.alarmed == 2


def test_the_terminal_shows_every_number_at_80_columns():
    drilled = summary(outcome(), outcome("wrong normalisation", 2.0, flag="CONNECTIVITY_ABNORMAL"))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(describe_drill(drilled))
    text = console.export_text()
    assert "wrong normalisation" in text
    assert "…" not in text
    assert "1/1" in text


def test_json_holds_the_numbers_and_every_outcome():
    drilled = summary(outcome(), outcome(delay=None, scene=1))
    back = json.loads(msgspec.json.encode(drilled))
    assert back["lines"][0]["within"] == [1, 1, 1]
    assert back["within_s"] == [0.5, 1.0, 3.0]
    assert [o["delay"] for o in back["outcomes"]] == [10, None]
    assert (back["source"], back["seed"]) == ("frames/", 7)


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drilled(silent_map):
    faults = ["blackout", "NaN/Inf", "true freeze", "dropped frames"]
    cases = [Case(UNBROKEN, 0.0), *choose_cases(faults, [1.0, 3.0])]
    return summarize(silent_map, "frames/", outcomes(silent_map, cases, [scene(), scene()]))


def test_the_page_says_what_the_table_says(drilled):
    page = parsed(to_html(drill_page(drilled)))
    rows = page.tables["drill"]
    assert rows[0] == list(headers())
    assert rows[1:] == [list(cells(line)) for line in drilled.lines]
    detected = page.data["detection.csv"][1:]
    assert [row[:2] for row in detected] == [list(cells(line)[:2]) for line in drilled.lines]
    frames = [int(row[4]) for row in page.data["delay.csv"][1:]]
    assert frames == [o.delay for o in drilled.outcomes if o.delay is not None and o.fault != UNBROKEN]
    assert "unbroken, " in page.text
    stood_for = {row[0]: row[2] for row in page.tables["faults"][1:]}
    assert stood_for == {f.name: f.text for f in (*FAULTS, *EXTRAS) if f.name in stood_for}
    assert set(stood_for) == {"blackout", "NaN/Inf", "true freeze", "dropped frames"}
    assert to_html(drill_page(drilled)) == to_html(drill_page(drilled))


def test_the_verdict_counts_sudden_faults_with_impact():
    found = [outcome(delay=5), outcome(delay=95), outcome(delay=5, impact=0.0), outcome(ramp=True, delay=1)]
    page = drill_page(summary(*found))
    assert page.verdict == (
        "Within 3 s the monitor found 67% of 3 sudden faults, and 50% of the 2 that changed at least 10% of "
        "the decisions."
    )
    assert page.level == "warn"
    assert drill_page(summary(outcome(delay=5))).level == "calm"
    assert "none of which" in drill_page(summary(outcome(impact=0.0))).verdict


def test_a_page_without_anything_found_or_drilled_can_be_drawn():
    assert "Nothing was detected." in to_html(drill_page(summary(outcome(delay=None))))
    assert "No fault was put in." in to_html(drill_page(summary()))


def test_a_browser_draws_the_page(drilled, tmp_path):
    page = tmp_path / "drill.html"
    write_page(drill_page(drilled), page)
    text = page.read_text()
    assert not parsed(page).tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\((?!#)", text)
    script = """
      for (const figure of document.querySelectorAll("figure svg")) {
        const box = figure.getBoundingClientRect();
        const drawn = figure.querySelectorAll("path, text").length;
        document.body.append(`SIZE ${box.width} ${box.height} ${drawn};`);
      }
      document.body.append(`WIDE ${document.documentElement.scrollWidth - innerWidth};`);
    """
    dom = measured(page, script)
    sizes = np.array(re.findall(r"SIZE ([\d.]+) ([\d.]+) (\d+);", dom), float)
    assert len(sizes) == 2
    assert (sizes > [600, 60, 20]).all()
    assert int(re.search(r"WIDE (-?\d+);", dom)[1]) <= 0
    image = np.asarray(Image.open(screenshot(page, tmp_path / "page.png")).convert("RGB"))
    assert (image < 250).any(axis=2).mean() > 0.02
    assert len(np.unique(image[::3, ::3].reshape(-1, 3), axis=0)) > 100
    red, green, blue = np.moveaxis(image[:1500, :850].astype(int), 2, 0)
    assert ((red > 200) & (green > 200) & (blue < 120)).sum() > 1000  # always found, not hatched
