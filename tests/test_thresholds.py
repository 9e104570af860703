"""Thresholds from clean scores: the budget is kept, shares add up, rare frames have thresholds of their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from edge_monitor.evidence import EVENT_FRAMES, event_peaks
from edge_monitor.offline.thresholds import (
    DEBOUNCE,
    OVEREXPOSED_MARGIN,
    SCALES,
    SHARES,
    TAIL,
    budget_shares,
    debounced,
    fit_evidence,
    fit_thresholds,
    poisson_interval,
)
from edge_monitor.types import CHANNELS

RATE_HZ = 30.0
N = 54_000  # half an hour


def surprises(n=N, seed=0, columns=len(CHANNELS)):
    """Exponential noise that lasts a while, as smoothed scores do."""
    rng = np.random.default_rng(seed)
    slow = np.repeat(rng.exponential(1.0, (n // 10, columns)), 10, axis=0)
    return np.asarray(slow + 0.1 * rng.random(slow.shape))


def dark(n=N):
    return np.zeros(n, np.bool_)


def events(surprise, bright, threshold):
    """Events over the thresholds, counted apart from the code under test."""
    limit = np.where(bright[:, None], threshold[:, 1], threshold[:, 0])
    over = np.zeros(len(surprise), np.bool_)
    for c in range(surprise.shape[1]):
        run = 0
        for i in range(len(surprise)):
            run = run + 1 if surprise[i, c] >= limit[i, c] else 0
            over[i] |= run >= DEBOUNCE
    return len({i // EVENT_FRAMES for i in np.flatnonzero(over)})


def test_shares_add_up_and_those_that_detect_have_the_same():
    shares = budget_shares()
    assert shares.sum() == pytest.approx(1.0)
    assert (shares > 0).all()
    full = [share for channel, share in zip(CHANNELS, shares, strict=True) if channel not in SHARES]
    assert len(set(full)) == 1
    assert full[0] > max(SHARES.values())


@pytest.mark.parametrize("budget", [4.0, 20.0, 60.0])
def test_clean_frames_keep_the_budget_and_use_it(budget):
    surprise = surprises()
    threshold = fit_thresholds(surprise, dark(), RATE_HZ, budget)
    allowed = int(budget * 0.5)
    assert events(surprise, dark(), threshold) <= allowed
    if threshold[0, 0] > SCALES[0] * 2:  # one step lower would be too many
        lower = threshold * (SCALES[0] / SCALES[1]) ** 2
        assert events(surprise, dark(), lower) >= allowed - 1


def test_a_smaller_budget_never_lowers_a_threshold():
    surprise = surprises()
    fitted = [fit_thresholds(surprise, dark(), RATE_HZ, budget) for budget in (60.0, 10.0, 1.0, 0.1)]
    for loose, strict in zip(fitted, fitted[1:], strict=False):
        assert (strict >= loose).all()


def test_overexposed_frames_have_a_threshold_above_their_clean_maximum():
    surprise, bright = surprises(), dark()
    bright[1000:1100] = True
    surprise[1000:1100, 0] = 80.0
    threshold = fit_thresholds(surprise, bright, RATE_HZ, 20.0)
    scale = threshold[1, 1] / fit_thresholds(surprise, dark(), RATE_HZ, 20.0)[1, 0]
    assert threshold[0, 1] > threshold[0, 0]
    assert threshold[0, 1] >= 0.5 * OVEREXPOSED_MARGIN * 80.0
    assert threshold[0, 0] < 80.0  # what happens while overexposed tells nothing about other frames
    assert scale > 0.0
    assert events(surprise, bright, threshold) <= 10


def test_without_overexposed_frames_both_thresholds_are_the_same():
    threshold = fit_thresholds(surprises(), dark(), RATE_HZ, 20.0)
    np.testing.assert_array_equal(threshold[:, 0], threshold[:, 1])


def test_a_channel_without_scores_is_off_and_the_others_are_not():
    surprise = surprises()
    surprise[:, 2] = np.nan
    threshold = fit_thresholds(surprise, dark(), RATE_HZ, 20.0)
    assert np.isnan(threshold[2, 0])
    assert np.isfinite(np.delete(threshold, 2, axis=0)).all()
    assert np.isnan(fit_thresholds(np.full_like(surprise, np.nan), dark(), RATE_HZ, 20.0)[:, 0]).all()


def test_a_flash_shorter_than_the_debouncing_raises_no_threshold():
    surprise = surprises()
    calm = fit_thresholds(surprise, dark(), RATE_HZ, 20.0)
    surprise[500 : 500 + DEBOUNCE - 1, 0] = 1e4
    np.testing.assert_allclose(fit_thresholds(surprise, dark(), RATE_HZ, 20.0), calm, rtol=0.05)


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=40))
def test_debounced_is_the_least_of_the_last_four(values):
    column = np.array(values)[:, None]
    found = debounced(np.hstack([column, -column]))
    for i in range(len(values)):
        window = values[max(0, i - DEBOUNCE + 1) : i + 1]
        known = len(window) == DEBOUNCE and not np.isnan(window).any()
        assert found[i, 0] == min(window) if known else np.isnan(found[i, 0])
        assert found[i, 1] == -max(window) if known else np.isnan(found[i, 1])


@given(st.integers(0, 60), st.floats(0.01, 100.0))
@settings(max_examples=60)
def test_the_interval_is_that_in_which_the_count_is_no_surprise(count, hours):
    low, high = poisson_interval(count, hours)
    assert 0.0 <= low < high
    assert low <= count / hours <= high
    assert poisson.cdf(count, high * hours) == pytest.approx(0.025, rel=1e-6)
    if count:
        assert poisson.sf(count - 1, low * hours) == pytest.approx(0.025, rel=1e-6)
    else:
        assert low == 0.0


def test_no_alarm_in_three_hours_is_the_rule_of_three():
    """-ln(0.025) = 3.69 events (Garwood)."""
    assert poisson_interval(0, 3.0) == (0.0, pytest.approx(3.6889 / 3.0, rel=1e-4))


def test_the_null_tabulates_the_scores_and_says_how_long_they_were():
    rng = np.random.default_rng(1)
    scores = rng.exponential(1.0, (20_000, len(CHANNELS)))
    scores[:, 4] = 7.0  # it never varied
    null = fit_evidence(scores, dark(20_000), RATE_HZ, 20.0)
    assert null.held_out_hours == pytest.approx(20_000 / RATE_HZ / 3600)
    np.testing.assert_allclose(null.quantiles[0], np.quantile(scores[:, 0], 1 - TAIL))
    np.testing.assert_allclose(null.quantiles[0], -np.log(TAIL), atol=0.3)
    assert null.excess[0] == pytest.approx(1.0, abs=0.3)  # an exponential is its own tail
    assert np.isnan(null.threshold[4, 0])
    assert null.alarms_per_hour == 20.0


def test_events_are_those_of_the_device(seed=3):
    """Peaks counted by calibration and by hand agree."""
    values = np.random.default_rng(seed).exponential(1.0, 1000)
    expected = [values[i : i + EVENT_FRAMES].max() for i in range(0, 1000, EVENT_FRAMES)]
    np.testing.assert_array_equal(event_peaks(values), expected)
