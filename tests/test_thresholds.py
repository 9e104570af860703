"""Thresholds of all channels together: shares of the budget, what is counted, and the over-exposed ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from edge_monitor.evidence import EvidenceTracker, event_peaks, event_threshold
from edge_monitor.flags import COUNTER_FAILED, FLAGS
from edge_monitor.offline.thresholds import (
    DEBOUNCE,
    OVEREXPOSED_MARGIN,
    budget_shares,
    debounced,
    fit_evidence,
    fit_thresholds,
    poisson_interval,
)
from edge_monitor.types import CHANNELS

RATE_HZ = 30.0
N = len(CHANNELS)
HOUR = int(3600 * RATE_HZ)


def smooth_noise(n, seed=0, channels=N):
    """Surprise of clean frames whose neighbours are alike."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.exponential(size=(-(-n // 8), channels)), 8, axis=0)[:n]


def test_shares_add_up_and_those_that_detect_have_most():
    shares = dict(zip(CHANNELS, budget_shares(), strict=True))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["residual"] == shares["shift"] == shares["line"] == shares["faults"] > shares["stall"]
    assert shares["stall"] > shares["tracts"] == shares["input"]


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
    fast = ("CONNECTIVITY_ABNORMAL", "INPUT_SHIFTED", "INPUT_FLICKERS", "INPUT_STALLED", "FAULT_RECOGNISED")
    assert {steps[code] for code in fast} == {DEBOUNCE}


def count_events(surprise, overexposed, threshold):
    """Events of all channels together, written out."""
    lasting = debounced(surprise)
    with np.errstate(invalid="ignore"):
        over = lasting >= np.where(overexposed[:, None], threshold[:, 1], threshold[:, 0])
    return np.count_nonzero(event_peaks(over.any(axis=1).astype(float)) > 0)


@pytest.mark.parametrize("budget", [4.0, 20.0])
def test_all_channels_together_keep_the_budget(budget):
    """On the frames that set them, and about so on fresh ones."""
    quiet = np.zeros(2 * HOUR, bool)
    threshold = fit_thresholds(smooth_noise(2 * HOUR), quiet, RATE_HZ, budget)
    own = count_events(smooth_noise(2 * HOUR), quiet, threshold)
    assert own <= 2 * budget
    assert own > 0.5 * budget  # nor wastes it
    fresh = count_events(smooth_noise(2 * HOUR, seed=1), quiet, threshold)
    assert fresh < 4 * budget
    assert_array_equal(threshold[:, 0], threshold[:, 1])  # nothing was ever bright


def test_one_scale_is_shared_by_all_channels():
    surprise = smooth_noise(HOUR // 4)
    quiet = np.zeros(len(surprise), bool)
    threshold = fit_thresholds(surprise, quiet, RATE_HZ, 8.0)[:, 0]
    alone = [
        event_threshold(column, RATE_HZ, share * 8.0)
        for column, share in zip(debounced(surprise).T, budget_shares(), strict=True)
    ]
    assert np.ptp(threshold / alone) < 1e-12


def test_while_overexposed_a_channel_bears_more_than_it_ever_did_there():
    """What a tunnel's exit does raises the thresholds of tunnels' exits alone."""
    surprise = smooth_noise(HOUR // 2)
    overexposed = np.zeros(len(surprise), bool)
    usual = fit_thresholds(surprise, overexposed, RATE_HZ, 8.0)
    overexposed[5000:5200] = True
    surprise[5050:5100, 3] = 40.0
    threshold = fit_thresholds(surprise, overexposed, RATE_HZ, 8.0)
    ordinary = np.where(overexposed, np.nan, debounced(surprise)[:, 0])
    scale = threshold[0, 0] / event_threshold(ordinary, RATE_HZ, budget_shares()[0] * 8.0)
    assert threshold[3, 1] == pytest.approx(scale * OVEREXPOSED_MARGIN * 40.0)
    assert threshold[3, 0] < 1.2 * usual[3, 0]
    assert (threshold[:, 1] >= threshold[:, 0]).all()


def test_a_channel_that_never_spoke_is_off_and_stops_no_other():
    surprise = smooth_noise(9000)
    surprise[:, 4] = np.nan
    threshold = fit_thresholds(surprise, np.zeros(9000, bool), RATE_HZ, 8.0)
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
    evidence = EvidenceTracker(null).update((*scores[7, :1], None, *scores[7, 2:]), None)
    expected = np.interp(scores[7, 0], null.quantiles[0], -np.log(null.tail))
    assert evidence.surprise[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("events", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.39)])
def test_interval_of_a_rate(events, low, high):
    """Against published tables of Garwood's interval (95 %)."""
    assert poisson_interval(events, 1.0) == (pytest.approx(low, rel=1e-2), pytest.approx(high, rel=1e-3))
    assert poisson_interval(events, 2.0)[1] == pytest.approx(high / 2, rel=1e-3)
