"""Evidence: the kernel against its definition, and the calibrated promise -log p against fresh data."""

from __future__ import annotations

import msgspec
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.errors import MapError
from edge_monitor.evidence import MEAN_OF_8, OVEREXPOSED, OVEREXPOSED_FRAMES, SMOOTHING, EvidenceTracker
from edge_monitor.kernels import surprise
from edge_monitor.offline.thresholds import (
    EVENT_FRAMES,
    block_peaks,
    event_threshold,
    fit_evidence,
    fit_null,
    surprise_of,
)
from edge_monitor.region_map import EvidenceNull
from edge_monitor.reports import CHANNELS, Scores

N = len(CHANNELS)
TAIL = np.geomspace(1.0, 0.005, 64)
UPDATES = {"compiled": surprise.update, "python": getattr(surprise.update, "py_func", surprise.update)}


def null(threshold=10.0, quantiles=(0.0, 1.0, 2.0)):
    n = len(CHANNELS)
    return EvidenceNull(
        tail=np.array([1.0, 0.1, 0.01]),
        quantiles=np.tile(quantiles, (n, 1)).astype(float),
        excess=np.full(n, 0.5),
        threshold=np.tile([threshold, 2.0 * threshold], (n, 1)),
        alarms_per_hour=1.0,
        held_out_alarms=0,
        held_out_hours=0.0,
        judge_alarms=0,
        judge_hours=0.0,
    )


def alike(score):
    """Every channel has this score."""
    return Scores(**dict.fromkeys(CHANNELS, score))


scores = st.one_of(st.floats(-1, 8), st.sampled_from([0.0, 1.0, 2.0, np.nan, np.inf]))


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@given(
    history=st.lists(st.tuples(scores, scores, scores), min_size=1, max_size=25),
    smoothing=st.tuples(*[st.sampled_from([MEAN_OF_8, 1.0])] * 3),
    steps=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=6),
)
def test_kernel_follows_its_definition(update, history, smoothing, steps):
    """Rising quantiles with ties, one channel that never varied, one whose threshold is off."""
    rising = np.concatenate([[0.0], np.cumsum(steps)])
    tail = np.geomspace(1.0, 0.01, rising.size)
    quantiles = np.stack([rising, rising + 0.5, np.full(rising.size, np.nan)])
    excess, threshold = np.array([0.5, 2.0, np.nan]), np.array([7.0, np.nan, np.nan])
    smooth, out, ratio = np.full(3, np.nan), np.empty(3), np.empty(3)
    for t, row in enumerate(history):
        if any(np.isinf(past).any() for past in history[:t]):
            break  # what follows an infinite score has a test of its own
        weights = np.array(smoothing)
        largest = update(np.array(row), weights, tail, quantiles, excess, threshold, smooth, out, ratio)
        np.testing.assert_array_equal(largest, max(ratio[~np.isnan(ratio)], default=np.nan))
        for c in range(3):
            past = [sample[c] for sample in history[: t + 1]]
            np.testing.assert_allclose(smooth[c], naive.smoothed(past, smoothing[c]), rtol=1e-9, atol=1e-9)
            # From the kernel's own mean: at a tie the last bit decides on which side of a step it lies.
            expected = naive.surprise(smooth[c], tail, quantiles[c], excess[c])
            np.testing.assert_allclose(out[c], expected, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(ratio[c], expected / threshold[c], rtol=1e-9, atol=1e-9)


def test_tied_quantiles_count_as_the_probability_of_this_score_or_more():
    evidence = EvidenceTracker(null(quantiles=(0.0, 1.0, 1.0))).update(alike(1.0), None)
    np.testing.assert_allclose(evidence.surprise, -np.log(0.1))


def test_channels_that_were_smoothed_where_they_are_made_are_not_smoothed_again():
    late = {"faults", "input", "spatial", "temporal", "output", "tracts"}
    assert {c for c, weight in zip(CHANNELS, SMOOTHING, strict=True) if weight < 1.0} == late
    assert set(SMOOTHING) == {1.0, 2 / 9}


def test_smoothing_restarts_after_a_missing_score_and_after_reset():
    tracker = EvidenceTracker(null())
    tracker.update(alike(1.0), None)
    smoothed = 1 + SMOOTHING
    place = CHANNELS.index("spatial")
    smoothed[place] = np.nan
    gap = msgspec.structs.replace(alike(2.0), spatial=None)
    np.testing.assert_allclose(tracker.update(gap, None).score, smoothed)
    assert tracker.update(msgspec.structs.replace(gap, spatial=5.0), None).score[place] == 5.0
    tracker.reset()
    np.testing.assert_array_equal(tracker.update(alike(3.0), None).score, 3.0)


def test_every_channel_has_a_score_of_its_own():
    """Named one by one: none is left out, and none lands in another's place."""
    with pytest.raises(TypeError, match="tracts"):
        Scores(**dict.fromkeys(CHANNELS[:-1], 1.0))
    with pytest.raises(TypeError, match="positional"):
        Scores(*range(N))
    tracker = EvidenceTracker(null())
    for place, channel in enumerate(CHANNELS):
        tracker.reset()
        score = tracker.update(msgspec.structs.replace(alike(1.0), **{channel: 2.0}), None).score
        assert score.tolist() == [2.0 if i == place else 1.0 for i in range(N)]


def test_an_infinite_score_alarms_and_is_forgotten():
    tracker = EvidenceTracker(null())
    assert np.isposinf(tracker.update(alike(np.inf), None).ratio).all()
    for _ in range(2):
        after = tracker.update(alike(0.5), None)
    np.testing.assert_array_equal(after.score, 0.5)


def test_thresholds_are_others_for_a_second_and_a_half_after_a_bright_picture():
    """Twice as high here: from the bright picture on, and anew with every further one."""
    tracker = EvidenceTracker(null())
    usual = -np.log(0.1) / 10.0

    def ratios(*shares):
        found = [tracker.update(alike(1.0), bright) for bright in shares]
        for evidence in found:
            np.testing.assert_allclose(evidence.ratio, usual / 2 if evidence.overexposed else usual)
        return [evidence.overexposed for evidence in found]

    assert ratios(0.0, None, OVEREXPOSED - 0.01) == [False] * 3
    assert ratios(OVEREXPOSED, *[0.0] * 60) == [True] * OVEREXPOSED_FRAMES + [False] * 16
    assert ratios(1.0, *[None] * 30, 1.0, *[0.1] * 60) == [True] * (31 + OVEREXPOSED_FRAMES) + [False] * 16
    ratios(1.0)
    tracker.reset()
    assert ratios(0.0) == [False]


def test_a_channel_without_threshold_has_surprise_but_no_ratio():
    evidence = EvidenceTracker(null(threshold=np.nan)).update(alike(1.0), None)
    np.testing.assert_allclose(evidence.surprise, -np.log(0.1))
    assert np.isnan(evidence.ratio).all()
    assert np.isnan(evidence.largest)


@pytest.mark.parametrize("name", ["tail", "quantiles", "excess", "threshold"])
def test_a_null_that_does_not_fit_is_refused(name):
    short = msgspec.structs.replace(null(), **{name: getattr(null(), name)[:-1]})
    what = "quantiles" if name == "tail" else name
    with pytest.raises(MapError, match=rf"^evidence\.{what}: shape "):
        EvidenceTracker(short)


def test_one_threshold_a_channel_is_refused():
    with pytest.raises(MapError, match=r"evidence.threshold: shape \(11,\), expected \(11, 2\)"):
        EvidenceTracker(msgspec.structs.replace(null(), threshold=np.ones(N)))


def test_a_report_keeps_its_numbers():
    tracker = EvidenceTracker(null())
    first = tracker.update(alike(1.0), None)
    tracker.update(alike(9.0), None)
    np.testing.assert_array_equal(first.score, 1.0)
    np.testing.assert_allclose(first.ratio, -np.log(0.1) / 10.0)


@pytest.mark.parametrize("draw", ["standard_exponential", "standard_normal", "standard_cauchy"])
def test_surprise_is_minus_log_p_on_fresh_data(draw):
    """Within the calibrated quantiles, p(surprise > s) = exp(-s)."""
    rng = np.random.default_rng(1)
    quantiles, excess = fit_null(getattr(rng, draw)(100_000), TAIL)
    fresh = surprise_of(getattr(rng, draw)(100_000), TAIL, quantiles, excess)
    for s in (0.5, 1.0, 2.0, 4.0, 5.0):
        assert np.mean(fresh > s) == pytest.approx(np.exp(-s), rel=0.2)


def test_surprise_beyond_the_last_quantile_is_exact_for_an_exponential_tail():
    rng = np.random.default_rng(2)
    quantiles, excess = fit_null(rng.exponential(3.0, 1_000_000), TAIL)
    assert excess == pytest.approx(3.0, rel=0.1)
    assert surprise_of(np.array([45.0]), TAIL, quantiles, excess)[0] == pytest.approx(15.0, rel=0.1)


def test_missing_scores_stay_missing_and_do_not_enter_the_fit():
    clean = np.random.default_rng(3).normal(size=1000)
    with_gaps = np.insert(clean, [10, 500], [np.nan, np.inf])
    for a, b in zip(fit_null(clean, TAIL), fit_null(with_gaps, TAIL), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(surprise_of(np.array([np.nan]), TAIL, *fit_null(clean, TAIL))[0])


@pytest.mark.parametrize("clean", [[], [1.0], [2.0] * 50, [np.nan, 1.0]])
def test_a_channel_that_never_varied_has_no_null(clean):
    quantiles, excess = fit_null(np.array(clean), TAIL)
    assert np.isnan(quantiles).all()
    assert np.isnan(excess)


def test_a_tail_without_spread_still_has_a_scale():
    clean = np.repeat([0.0, 1.0], 500)
    quantiles, excess = fit_null(clean, TAIL)
    assert quantiles[-1] == 1.0
    assert excess == pytest.approx(1e-3 * clean.std())


@given(st.lists(st.one_of(st.floats(0, 50), st.just(np.nan)), max_size=3 * EVENT_FRAMES + 5))
def test_one_peak_per_stretch(values):
    stretches = [values[i : i + EVENT_FRAMES] for i in range(0, len(values), EVENT_FRAMES)]
    known = [[v for v in stretch if not np.isnan(v)] for stretch in stretches]
    expected = [max(stretch) for stretch in known if stretch]
    np.testing.assert_array_equal(block_peaks(np.array(values), EVENT_FRAMES), expected)


@pytest.mark.parametrize("budget", [0.25, 4.0])
def test_threshold_keeps_its_budget_on_fresh_data(budget):
    """Half an hour of calibration extrapolates to budgets it cannot count; 40 fresh hours do count."""
    rate_hz, hours = 30.0, 40
    rng = np.random.default_rng(4)
    counts = []
    for _ in range(8):
        threshold = event_threshold(rng.exponential(size=int(1800 * rate_hz)), rate_hz, budget)
        fresh = block_peaks(rng.exponential(size=int(hours * 3600 * rate_hz)), EVENT_FRAMES)
        counts.append(np.count_nonzero(fresh > threshold) / hours)
    # The highest of twenty continuations errs on the quiet side, counting only by chance.
    assert budget / 20 < np.mean(counts) < 1.25 * budget


def test_one_clean_event_far_above_the_rest_raises_the_threshold():
    rng = np.random.default_rng(5)
    surprise = rng.exponential(size=int(1800 * 30.0))
    usual = event_threshold(surprise, 30.0, 0.25)
    surprise[30_000] = 40.0
    assert event_threshold(surprise, 30.0, 0.25) > 40.0 > usual


def test_what_is_alike_for_a_minute_is_one_peak():
    """Episodes of clean driving last: their peaks, each taken for twenty, would hide how far they spread."""
    rate_hz, hours, budget = 30.0, 40, 0.25
    rng = np.random.default_rng(6)

    def driving(h):
        return rng.exponential(size=int(60 * h)).repeat(1800) * rng.uniform(0.9, 1.0, size=int(60 * h) * 1800)

    counts = []
    for _ in range(8):
        threshold = event_threshold(driving(1), rate_hz, budget)
        counts.append(np.count_nonzero(block_peaks(driving(hours), 1800) > threshold) / hours)
    assert budget / 20 < np.mean(counts) < 2.0 * budget


def test_threshold_needs_data():
    assert np.isnan(event_threshold(np.full(500, np.nan), 30.0, 1.0))
    assert event_threshold(np.full(500, 2.0), 30.0, 1.0) > 2.0


def test_a_camera_that_never_moved_in_calibration_is_watched_all_the_same():
    """Its jump is 0 in every clean frame; other channels that never varied are off."""
    scores = np.zeros((9000, N))
    null = fit_evidence(scores, np.zeros(9000, bool), 30.0, 1.0)
    jump = CHANNELS.index("jump")
    assert np.isnan(np.delete(null.threshold, jump, axis=0)).all()
    tracker = EvidenceTracker(null)
    calm = tracker.update(Scores(**dict.fromkeys(CHANNELS, 0.0)), None)
    assert calm.ratio[jump] == 0.0
    knocked = tracker.update(Scores(**dict.fromkeys(CHANNELS, 0.0) | {"jump": 2.0}), None)
    assert 1.0 < knocked.ratio[jump] < 10.0
