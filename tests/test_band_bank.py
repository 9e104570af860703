"""Densities and band powers after every frame: against SciPy and against the slow twin."""

import os

import naive
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import welch

from edge_monitor.band_bank import BandBank
from edge_monitor.band_plan import LINE, WINDOWS, BandPlan
from edge_monitor.errors import InputError
from edge_monitor.kernels.line import WINDOW as LINE_WINDOW
from edge_monitor.types import BANDS

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
FRAMES = 5000 if JIT else 700
PLAN = BandPlan.make("nyquist", 30.0)
ALL = np.ones(4, bool)


def run(stream, segments=1, n_taps=4):
    """Densities after every frame of a stream that all taps share, per band (frames, n_taps, n_bins)."""
    bank = BandBank(PLAN, n_taps, segments)
    good = np.ones(n_taps, bool)
    densities = [np.empty((len(stream), n_taps, end - first)) for first, end in PLAN.bins]
    powers = np.empty((len(stream), n_taps, len(BANDS)))
    for t, x in enumerate(stream):
        powers[t] = bank.update(np.full(n_taps, x), good, 0)
        for band, density in enumerate(densities):
            density[t] = bank.psd(band)
    return densities, powers


def excess(density, stream, band, segments):
    """Largest error of one band over D4's bound, over all steps with a full window."""
    window, (first, end) = PLAN.windows[band], PLAN.bins[band]
    span = window + (segments - 1) * window // 2
    assert np.isnan(density[: span - 1]).all()
    windows = sliding_window_view(stream, span)
    expected = scipy_welch(windows, window)[:, None, first:end]
    rms = np.sqrt((windows**2).mean(axis=1))[:, None, None]
    return float((np.abs(density[span - 1 :] - expected) / (expected + (rms / 1e6) ** 2)).max() / 1e-9)


def scipy_welch(windows, window):
    # In extended precision: in double, SciPy's own error exceeds D4's bound where an offset of 1e3
    # surrounds a power of 1e-6, as in the last frames before a frozen window.
    windows = windows.astype(np.longdouble)
    return welch(windows, nperseg=window, window="hann", detrend="constant", axis=-1)[1]


def streams():
    rng = np.random.default_rng(0)
    noise, t = rng.normal(size=FRAMES), np.arange(FRAMES)
    half = FRAMES // 2
    return {
        "offset": 1e3 + noise,
        "freeze": np.where(t < half, 1e3 + noise, 1e3 + noise[half]),
        "nyquist": 5.0 + (-1.0) ** t,
        "steps": noise + 100.0 * rng.integers(0, 9, FRAMES // 100 + 1).repeat(100)[:FRAMES],
    }


# The spectrum


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("name", ["offset", "freeze", "nyquist", "steps"])
def test_density_is_welch_at_every_step(name, segments):
    stream = streams()[name]
    densities, powers = run(stream, segments)
    for band, density in enumerate(densities):
        assert excess(density, stream, band, segments) < 1
        np.testing.assert_allclose(powers[:, :, band], density.sum(axis=-1) / PLAN.windows[band], rtol=1e-13)


@pytest.mark.parametrize("cycles", [1, 3, 8, 63])
def test_bound_holds_beside_a_strong_tone(cycles):
    t = np.arange(1100 if JIT else 520)
    noise = np.random.default_rng(1).normal(size=t.size)
    stream = np.cos(2 * np.pi * cycles * t / 256 + 0.3) + 1e-6 * noise
    densities, _ = run(stream)
    for band, density in enumerate(densities):
        assert excess(density, stream, band, 1) < 1


@pytest.mark.parametrize("size", [1e6, 1e30])
def test_a_huge_spike_leaves_no_residue(size):
    rng = np.random.default_rng(2)
    stream = 1.0 + rng.normal(size=3400 if JIT else 700)
    stream[300::301] = size  # over 16 staggered taps, at many different positions of a block
    densities, _ = run(stream, n_taps=16 if JIT else 4)
    for band, density in enumerate(densities):
        assert excess(density, stream, band, 1) < 1


def test_power_does_not_depend_on_the_frame_rate():
    slow, fast = (BandBank(BandPlan.make("nyquist", rate), 4) for rate in (1.0, 120.0))
    for sample in np.random.default_rng(3).normal(size=(300, 4)):
        np.testing.assert_array_equal(slow.update(sample, ALL, 0), fast.update(sample, ALL, 0))


def test_lines_are_sought_in_every_bin_up_to_nyquist_but_the_slowest():
    plan = PLAN.with_line()
    assert (plan.windows[LINE], plan.bins[LINE].tolist()) == (LINE_WINDOW, [2, 33])
    assert plan.edges_hz[LINE].tolist() == pytest.approx([2 * 30 / 64, 15.0])
    assert plan.windows[:LINE] == PLAN.windows
    np.testing.assert_array_equal(plan.bins[:LINE], PLAN.bins)
    bank, noise = BandBank(plan, 4), np.random.default_rng(12).normal(size=70)
    for x in noise:
        bank.update(np.full(4, x), ALL, 0)
    expected = scipy_welch(noise[None, -64:], 64)[0, 2:33]
    np.testing.assert_allclose(bank.psd(LINE), np.tile(expected, (4, 1)).astype(float), rtol=1e-9)


# Missing and unusable frames


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize(("scale", "rate"), [("nyquist", 30.0), ("hz", 30.0)])
@pytest.mark.parametrize("trouble", [0.0, 0.02, 0.3])
def test_lock_step_with_the_slow_twin(scale, rate, segments, trouble):
    rng = np.random.default_rng(5)
    plan = BandPlan.make(scale, rate)
    n_taps = 3
    bank = BandBank(plan, n_taps, segments)
    twin = naive.Bands(plan.windows, [list(range(*b)) for b in plan.bins], n_taps, segments)
    warm = 0
    for _ in range((700 if trouble < 0.1 else 200) if JIT else 130):
        samples = rng.normal(size=n_taps)
        samples[rng.random(n_taps) < trouble] = rng.choice([np.nan, np.inf, -np.inf])
        good = rng.random(n_taps) >= trouble
        missing = int(rng.integers(1, 6)) if rng.random() < trouble / 4 else 0
        power = bank.update(samples, good, missing)
        np.testing.assert_allclose(power, twin.update(samples, good, missing), rtol=1e-9)
        assert bank.held.tolist() == twin.held
        assert bank.count.tolist() == [len(history) for history in twin.history]
        warm += np.isfinite(power[:, 3]).sum()
    assert warm or trouble > 0.1


@pytest.mark.parametrize(
    ("missing", "unusable", "kept"), [(3, 0, True), (4, 0, False), (1, 2, True), (2, 2, False)]
)
def test_a_long_gap_restarts_the_warm_up(missing, unusable, kept):
    bank = BandBank(PLAN, 4)
    rng = np.random.default_rng(6)
    for _ in range(300):
        bank.update(rng.normal(size=4) + 1e3, ALL, 0)
    for frame in range(unusable):
        bank.update(np.full(4, np.nan), ALL, 0 if frame else missing)
    power = bank.update(rng.normal(size=4), ALL, 0 if unusable else missing)
    assert np.isfinite(power).all() == kept
    assert bank.held.tolist() == ([missing + unusable] * 4 if kept else [0] * 4)
    if kept:
        return
    fresh = BandBank(PLAN, 4)
    fresh.update(np.zeros(4), ALL, 0)
    for t in range(2, 300):
        sample = rng.normal(size=4)
        power, expected = bank.update(sample, ALL, 0), fresh.update(sample, ALL, 0)
        assert np.isnan(power).tolist() == [[t < window for window in WINDOWS]] * 4
        if t > 256:  # the first samples differed
            np.testing.assert_allclose(power, expected, rtol=1e-10)


def test_nothing_can_be_held_before_the_first_good_sample():
    bank = BandBank(PLAN, 4)
    sample, good = np.full(4, 7.0), ALL.copy()
    sample[0], good[1] = np.nan, False
    for _ in range(40):
        power = bank.update(sample, good, 0)
    assert np.isnan(power[:2]).all()
    assert bank.count.tolist() == [0, 0, 40, 40]
    assert bank.held.tolist() == [0, 0, 0, 0]
    for _ in range(32):
        power = bank.update(np.full(4, 7.0), ALL, 0)
    assert power[:2, 4].tolist() == pytest.approx([0.0, 0.0], abs=1e-20)


def test_reset_is_as_new():
    rng = np.random.default_rng(7)
    used, fresh = BandBank(PLAN, 4, 2), BandBank(PLAN, 4, 2)
    for _ in range(123):
        used.update(rng.normal(size=4), rng.random(4) < 0.9, 0)
    used.reset()
    for sample in rng.normal(size=(400, 4)):
        np.testing.assert_array_equal(used.update(sample, ALL, 0), fresh.update(sample, ALL, 0))
    assert used.held.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("samples", "good", "missing", "what"),
    [
        (np.zeros(4, np.float32), ALL, 0, "signals: .*float32"),
        (np.zeros(3), ALL, 0, r"signals: .*\(3,\)"),
        (np.zeros((4, 1)), ALL, 0, r"signals: .*\(4, 1\)"),
        (np.zeros(8)[::2], ALL, 0, "signals: .*strides"),
        (np.zeros(4), np.ones(4), 0, "good: .*float64"),
        (np.zeros(4), np.ones(8, bool)[::2], 0, "good: .*strides"),
        (np.zeros(4), ALL, -1, "missing: -1"),
    ],
)
def test_input_of_the_wrong_kind_is_refused_and_changes_nothing(samples, good, missing, what):
    bank = BandBank(PLAN, 4)
    with pytest.raises(InputError, match=what):
        bank.update(samples, good, missing)
    assert bank.count.tolist() == [0] * 4


def test_a_bank_of_nothing_is_refused():
    with pytest.raises(InputError, match="n_taps: 0"):
        BandBank(PLAN, 0)
    with pytest.raises(InputError, match="segments: 0"):
        BandBank(PLAN, 1, 0)
