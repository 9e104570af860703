"""Monitor.step from end to end, on rows made by hand."""

import models
import msgspec
import numpy as np
import pytest
from maps import minimal_map

from edge_monitor.config import MonitorSettings
from edge_monitor.digest import report_digest
from edge_monitor.errors import InputError
from edge_monitor.fault_head import n_inputs
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import FaultHead
from edge_monitor.reports import CHANNELS, FlagStatus, HealthState
from edge_monitor.types import OutputSummary, ProbeEvent, SpatialBlock, StatRow, Tick

RATE_HZ = 30.0
PERIOD_NS = int(1e9 / RATE_HZ)
WARM = 256
"""Frames until the longest EEG window is full."""


@pytest.fixture(scope="module")
def region_map():
    return minimal_map(models.cnn())


def make_rows(region_map, n, seed=0, first=0):
    """Return clean, noisy rows, each with an input of its own."""
    rng = np.random.default_rng(seed)
    n_taps = len(region_map.taps)
    counts = np.concatenate([tap.voxel_counts() for tap in region_map.taps])
    n_channels = sum(tap.n_channels for tap in region_map.taps)
    rows = []
    for i in range(first, first + n):
        level = rng.uniform(0.5, 1.5, counts.size)
        voxels = np.stack([level, level, 1.3 * level**2], axis=1) * counts[:, None]
        rows.append(
            StatRow(
                frame=i,
                t_ns=(i + 1) * PERIOD_NS,
                latency_ns=1_000_000,
                signals=rng.uniform(0.5, 1.5, n_taps),
                nonfinite=np.zeros(n_taps, np.int64),
                fingerprint=i + 1,
                spatial=SpatialBlock(1, np.ones(n_taps, bool), voxels, np.ones(n_channels)),
                output=OutputSummary(1, 0.9, 0.3, 0),
                context={"speed_mps": 20.0},
                picture=rng.uniform(0.2, 0.9, region_map.taps[0].n_picture),
            )
        )
    return rows


def change(row, **values):
    return msgspec.structs.replace(row, **values)


def status(report, code):
    return next(flag for flag in report.flags if flag.code == code).status


def with_thresholds(region_map, value):
    null = msgspec.structs.replace(region_map.evidence, threshold=np.full((len(CHANNELS), 2), value))
    return msgspec.structs.replace(region_map, evidence=null)


def with_head(region_map):
    """The same map, and a head that takes everything for snow."""
    n = n_inputs(region_map.taps)
    output = np.zeros((2, 3))
    output[-1] = (0.0, -2.0, 3.0)
    head = FaultHead(("blur", "snow"), np.zeros(n), np.ones(n), np.zeros((n + 1, 1)), output, None)
    return msgspec.structs.replace(region_map, faults=head)


def test_health_goes_from_never_seen_over_warming_to_ok(region_map):
    monitor = Monitor(region_map)
    assert monitor.report.state is HealthState.NEVER_SEEN
    assert monitor.tick(5).state is HealthState.NEVER_SEEN
    states = [monitor.step(row).state for row in make_rows(region_map, WARM + 5)]
    assert states[: WARM - 1] == [HealthState.WARMING] * (WARM - 1)
    assert states[WARM - 1 :] == [HealthState.OK] * 6


def test_health_transitions_name_before_and_after_once(region_map):
    monitor = Monitor(region_map)
    told = [t for row in make_rows(region_map, WARM + 5) for t in monitor.step(row).transitions]
    assert [(t.code, t.before, t.after) for t in told] == [
        ("HEALTH", "NEVER_SEEN", "WARMING"),
        ("HEALTH", "WARMING", "OK"),
    ]


def test_window_fill_frames_raise_nothing(region_map):
    """Nothing counts before the grace period is over, whatever the scores say."""
    monitor = Monitor(with_thresholds(region_map, 1e-9))
    rows = make_rows(region_map, int(2 * RATE_HZ) - 1)
    assert all(status(monitor.step(row), "REGION_ABNORMAL") is FlagStatus.INACTIVE for row in rows)


def test_evidence_over_its_threshold_confirms_and_says_where(region_map):
    monitor = Monitor(with_thresholds(region_map, 0.5))
    for row in make_rows(region_map, 120):
        report = monitor.step(row)
    flag = next(flag for flag in report.flags if flag.code == "REGION_ABNORMAL")
    assert flag.status is FlagStatus.CONFIRMED
    assert any(tap.name in flag.cause for tap in region_map.taps[1:])
    assert flag.values["ratio"] >= 1.0
    assert report.state is HealthState.FAIL
    assert any(reason.startswith("REGION_ABNORMAL") for reason in report.reasons)


def test_every_channel_has_its_own_score(region_map):
    """A score in another's place would alarm under its name."""
    monitor = Monitor(with_head(region_map))
    for row in make_rows(region_map, WARM + 50):
        report = monitor.step(row)
        expected = {
            "residual": report.connectivity.residual_score,
            "shift": report.connectivity.shift_score,
            "line": report.bands.line_score,
            "stall": report.vitals.stall,
        }
        found = dict(zip(CHANNELS, report.evidence.score.tolist(), strict=True))
        for channel, score in expected.items():
            assert found[channel] == pytest.approx(np.nan if score is None else score, nan_ok=True), channel
    known = {channel for channel, score in found.items() if np.isfinite(score)}
    assert known == set(CHANNELS) - {"tracts"}
    assert found["faults"] == pytest.approx(report.guess.score)
    assert found["input"] == pytest.approx(report.regions.input_score, rel=0.5)
    assert found["output"] == pytest.approx(0.3)


def test_a_cause_says_what_the_fault_looks_like(region_map):
    monitor = Monitor(with_head(with_thresholds(region_map, 0.5)))
    for row in make_rows(region_map, 160):
        report = monitor.step(row)
    assert report.guess.name == "snow"
    causes = {flag.code: flag.cause for flag in report.flags}
    assert causes["FAULT_RECOGNISED"] == "all findings together are those of a fault; looks like snow (99%)"
    plain = Monitor(with_thresholds(region_map, 0.5))
    for row in make_rows(region_map, 160):
        report = plain.step(row)
    assert report.guess is None
    assert "looks like" not in next(flag.cause for flag in report.flags if flag.code == "REGION_ABNORMAL")


def test_thresholds_are_those_of_a_bright_picture_while_it_is_bright(region_map):
    first = region_map.taps[0].n_voxels
    bright = np.full(region_map.fmri.bright.size, np.nan)
    bright[:first] = 2.0
    null = msgspec.structs.replace(region_map.evidence, threshold=np.tile([1.0, 4.0], (len(CHANNELS), 1)))
    fmri = msgspec.structs.replace(region_map.fmri, bright=bright)
    monitor = Monitor(msgspec.structs.replace(region_map, evidence=null, fmri=fmri))
    known = []
    for i, row in enumerate(make_rows(region_map, 130)):
        if i == 60:
            row.spatial.voxels[:first] *= 4.0
        evidence = monitor.step(row).evidence
        known.append(evidence.overexposed)
        there = np.isfinite(evidence.surprise)
        expected = evidence.surprise[there] / (4.0 if evidence.overexposed else 1.0)
        np.testing.assert_allclose(evidence.ratio[there], expected)
    assert known == [False] * 60 + [True] * 45 + [False] * 25


def test_a_frame_taken_earlier_than_the_last_is_flagged_at_once(region_map):
    monitor = Monitor(region_map)
    for row in make_rows(region_map, 10):
        report = monitor.step(change(row, t_capture_ns=row.t_ns))
    assert status(report, "TIME_BACKWARDS") is FlagStatus.INACTIVE
    late = make_rows(region_map, 1, first=10)[0]
    report = monitor.step(change(late, t_capture_ns=late.t_ns - 3 * PERIOD_NS))
    assert status(report, "TIME_BACKWARDS") is FlagStatus.CONFIRMED
    assert report.state is HealthState.FAIL


@pytest.mark.parametrize(("gaps", "expected"), [(1, FlagStatus.PENDING), (4, FlagStatus.CONFIRMED)])
def test_frames_that_are_missing_again_and_again_are_flagged(region_map, gaps, expected):
    monitor = Monitor(region_map)
    missing = {70 + 30 * k for k in range(gaps)}
    for row in make_rows(region_map, 165):
        if row.frame not in missing:
            report = monitor.step(row)
    assert status(report, "FRAMES_LOST") is expected
    assert report.state is (HealthState.WARN if gaps == 4 else HealthState.WARMING)


def test_views_that_disagree_for_long_are_flagged(region_map):
    crossmodal = msgspec.structs.replace(
        region_map.crossmodal, temporal_error=0.0, spatial_error=np.inf, least_agreement=0.5
    )
    monitor = Monitor(msgspec.structs.replace(region_map, crossmodal=crossmodal))
    stood = None
    for i, row in enumerate(make_rows(region_map, 400)):
        report = monitor.step(row)
        if stood is None and status(report, "VIEWS_DISAGREE") is FlagStatus.CONFIRMED:
            stood = i
            agreed = report.consistency.agreement
    assert stood > 250  # the window of the agreement, then as long again
    assert agreed == 0.0
    content = Monitor(region_map)  # a map that knows no least agreement never complains
    for row in make_rows(region_map, 400):
        report = content.step(row)
    assert status(report, "VIEWS_DISAGREE") is FlagStatus.INACTIVE


def test_a_picture_that_is_nan_masks_the_input_and_comes_back(region_map):
    monitor, clean = Monitor(with_head(region_map)), Monitor(with_head(region_map))
    for i, row in enumerate(make_rows(region_map, 700)):
        bad = change(row, picture=np.full_like(row.picture, np.nan)) if i == 200 else row
        report, reference = monitor.step(bad), clean.step(row)
        if i == 200:
            assert np.isnan(report.connectivity.residual[:2]).all()
            assert np.isfinite(report.connectivity.residual[2:]).all()
            assert (report.connectivity.shift_score, report.vitals.stall) == (None, None)
            assert report.guess.score is None
            assert report.regions.input_score is not None
    assert report.guess.score == pytest.approx(reference.guess.score)
    assert report.vitals.stall == reference.vitals.stall
    np.testing.assert_allclose(
        report.connectivity.departure, reference.connectivity.departure, rtol=1e-6, atol=1e-9
    )


def test_a_stream_without_pictures_has_all_the_rest(region_map):
    monitor = Monitor(region_map)
    for row in make_rows(region_map, WARM + 20):
        report = monitor.step(change(row, picture=None))
    assert report.state is HealthState.OK
    assert report.connectivity.shift_score is None
    assert np.isfinite(report.connectivity.residual[2:]).all()
    assert None not in (report.regions.score, report.bands.score, report.bands.line_score)


def test_frozen_input_is_confirmed_within_three_repeats_and_heals(region_map):
    monitor = Monitor(region_map)
    rows = make_rows(region_map, 60)
    for row in rows[:30]:
        monitor.step(row)
    last = rows[29]
    confirmed = None
    for repeat in range(1, 11):
        t_ns = last.t_ns + repeat * PERIOD_NS
        report = monitor.step(change(last, frame=last.frame + repeat, t_ns=t_ns))
        if confirmed is None and status(report, "INPUT_FROZEN") is FlagStatus.CONFIRMED:
            confirmed = repeat
    assert confirmed is not None
    assert confirmed <= 3
    for row in make_rows(region_map, 30, seed=1, first=40):
        report = monitor.step(row)
    assert status(report, "INPUT_FROZEN") is FlagStatus.HEALED


def test_the_light_setting_leaves_out_what_costs_most_and_keeps_the_rest(region_map):
    light, whole = Monitor(with_head(region_map), MonitorSettings(light=True)), Monitor(with_head(region_map))
    silent = [CHANNELS.index(channel) for channel in ("residual", "shift", "faults", "tracts")]
    for row in make_rows(region_map, 400):
        report, other = light.step(row), whole.step(row)
    assert (report.connectivity, report.consistency, report.guess) == (None, None, None)
    assert other.connectivity is not None
    assert np.isnan(report.evidence.ratio[silent]).all()
    expected = other.evidence.ratio.copy()
    expected[silent] = np.nan
    np.testing.assert_array_equal(report.evidence.ratio, expected)
    np.testing.assert_array_equal(report.bands.z, other.bands.z)
    for i in range(3):
        frozen = light.step(change(row, frame=400 + i, t_ns=row.t_ns + (i + 1) * PERIOD_NS))
    assert status(frozen, "INPUT_FROZEN") is FlagStatus.CONFIRMED


def test_repeats_by_nature_are_no_fault(region_map):
    monitor = Monitor(region_map, MonitorSettings(repeats_by_nature=True))
    first = make_rows(region_map, 1)[0]
    for i in range(50):
        report = monitor.step(change(first, frame=i, t_ns=first.t_ns + i * PERIOD_NS))
    assert status(report, "INPUT_FROZEN") is FlagStatus.INACTIVE


def test_stale_activations_are_told_from_a_frozen_input(region_map):
    monitor = Monitor(region_map)
    rows = make_rows(region_map, 20)
    for row in rows[:10]:
        monitor.step(row)
    for row in rows[10:]:
        signals = np.concatenate([row.signals[:1], rows[9].signals[1:]])
        report = monitor.step(change(row, signals=signals))
    assert status(report, "ACTIVATIONS_STALE") is FlagStatus.CONFIRMED
    assert status(report, "INPUT_FROZEN") is FlagStatus.INACTIVE


def test_one_nan_is_flagged_at_once_latched_and_poisons_nothing(region_map):
    monitor, clean = Monitor(region_map), Monitor(region_map)
    rows = make_rows(region_map, WARM + 300)
    n_taps = len(region_map.taps)
    for i, row in enumerate(rows):
        bad = row
        if i == 280:
            nonfinite = np.zeros(n_taps, np.int64)
            nonfinite[1] = 3
            bad = change(row, nonfinite=nonfinite, signals=np.where(nonfinite, np.nan, row.signals))
        report, reference = monitor.step(bad), clean.step(row)
        if i == 280:
            assert status(report, "NON_FINITE") is FlagStatus.CONFIRMED
            assert (
                np.isnan(report.regions.z[region_map.taps[0].n_voxels :]).sum() == region_map.taps[1].n_voxels
            )
        assert report.bands.score is None or np.isfinite(report.bands.score)
    # The sample was held in every window; once it has left the longest, nothing of it remains.
    np.testing.assert_allclose(report.bands.power, reference.bands.power, rtol=1e-9)
    assert status(report, "NON_FINITE") is FlagStatus.CONFIRMED
    monitor.release("NON_FINITE")
    for row in make_rows(region_map, 60, seed=2, first=len(rows)):
        report = monitor.step(row)
    assert status(report, "NON_FINITE") is FlagStatus.HEALED


def test_long_gap_restarts_the_warm_up(region_map):
    monitor = Monitor(region_map)
    for row in make_rows(region_map, WARM + 1):
        report = monitor.step(row)
    assert report.state is HealthState.OK
    later = make_rows(region_map, 1, first=WARM + 20)[0]
    report = monitor.step(later)
    assert report.state is HealthState.WARMING
    assert report.vitals.missing > 3
    assert np.isnan(report.bands.power).all()


def test_scores_from_before_a_gap_are_not_repeated_after_it(region_map):
    monitor = Monitor(region_map)
    for row in make_rows(region_map, 20):
        before = monitor.step(row)
    assert None not in (before.regions.score, before.connectivity.residual_score)
    after = monitor.step(change(make_rows(region_map, 1, first=40)[0], spatial=None))
    assert (after.regions.score, after.connectivity.residual_score) == (None, None)
    assert np.isnan(after.regions.z).all()


def test_three_missing_frames_are_held(region_map):
    monitor = Monitor(region_map)
    for row in make_rows(region_map, WARM + 1):
        monitor.step(row)
    report = monitor.step(make_rows(region_map, 1, first=WARM + 4)[0])
    assert report.state is HealthState.OK
    assert report.vitals.missing == 3
    assert (report.bands.held == 3).all()


def test_silence_is_stale_and_ends_with_the_next_frame(region_map):
    monitor = Monitor(region_map)
    rows = make_rows(region_map, WARM + 40)
    for row in rows[: WARM + 1]:
        monitor.step(row)
    last_ns = rows[WARM].t_ns
    assert monitor.tick(last_ns + 15 * PERIOD_NS).state is HealthState.OK
    report = monitor.tick(last_ns + 17 * PERIOD_NS)
    assert report.state is HealthState.STALE
    assert report.bands is None
    report = monitor.step(rows[WARM + 20])
    assert status(report, "NO_FRAMES") is FlagStatus.HEALED


def test_missed_deadline_is_flagged_after_the_grace_period(region_map):
    monitor = Monitor(region_map, MonitorSettings(deadline_ms=0.5))
    for row in make_rows(region_map, 100):
        report = monitor.step(row)
    flag = next(flag for flag in report.flags if flag.code == "LATENCY_HIGH")
    assert flag.status is FlagStatus.CONFIRMED
    assert flag.values == {"latency_ms": 1.0, "deadline_ms": 0.5}


def test_low_rate_is_flagged(region_map):
    monitor = Monitor(region_map)
    for i, row in enumerate(make_rows(region_map, 200)):
        report = monitor.step(change(row, t_ns=int(i * PERIOD_NS * 1.5)))
    assert status(report, "RATE_LOW") is FlagStatus.CONFIRMED


@pytest.mark.parametrize("code", ["PROBE_DETACHED", "ANSWER_CHANGED", "SELF_TEST_FAILED"])
def test_probe_events_become_latched_flags(region_map, code):
    monitor = Monitor(region_map)
    report = monitor.event(ProbeEvent(1, code, "because"))
    flag = next(flag for flag in report.flags if flag.code == code)
    assert flag.status is FlagStatus.CONFIRMED
    assert flag.cause == "because"
    for row in make_rows(region_map, 50):
        report = monitor.step(row)
    assert status(report, code) is FlagStatus.CONFIRMED


def test_a_path_is_no_map():
    with pytest.raises(InputError, match=r"region_map: is a str; Monitor\.load takes the path of one"):
        Monitor("map.npz")


def test_reasons_tell_that_nobody_is_watching_any_more(region_map):
    """A failure that nobody can see pass must not hide why."""

    def told(report):
        assert report.state is HealthState.FAIL
        return [reason.split(":")[0] for reason in report.reasons]

    monitor = Monitor(region_map)
    for row in make_rows(region_map, 5):
        report = monitor.step(change(row, fingerprint=7))
    assert told(report) == ["INPUT_FROZEN"]
    report = monitor.event(ProbeEvent(report.t_ns + 1, "PROBE_DETACHED", "an error"))
    assert told(report) == ["INPUT_FROZEN", "PROBE_DETACHED"]
    report = monitor.tick(report.t_ns + 10 * 10**9)
    assert told(report) == ["INPUT_FROZEN", "NO_FRAMES", "PROBE_DETACHED"]


def test_reset_is_like_new_and_feed_is_like_step(region_map):
    inputs = [*make_rows(region_map, 300), Tick(400 * PERIOD_NS), ProbeEvent(1, "PROBE_DETACHED", "x")]
    monitor = Monitor(region_map)
    first = [report_digest(monitor.feed(item)) for item in inputs]
    monitor.reset()
    assert [report_digest(monitor.feed(item)) for item in inputs] == first
    assert len(set(first)) == len(first)


def test_reports_are_snapshots(region_map):
    """A kept report must not change with later frames."""
    monitor = Monitor(region_map)
    kept = [monitor.step(row) for row in make_rows(region_map, 20)]
    before = [report_digest(report) for report in kept]
    for row in make_rows(region_map, 20, seed=3, first=20):
        monitor.step(row)
    assert [report_digest(report) for report in kept] == before


def test_step_compiles_nothing(region_map):
    """Every kernel is compiled when imported; a frame never waits for the compiler."""
    numba = pytest.importorskip("numba")
    if numba.config.DISABLE_JIT:
        pytest.skip("kernels run as Python")
    monitor = Monitor(with_head(region_map))
    from edge_monitor.kernels import (  # noqa: PLC0415
        connectivity,
        consistency,
        features,
        goertzel,
        line,
        perceptron,
        residual,
        structure,
        surprise,
        tracts,
        voxels,
    )

    modules = (connectivity, consistency, features, goertzel, line, perceptron, residual)
    modules += (structure, surprise, tracts, voxels)
    kernels = [item for module in modules for item in vars(module).values() if hasattr(item, "signatures")]
    assert kernels
    before = [len(kernel.signatures) for kernel in kernels]
    for row in make_rows(region_map, 30):
        monitor.step(row)
    assert [len(kernel.signatures) for kernel in kernels] == before
