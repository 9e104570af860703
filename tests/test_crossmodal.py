"""Consistency of the two views."""

import naive
import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose

from edge_monitor.crossmodal import ConsistencyTracker
from edge_monitor.errors import InputError
from edge_monitor.region_map import CrossmodalNull

NULL = CrossmodalNull(coherence_bias=0.17, temporal_error=1.2, spatial_error=0.8, least_agreement=0.0)
FRAMES = 340 if numba.config.DISABLE_JIT else 500
N_TAPS = 3


def stream(frames, seed=0):
    """(gamma, temporal, peak, spatial) per frame: noisy, with a common part in the scores."""
    rng = np.random.default_rng(seed)
    common = np.convolve(rng.standard_normal(frames + 4), np.ones(5), "valid")
    for t in range(frames):
        temporal, spatial = np.abs(common[t] + rng.standard_normal(2))
        yield rng.gamma(2.0, 1.0, N_TAPS), temporal, rng.gamma(3.0), spatial


def feed(tracker, sample):
    gamma, temporal, peak, spatial = sample
    return tracker.update(gamma, temporal, peak, spatial)


def fields(consistency):
    c = consistency
    return (c.rho, c.agreement, c.agreement_in_error, c.coherence, c.score, c.terms)


def same(got, want, frame):
    for name, a, b in zip(
        ("rho", "agreement", "in error", "coherence", "score", "terms"), got, want, strict=True
    ):
        assert (a is None) == (b is None), (frame, name, a, b)
        if a is not None:
            assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=f"{frame} {name}")


def lock_step(samples, window=128, null=NULL):
    tracker = ConsistencyTracker(null, window)
    history, results = [], []
    for frame, sample in enumerate(samples):
        history.append([np.nan if x is None else x for x in sample])
        results.append(feed(tracker, sample))
        expected = naive.consistency(
            history, null.temporal_error, null.spatial_error, null.coherence_bias, window
        )
        same(fields(results[-1]), expected, frame)
        if len(history) > 4 * window:
            del history[:16]  # the definition looks back no further
    return results


@pytest.mark.parametrize("window", [64, 128])
def test_lock_step_with_definition(window):
    results = lock_step(stream(FRAMES), window)
    assert results[-1].terms == 3


def test_lock_step_with_invalid_samples():
    def holes():
        rng = np.random.default_rng(1)
        for sample in map(list, stream(FRAMES, 1)):
            if rng.random() < 0.01:
                field = rng.integers(4)
                sample[field] = np.full(N_TAPS, np.nan) if field == 0 else None
            yield sample

    results = lock_step(holes(), 64)
    assert {r.terms for r in results} == {0, 1, 2, 3}


def test_terms_appear_when_their_window_is_full():
    results = lock_step(stream(160))
    first = {
        name: next(t for t, r in enumerate(results) if getattr(r, name) is not None)
        for name in ("agreement", "agreement_in_error", "coherence", "rho", "score")
    }
    assert first == {"agreement": 127, "agreement_in_error": 127, "coherence": 127, "rho": 143, "score": 127}


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_one_invalid_score_silences_its_terms_for_a_window(bad):
    tracker = ConsistencyTracker(NULL)
    results = []
    for t, (gamma, temporal, peak, spatial) in enumerate(stream(360, 2)):
        results.append(tracker.update(gamma, bad if t == 200 else temporal, peak, spatial))
    assert [t for t, r in enumerate(results) if t >= 143 and r.agreement is None] == list(range(200, 328))
    assert results[199].coherence is not None
    assert [t for t, r in enumerate(results) if t >= 143 and r.coherence is None] == list(range(200, 335))
    assert all(r.rho is not None for r in results[143:])
    assert (results[250].terms, results[250].score) == (1, results[250].rho)


def test_coherence_is_held_between_computations():
    tracker = ConsistencyTracker(NULL)
    values = [feed(tracker, sample).coherence for sample in stream(176, 3)]
    assert [t for t in range(128, 176) if values[t] != values[t - 1]] == [143, 159, 175]


def test_peak_is_compared_at_the_centre_of_gammas_window():
    peaks = np.random.default_rng(4).uniform(1, 2, 300)
    tracker = ConsistencyTracker(NULL)
    for t in range(16, 300):
        result = tracker.update(np.exp(np.full(2, peaks[t - 16])), None, peaks[t], None)
    assert result.rho == pytest.approx(1.0)
    assert (result.terms, result.agreement, result.coherence) == (1, None, None)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1])
def test_constant_input_invalidates(constant):
    tracker = ConsistencyTracker(NULL)
    for gamma, _, _, spatial in stream(200, 5):
        result = tracker.update(gamma, constant, constant, spatial)
    assert (result.rho, result.coherence) == (None, None)
    assert (result.terms, result.score) == (1, result.agreement)


def test_constant_gamma_invalidates_rho():
    tracker = ConsistencyTracker(NULL)
    for _, temporal, peak, spatial in stream(200, 5):
        result = tracker.update(np.full(N_TAPS, 0.1), temporal, peak, spatial)
    assert result.rho is None
    assert result.terms == 2


def test_silent_tap_is_no_outlier():
    """Gamma power 0 has a logarithm here."""
    samples = [(np.append(gamma[:2], 0.0), *rest) for gamma, *rest in stream(150, 6)]
    assert lock_step(samples)[-1].rho is not None


def test_bias_maps_raw_coherence():
    raw, unbiased = (ConsistencyTracker(CrossmodalNull(bias, 1.0, 1.0, 0.0)) for bias in (0.0, 0.25))
    for sample in stream(160, 7):
        a, b = feed(raw, sample), feed(unbiased, sample)
    assert 0 < a.coherence < 1
    assert b.coherence == pytest.approx((a.coherence - 0.25) / 0.75)


def test_equal_scores_agree_and_cohere_perfectly():
    tracker = ConsistencyTracker(CrossmodalNull(0.3, 1.0, 1.0, 0.0))
    for gamma, temporal, peak, _ in stream(160, 8):
        result = tracker.update(gamma, temporal, peak, temporal)
    assert (result.agreement, result.agreement_in_error) == (1.0, 1.0)
    assert result.coherence == pytest.approx(1.0)


def test_no_error_no_agreement_in_error():
    tracker = ConsistencyTracker(CrossmodalNull(0.0, 1e9, 1e9, 0.0))
    for sample in stream(130, 9):
        result = feed(tracker, sample)
    assert (result.agreement, result.agreement_in_error) == (1.0, None)


def test_reset_is_fresh():
    tracker, fresh = ConsistencyTracker(NULL), ConsistencyTracker(NULL)
    for sample in stream(201, 10):
        feed(tracker, sample)
    tracker.reset()
    for sample in stream(180, 11):
        assert fields(feed(tracker, sample)) == fields(feed(fresh, sample))
    assert feed(fresh, sample).terms == 3


def test_gamma_may_be_a_column():
    powers = np.random.default_rng(12).gamma(2.0, 1.0, (150, N_TAPS, 5))
    column, copy = ConsistencyTracker(NULL), ConsistencyTracker(NULL)
    for power in powers:
        a = column.update(power[:, 4], None, power[0, 0], None)
        b = copy.update(power[:, 4].copy(), None, power[0, 0], None)
    assert a.rho == b.rho is not None


@pytest.mark.parametrize("window", [0, 32, 100, -128])
def test_other_windows_are_refused(window):
    with pytest.raises(InputError, match=f"window: {window} frames"):
        ConsistencyTracker(NULL, window)


@pytest.mark.parametrize("bias", [-0.1, 1.0, np.nan])
def test_impossible_bias_is_refused(bias):
    with pytest.raises(InputError, match=f"crossmodal.coherence_bias: {bias} is not in"):
        ConsistencyTracker(CrossmodalNull(bias, 1.0, 1.0, 0.0))
