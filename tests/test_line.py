"""A spectral line over the floor: parity with the definition, tones against noise and cuts, NaN."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.kernels import line as kernel

N_BINS = 7
finite = st.floats(0.0, 1e6)


class Peaks:
    """The kernel with its state."""

    def __init__(self, level, baseline):
        self.weight, self.baseline = np.exp(-np.asarray(level, float)), np.asarray(baseline, float)
        self.smooth = np.full(len(self.weight), np.nan)

    def __call__(self, density):
        """A density that is None belongs to a window that is not full: what stands there says nothing."""
        out = np.full(len(self.weight), -7.0)
        samples = np.array([kernel.WINDOW - (row is None) for row in density])
        junk = np.linspace(1, 5, self.weight.shape[1])
        known = np.array([junk if row is None else row for row in density], float)
        largest = kernel.peak_over_floor(known, samples, self.weight, self.baseline, self.smooth, out)
        return largest, out


@given(
    st.lists(
        st.tuples(*[st.one_of(st.none(), st.lists(finite, min_size=N_BINS, max_size=N_BINS))] * 3),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 999),
)
def test_lock_step_with_the_definition(frames, seed):
    """Three taps whose windows come and go; the third is not watched."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 2, (3, N_BINS))
    baseline = np.stack([rng.uniform(1e-6, 1, 3), rng.normal(1, 1, 3), rng.uniform(0.1, 2, 3)], axis=1)
    baseline[2, kernel.SCALE] = np.nan
    peaks = Peaks(level, baseline)
    history = []
    for frame in frames:
        history.append([None if row is None else np.array(row) for row in frame])
        largest, z = peaks(history[-1])
        expected = [
            naive.peak_over_floor([row[tap] for row in history], level[tap], *baseline[tap])
            for tap in range(3)
        ]
        assert_allclose(z, expected, rtol=1e-9, atol=1e-9)
        known = [value for value in expected if not np.isnan(value)]
        assert_allclose(largest, max(known) if known else np.nan, rtol=1e-9, atol=1e-9)


def settled(density, n=60):
    """z of one tap whose clean level is 0, after many frames of one density."""
    peaks = Peaks(np.zeros((1, N_BINS)), [[1e-9, 0.0, 1.0]])
    return [peaks([density])[0] for _ in range(n)][-1]


def test_one_bin_above_the_others_is_a_line():
    flat = np.ones(N_BINS)
    assert settled(flat) == pytest.approx(0.0, abs=1e-6)
    for k in range(N_BINS):
        tone = flat.copy()
        tone[k] = 100.0
        assert settled(tone) == pytest.approx(np.log(100.0) * (1 - 1 / N_BINS), rel=1e-6)


def test_what_lifts_all_bins_alike_cancels():
    """A hard cut, or a scene in which everything changes more."""
    tone = np.ones(N_BINS)
    tone[2] = 20.0
    assert settled(1e4 * tone) == pytest.approx(settled(tone), rel=1e-6)


def test_the_fall_of_a_clean_spectrum_is_no_line():
    falling = np.geomspace(1e4, 1.0, N_BINS)
    peaks = Peaks([np.log(falling)], [[1e-9, 0.0, 1.0]])
    assert peaks([3 * falling])[0] == pytest.approx(0.0, abs=1e-6)


def test_smoothing_starts_with_the_first_value_and_follows():
    peaks = Peaks(np.zeros((1, N_BINS)), [[1e-9, 0.0, 1.0]])
    tone = np.ones(N_BINS)
    tone[0] = 50.0
    first = peaks([tone])[0]
    assert first == pytest.approx(settled(tone))
    assert peaks([np.ones(N_BINS)])[0] == pytest.approx(first * 7 / 9, rel=1e-6)


@pytest.mark.parametrize("place", [0, 3])
def test_nan_is_not_known_and_does_not_stay(place):
    peaks = Peaks(np.zeros((1, N_BINS)), [[1e-9, 0.0, 1.0]])
    density = np.linspace(1, 3, N_BINS)
    expected = peaks([density])[0]
    broken = density.copy()
    broken[place] = np.nan
    assert np.isnan(peaks([broken])[0])
    assert peaks([density])[0] == pytest.approx(expected)


def test_a_window_that_is_not_full_starts_the_smoothing_anew():
    peaks, tone = Peaks(np.zeros((1, N_BINS)), [[1e-9, 0.0, 1.0]]), np.r_[50.0, np.ones(N_BINS - 1)]
    for _ in range(5):
        usual = peaks([np.ones(N_BINS)])[0]
    assert np.isnan(peaks([None])[0])
    assert peaks([tone])[0] == pytest.approx(settled(tone))
    assert settled(tone) > usual + 1


def test_a_density_that_overflows_hides_no_other_tap():
    density = np.ones((3, N_BINS))
    density[0, 2], density[1] = 40.0, np.inf
    largest, z = Peaks(np.zeros((3, N_BINS)), [[1e-9, 0.0, 1.0]] * 3)(density)
    assert np.isnan(z[1])
    assert largest == z[0] > z[2]


def test_nothing_is_known_without_a_baseline():
    largest, z = Peaks(np.zeros((2, N_BINS)), np.full((2, 3), np.nan))(np.ones((2, N_BINS)))
    assert np.isnan(largest)
    assert_array_equal(z, np.nan)
