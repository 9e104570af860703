"""Structure functions: parity with the definition, what they tell apart, and how a bad sample passes."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.kernels import structure as kernel

N_LAGS = len(kernel.LAGS)


class Structures:
    """The kernel with its state."""

    def __init__(self, n_taps):
        self.ring = np.zeros((kernel.LENGTH, n_taps))
        self.count = np.zeros(n_taps, np.int64)
        self.smooth = np.full((n_taps, N_LAGS), np.nan)

    def __call__(self, signals, good=None):
        signals = np.array(signals, float)
        good = np.ones(signals.size, bool) if good is None else np.array(good)
        kernel.structure(signals, good, self.ring, self.count, self.smooth)
        return self.smooth


sample = st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, np.nan, np.inf, None]))


@given(st.lists(st.tuples(sample, st.floats(0.5, 2.0)), min_size=1, max_size=60))
def test_lock_step_with_the_definition(frames):
    """Two taps, one of which is masked (None) or no number now and then."""
    structures, history = Structures(2), [[], []]
    for frame in frames:
        signals, good = [1.0 if x is None else x for x in frame], [x is not None for x in frame]
        found = structures(signals, good)
        for tap in range(2):
            if good[tap] and np.isfinite(signals[tap]):
                history[tap].append(signals[tap])
            else:
                history[tap].clear()
            expected = naive.structure(history[tap]) if history[tap] else np.full(N_LAGS, np.nan)
            assert_allclose(found[tap], expected, rtol=1e-9, atol=1e-9)


def settled(signals):
    structures = Structures(1)
    return [structures([x])[0].copy() for x in signals][-1]


def test_each_lag_is_known_when_there_are_so_many_samples():
    structures = Structures(1)
    for i in range(20):
        known = np.isfinite(structures([1.0 + 0.1 * i])[0])
        assert known.tolist() == [i >= lag for lag in kernel.LAGS]


def test_a_drive_moves_more_the_longer_one_waits_and_noise_does_not():
    t, noise = np.arange(200), np.random.default_rng(0).normal(size=200)
    drive = settled(np.exp(0.01 * t))
    assert_allclose(drive, np.log(0.01 * np.array(kernel.LAGS) + kernel.SHARE), rtol=1e-6)
    still = settled(np.exp(0.01 * noise))
    assert np.ptp(still) < 1.5 < np.ptp(drive)


def test_flicker_moves_most_over_half_its_period():
    flicker = settled(1.0 + 0.2 * np.where(np.arange(200) // 4 % 2, 1.0, -1.0))
    assert kernel.LAGS[int(flicker.argmax())] == 4
    assert flicker[kernel.LAGS.index(8)] == pytest.approx(np.log(kernel.SHARE))


def test_the_unit_of_the_signal_does_not_matter_and_silence_is_finite():
    rng = np.random.default_rng(1)
    signals = rng.uniform(0.5, 1.5, 60)
    assert_allclose(settled(1e-6 * signals), settled(1e6 * signals), rtol=1e-9)
    assert_array_equal(settled(np.zeros(60)), np.log(kernel.SHARE))


def test_a_bad_sample_starts_its_tap_anew_and_no_other():
    rng, structures, clean = np.random.default_rng(2), Structures(2), Structures(2)
    for i in range(200):
        signals = rng.uniform(0.5, 1.5, 2)
        expected = clean(signals).copy()
        found = structures([np.nan, signals[1]] if i == 50 else signals)
        assert_array_equal(found[1], expected[1])
        if 50 <= i < 70:
            assert np.isnan(found[0]).tolist() == [i - 51 < lag for lag in kernel.LAGS]
    assert_allclose(found, expected, rtol=1e-3)
