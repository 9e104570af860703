"""Thresholds of all channels together: shares of the budget, what is counted, and the over-exposed ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from edge_monitor.evidence import EvidenceTracker
from edge_monitor.findings import Findings, Limits
from edge_monitor.flag_table import FLAGS, PASS_RATIO
from edge_monitor.flags import COUNTER_FAILED, FlagTracker
from edge_monitor.kernels.debounce import confirmations
from edge_monitor.offline.thresholds import (
    COMMON,
    DEBOUNCE,
    EVENT_FRAMES,
    OVEREXPOSED_MARGIN,
    STEPS,
    budget_shares,
    common_scale,
    count_alarms,
    count_events,
    debounced,
    event_threshold,
    fit_evidence,
    fit_nulls,
    fit_thresholds,
    poisson_interval,
    surprises_of,
)
from edge_monitor.reports import CHANNELS, Evidence, FlagStatus, Scores, Vitals

RATE_HZ = 30.0
N = len(CHANNELS)
HOUR = int(3600 * RATE_HZ)


def smooth_noise(n, seed=0, channels=N):
    """Surprise of clean frames whose neighbours are alike."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.exponential(size=(-(-n // 8), channels)), 8, axis=0)[:n]


def of_its_share(surprise, overexposed, budget):
    """Thresholds of all channels, each by itself."""
    return fit_thresholds(surprise, overexposed, RATE_HZ, budget_shares() * budget)


def ratio(scores, null):
    """Surprise over the threshold of an ordinary picture."""
    return surprises_of(scores, null.quantiles, null.excess) / null.threshold[:, 0]


def test_shares_add_up_and_those_that_detect_have_most():
    shares = dict(zip(CHANNELS, budget_shares(), strict=True))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["residual"] == shares["shift"] == shares["line"] == shares["faults"] > shares["stall"]
    assert shares["stall"] == shares["jump"] > shares["tracts"] == shares["input"]


@given(
    arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(0, 9) | st.just(np.nan))
)
def test_only_what_lasts_counts(values):
    found = debounced(values)
    for i, c in np.ndindex(values.shape):
        window = values[max(0, i - DEBOUNCE + 1) : i + 1, c]
        lasts = i >= DEBOUNCE - 1 and not np.isnan(window).any()
        assert_array_equal(found[i, c], window.min() if lasts else np.nan)


def test_a_flag_of_a_channel_that_detects_confirms_after_as_many_frames():
    steps = {row.code: -(-COUNTER_FAILED // row.up) for row in FLAGS}
    inputs = ("INPUT_SHIFTED", "INPUT_FLICKERS", "INPUT_STALLED", "CAMERA_MOVED")
    fast = (*inputs, "CONNECTIVITY_ABNORMAL", "FAULT_RECOGNISED")
    assert {steps[code] for code in fast} == {DEBOUNCE}


@pytest.mark.parametrize("budget", [4.0, 20.0])
def test_all_channels_together_keep_the_budget(budget):
    """On the frames that set them, and about so on fresh ones."""
    quiet = np.zeros(2 * HOUR, bool)
    null = fit_evidence(smooth_noise(2 * HOUR), quiet, RATE_HZ, budget)
    own = count_alarms(ratio(smooth_noise(2 * HOUR), null))
    assert own <= 2 * budget
    assert own > 0.5 * budget  # nor wastes it
    fresh = count_alarms(ratio(smooth_noise(2 * HOUR, seed=1), null))
    assert fresh < 4 * budget
    assert_array_equal(null.threshold[:, 0], null.threshold[:, 1])  # nothing was ever bright


def test_one_scale_is_shared_by_all_channels():
    scores = smooth_noise(HOUR // 4)
    quiet = np.zeros(len(scores), bool)
    null = fit_evidence(scores, quiet, RATE_HZ, 8.0)
    surprise = surprises_of(scores, null.quantiles, null.excess)
    alone = [
        event_threshold(column, RATE_HZ, share * 8.0)
        for column, share in zip(debounced(surprise).T, budget_shares(), strict=True)
    ]
    assert np.ptp(null.threshold[:, 0] / alone) < 1e-12


def trips(n, seed):
    """Scores of trips of seven minutes, each of which is loud in a channel of its own liking."""
    rng = np.random.default_rng(seed)
    loud = np.exp(rng.normal(0.0, 0.25, size=(n, N)))
    return np.concatenate([smooth_noise(HOUR // 8, rng.integers(1 << 31)) * by for by in loud])


def test_the_budget_is_nearly_kept_on_trips_that_differ():
    """It is not by a scale that is set on the very frames that set the thresholds."""
    budget, known, fresh = 8.0, [], []
    quiet = np.zeros(HOUR, bool)
    for seed in range(6):
        scores, others = trips(8, seed), trips(8, 100 + seed)
        null = fit_evidence(scores, quiet, RATE_HZ, budget)
        fresh.append(count_alarms(ratio(others, null)))
        quantiles, excess = fit_nulls(scores)
        alone = of_its_share(surprises_of(scores, quantiles, excess), quiet, budget)[:, 0]
        scale = common_scale(surprises_of(scores, quantiles, excess) / alone, int(budget))
        known.append(count_alarms(surprises_of(others, quantiles, excess) / alone / scale))
    assert np.mean(fresh) <= 1.5 * budget
    assert np.mean(known) > 1.5 * np.mean(fresh), (known, fresh)


def test_while_overexposed_a_channel_bears_more_than_it_ever_did_there():
    """What a tunnel's exit does raises the thresholds of tunnels' exits alone."""
    surprise = smooth_noise(HOUR // 2)
    overexposed = np.zeros(len(surprise), bool)
    usual = of_its_share(surprise, overexposed, 8.0)
    overexposed[5000:5200] = True
    surprise[5050:5100, 3] = 40.0
    threshold = of_its_share(surprise, overexposed, 8.0)
    ordinary = np.where(overexposed, np.nan, debounced(surprise)[:, 0])
    assert threshold[0, 0] == event_threshold(ordinary, RATE_HZ, budget_shares()[0] * 8.0)
    assert threshold[3, 1] == pytest.approx(OVEREXPOSED_MARGIN * 40.0)
    assert threshold[3, 0] < 1.2 * usual[3, 0]
    assert (threshold[:, 1] >= threshold[:, 0]).all()


def test_a_channel_that_never_spoke_is_off_and_stops_no_other():
    surprise = smooth_noise(9000)
    surprise[:, 4] = np.nan
    threshold = of_its_share(surprise, np.zeros(9000, bool), 8.0)
    assert np.isnan(threshold[4]).all()
    assert np.isfinite(np.delete(threshold, 4, axis=0)).all()


def test_evidence_on_the_device_is_what_was_fitted():
    """The null of fitted scores gives, frame by frame on the device, the surprise that set the thresholds."""
    rng = np.random.default_rng(2)
    scores = rng.gamma(2.0, size=(3000, N))
    scores[:, 1] = np.nan
    null = fit_evidence(scores, np.zeros(3000, bool), RATE_HZ, 100.0)
    assert (null.held_out_hours, null.alarms_per_hour) == (pytest.approx(3000 / 30 / 3600), 100.0)
    assert (null.judge_alarms, null.judge_hours) == (0, 0.0)
    assert np.isnan(null.quantiles[1]).all()
    found = dict(zip(CHANNELS, scores[7].tolist(), strict=True)) | {CHANNELS[1]: None}
    evidence = EvidenceTracker(null).update(Scores(**found), None)
    expected = np.interp(scores[7, 0], null.quantiles[0], -np.log(null.tail))
    assert evidence.surprise[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("events", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.39)])
def test_interval_of_a_rate(events, low, high):
    """Against published tables of Garwood's interval (95 %)."""
    assert poisson_interval(events, 1.0) == (pytest.approx(low, rel=1e-2), pytest.approx(high, rel=1e-3))
    assert poisson_interval(events, 2.0)[1] == pytest.approx(high / 2, rel=1e-3)


# What is counted is what the flags would do.

HOUR_NS = 3600 * 10**9


def told_by_flags(ratio):
    """Frames in which the device's own flags become confirmed, once all grace is over."""
    limits = Limits(RATE_HZ, HOUR_NS, HOUR_NS, repeats_by_nature=False, dead_rows=0, least_agreement=-1.0)
    vitals = Vitals(
        missing=0,
        repeated=0,
        stale=0,
        nonfinite=0,
        rate_hz=None,
        latency_ns=None,
        silence_ns=0,
        entropy=None,
        confidence=None,
        age_ns=HOUR_NS,
    )
    tracker, before, found = FlagTracker(), set(), []
    for i, x in enumerate(ratio):
        largest = np.nanmax(x) if np.isfinite(x).any() else np.nan
        evidence = Evidence(10.0 * x, x, x, overexposed=False, largest=float(largest))
        tracker.update(i, i * 33_333_333, Findings(limits, (), vitals, evidence=evidence))
        now = {flag.code for flag in tracker.states if flag.status is FlagStatus.CONFIRMED}
        found.append(bool(now - before))
        before = now
    return np.array(found)


def events_of(confirmed):
    """Events, written out: what comes more than three seconds behind the last one is a new one."""
    events, last = 0, -np.inf
    for i in np.flatnonzero(confirmed):
        events += i - last > 90
        last = i
    return events


RUNS = st.lists(
    st.tuples(
        st.sampled_from([np.nan, 0.1, 0.79, 0.8, 0.99, 1.0, 5.0]), st.sampled_from([1, 2, 3, 5, 17, 40])
    ),
    max_size=16,
)


@given(st.dictionaries(st.integers(0, N - 1), RUNS, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_alarms_are_counted_as_the_flags_would_raise_them(runs):
    columns = {c: [x for value, n in run for x in [value] * n] for c, run in runs.items()}
    ratio = np.full((max(map(len, columns.values())), N), np.nan)
    for c, column in columns.items():
        ratio[: len(column), c] = column
    found = np.empty(len(ratio), bool)
    confirmations(ratio, PASS_RATIO, STEPS, found)
    told = told_by_flags(ratio)
    assert_array_equal(found, told)
    assert count_alarms(ratio) == events_of(told)


@pytest.mark.parametrize(
    ("pattern", "alarms"),
    [
        ([2.0] * 4, 1),
        ([2.0] * 3, 0),
        ([2.0] * 3 + [0.9] * 50 + [2.0], 1),  # between passed and failed nothing is learned
        ([2.0] * 3 + [0.1] * 4 + [2.0], 0),  # 96 - 4 * 8 + 32
        ([2.0] * 3 + [0.1] * 4 + [2.0] * 2, 1),
        ([2.0, 0.1, 0.1, 0.1, 0.1] * 40, 0),
        ([2.0] * 4 + [0.1] * 31 + [2.0] * 60 + [2.0] * 100, 1),  # not healed: the same alarm
        ([2.0] * 4 + [0.1] * 120 + [2.0] * 4, 2),
        ([2.0] * 4 + [0.1] * 60 + [2.0] * 4, 1),  # healed, but within three seconds
    ],
)
def test_alarms_of_a_channel_that_detects(pattern, alarms):
    ratio = np.full((len(pattern), N), np.nan)
    ratio[:, CHANNELS.index("shift")] = pattern
    assert count_alarms(ratio) == events_of(told_by_flags(ratio)) == alarms


def test_what_is_close_together_is_one_event():
    confirmed = np.zeros(1000, bool)
    assert count_events(confirmed) == 0
    confirmed[[0, 90, 180, 271, 400]] = True
    assert count_events(confirmed) == events_of(confirmed) == 3


@pytest.mark.parametrize("budget", [20.0, 200.0, 400.0])
def test_thresholds_do_not_fall_until_alarms_run_into_one_another(budget):
    """A flag that is always up is one event, yet no budget holds it: no higher threshold may have more."""
    scores = smooth_noise(HOUR // 2)
    null = fit_evidence(scores, np.zeros(len(scores), bool), RATE_HZ, budget)
    for scale in np.geomspace(1.0, 4.0, 30):
        assert count_alarms(ratio(scores, null) / scale) <= budget / 2 + 3  # between steps of the scale


def test_one_outlier_does_not_set_a_threshold_when_several_events_are_allowed():
    """What the budget allows for is what it is for: 3 of 18 events are those of the residual."""
    residual = CHANNELS.index("residual")
    surprise = smooth_noise(HOUR)
    quiet = np.zeros(HOUR, bool)
    usual = of_its_share(surprise, quiet, 18.0)
    surprise[5000:5040, residual] = 1000.0
    threshold = of_its_share(surprise, quiet, 18.0)
    assert threshold[residual, 0] < 1.2 * usual[residual, 0]
    assert count_alarms(surprise / threshold[:, 0]) <= 18
    rare = of_its_share(surprise, quiet, 0.5)  # where none is allowed, it has to be borne
    assert rare[residual, 0] > 1000.0


@pytest.mark.parametrize(("share", "kept"), [(COMMON - 0.02, True), (COMMON + 0.02, False)])
def test_a_stratum_that_is_no_exception_has_no_thresholds_of_its_own(share, kept):
    surprise = smooth_noise(HOUR // 4)
    overexposed = np.zeros(len(surprise), bool)
    overexposed[: int(share * len(surprise))] = True
    surprise[50:100, 3] = 40.0
    threshold = of_its_share(surprise, overexposed, 8.0)
    assert np.isfinite(threshold).all()
    assert (threshold[3, 1] > 1.2 * threshold[3, 0]) == kept
    if not kept:
        assert_array_equal(threshold[:, 1], threshold[:, 0])


def test_channels_stay_on_though_every_frame_is_overexposed():
    surprise = smooth_noise(9000)
    threshold = of_its_share(surprise, np.ones(9000, bool), 8.0)
    assert_array_equal(threshold, of_its_share(surprise, np.zeros(9000, bool), 8.0))
    assert np.isfinite(threshold).all()


def test_a_channel_that_is_silent_but_for_a_moment_has_a_threshold_of_its_own():
    """Ten frames of two hours: fewer peaks than the budget allows, so the n-th largest of them is 0."""
    scores = smooth_noise(2 * HOUR)
    jump = CHANNELS.index("jump")
    scores[:, jump] = 0.0
    scores[5000:5010, jump] = 1.5
    null = fit_evidence(scores, np.zeros(2 * HOUR, bool), RATE_HZ, 50.0)
    assert null.threshold[jump, 0] > 1.0
    assert np.isfinite(ratio(scores, null)).all()


def test_so_many_events_as_the_budget_allows_and_no_more():
    ratio = np.zeros((10 * EVENT_FRAMES, N))
    for event, height in enumerate((2.5, 2.0, 1.5, 1.2)):
        ratio[2 * event * EVENT_FRAMES + 8 :][:32, 0] = height
    counts = [count_alarms(ratio / common_scale(ratio, allowed)) for allowed in range(5)]
    assert counts == [0, 1, 2, 3, 4]
