"""Monitor.step from end to end, on rows made by hand."""

import models
import msgspec
import numpy as np
import pytest
from maps import minimal_map

from edge_monitor.config import MonitorSettings
from edge_monitor.digest import report_digest
from edge_monitor.pipeline import Monitor
from edge_monitor.types import (
    CHANNELS,
    FlagStatus,
    HealthState,
    OutputSummary,
    ProbeEvent,
    SpatialBlock,
    StatRow,
    Tick,
)

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
            )
        )
    return rows


def change(row, **values):
    return msgspec.structs.replace(row, **values)


def status(report, code):
    return next(flag for flag in report.flags if flag.code == code).status


def with_thresholds(region_map, value):
    null = msgspec.structs.replace(region_map.evidence, threshold=np.full(len(CHANNELS), value))
    return msgspec.structs.replace(region_map, evidence=null)


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
    monitor = Monitor(region_map)
    from edge_monitor.kernels import connectivity, consistency, goertzel, surprise, voxels  # noqa: PLC0415

    kernels = [
        item
        for module in (connectivity, consistency, goertzel, surprise, voxels)
        for item in vars(module).values()
        if hasattr(item, "signatures")
    ]
    assert kernels
    before = [len(kernel.signatures) for kernel in kernels]
    for row in make_rows(region_map, 30):
        monitor.step(row)
    assert [len(kernel.signatures) for kernel in kernels] == before
