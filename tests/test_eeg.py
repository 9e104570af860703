"""Band powers, states and signatures: against SciPy, against the slow twin, and on tones."""

import os
from fractions import Fraction

import naive
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import welch

from edge_monitor.eeg import (
    EDGES_HZ,
    LINE,
    LINE_BINS,
    WINDOWS,
    BandBank,
    BandPlan,
    EegTracker,
    log_powers,
    nearest_profile,
)
from edge_monitor.errors import InputError, MapError
from edge_monitor.kernels.line import WINDOW as LINE_WINDOW
from edge_monitor.region_map import EegBaseline
from edge_monitor.types import BANDS, STATES

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
# At the fractions an edge lies on a bin, and division in floats slips to the bin above.
RATES = ["7", "10", "16", "2048/49", "1664/45", "960/13", "29.97", "30", "60", "100", "200", "256", "1000"]
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


# The plan


@pytest.mark.parametrize("scale", ["nyquist", "hz"])
@pytest.mark.parametrize("rate", RATES)
def test_bins_are_exactly_those_within_the_edges(scale, rate):
    plan = BandPlan.make(scale, float(Fraction(rate)))
    stretch = Fraction(rate) / 200 if scale == "nyquist" else 1
    for band, window in enumerate(WINDOWS):
        edges = [Fraction(edge) * stretch for edge in EDGES_HZ[band]]
        expected = naive.band_bins(edges, window, Fraction(rate), top=band == 4)
        assert list(range(*plan.bins[band])) == expected
        assert plan.observable[band] == bool(expected)
        assert plan.edges_hz[band] == pytest.approx([float(edge) for edge in edges])


def test_gamma_ends_at_nyquist_and_hz_keeps_what_a_camera_can_see():
    assert PLAN.edges_hz[-1].tolist() == pytest.approx([4.5, 15.0])
    assert PLAN.bins[-1, 1] == 17
    assert PLAN.observable.all()
    assert BandPlan.make("hz", 30.0).observable.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("scale", "rate"), [("Nyquist", 30.0), ("hz", 0.0), ("hz", -1.0), ("hz", np.nan), ("hz", np.inf)]
)
def test_a_plan_that_makes_no_sense_is_refused(scale, rate):
    with pytest.raises(InputError, match="Nyquist" if scale == "Nyquist" else "frame rate"):
        BandPlan.make(scale, rate)


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


# The tracker


def flat_baseline(n_taps, level=0.0, scale_mode="nyquist"):
    """Every band's clean log power is ``level`` +- 1."""
    one = np.ones((n_taps, len(BANDS)))
    line = np.tile([1e-9, 1.5, 0.5], (n_taps, 1))
    return EegBaseline(
        scale_mode, 1e-12 * one, level * one, one, one, one, one, 1.0, np.zeros((n_taps, LINE_BINS)), line
    )


@pytest.mark.parametrize(("band", "hz"), [(0, 2.0), (1, 6.0), (2, 10.5), (3, 20.0), (4, 60.0), (4, 100.0)])
def test_a_tone_names_its_band_within_two_windows(band, hz):
    tracker = EegTracker(flat_baseline(1, -8.0), 1, 200.0)
    rng = np.random.default_rng(8)
    good = np.ones(1, bool)

    def step(t, amplitude):
        tone = amplitude * np.cos(2 * np.pi * hz / 200.0 * t + 0.1)
        return tracker.update(np.array([3.0 + tone + 1e-3 * rng.normal()]), good, 0)

    for t in range(260):
        report = step(t, 0.0)
    assert STATES[report.state[0]] == "idle"
    for t in range(2 * WINDOWS[band]):
        report = step(t, 1.0)
    assert report.state[0] == band
    assert report.z[0].argmax() == band
    assert report.score == pytest.approx(np.abs(report.z).max())


def test_state_and_score_come_when_their_windows_are_full():
    tracker = EegTracker(flat_baseline(4), 4, 30.0)
    rng = np.random.default_rng(9)
    for t in range(1, 300):
        report = tracker.update(rng.normal(size=4), ALL, 0)
        assert (report.score is None) == (t < 32)
        assert (report.state == -1).all() == (t < 256)
        assert tracker.warm == (t >= 256)
    tracker.reset()
    assert not tracker.warm
    assert tracker.update(np.zeros(4), ALL, 0).score is None


def test_bands_without_baseline_or_beyond_nyquist_have_no_say():
    baseline = flat_baseline(4, scale_mode="hz")
    baseline.scale[0, :2] = np.nan  # dead slow bands: the tap is warm with alpha and beta
    baseline.scale[1] = np.nan
    tracker = EegTracker(baseline, 4, 30.0)
    for t in range(1, 257):
        report = tracker.update(np.random.default_rng(t).normal(size=4), ALL, 0)
        assert (report.state[0] == -1) == (t < 128)
    assert report.state[1] == -1
    assert tracker.warm
    assert np.isnan(report.z).tolist() == [
        [True, True, False, False, True],
        [True] * 5,
        *[[False] * 4 + [True]] * 2,
    ]
    assert np.isnan(report.power[:, 4]).all()


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


@pytest.mark.parametrize("hz", [1.5, 4.0, 7.3, 12.0, 15.0])
def test_one_frequency_is_a_line_and_noise_or_a_cut_is_none(hz):
    """z of the tap in which it is; the other tap has its noise, and both see the cut."""
    tracker, rng = EegTracker(flat_baseline(2), 2, 30.0), np.random.default_rng(13)

    def swing(frames, amplitude, level=3.0):
        for t in frames:
            samples = level + 0.1 * rng.normal(size=2)
            samples[1] += amplitude * np.cos(2 * np.pi * hz / 30.0 * t + 0.1)
            yield tracker.update(samples, np.ones(2, bool), 0)

    quiet = list(swing(range(300), 0.0))
    for t, report in enumerate(quiet, 1):
        assert (report.line_score is None) == (t < LINE_WINDOW)
        assert np.isnan(report.line).all() == (t < LINE_WINDOW)
    usual = max(report.line_score for report in quiet[LINE_WINDOW:])
    cut = max(report.line_score for report in swing(range(100), 0.0, level=9.0))
    tone = list(swing(range(100), 1.0))[-1]
    assert tone.line[1] == tone.line_score > usual + 4
    assert tone.line[0] < usual + 1
    assert cut < tone.line_score


def test_the_line_is_unknown_after_a_long_gap_and_after_a_reset():
    tracker, rng = EegTracker(flat_baseline(4), 4, 30.0), np.random.default_rng(14)
    for _ in range(100):
        report = tracker.update(rng.normal(size=4), ALL, 0)
    assert report.line_score is not None
    assert tracker.update(rng.normal(size=4), ALL, 4).line_score is None
    for t in range(2, 100):
        assert (tracker.update(rng.normal(size=4), ALL, 0).line_score is None) == (t < LINE_WINDOW)
    tracker.reset()
    fresh = EegTracker(flat_baseline(4), 4, 30.0)
    for sample in rng.normal(size=(80, 4)):
        first, second = tracker.update(sample, ALL, 0), fresh.update(sample, ALL, 0)
        np.testing.assert_array_equal(first.line, second.line)
        np.testing.assert_array_equal(first.structure, second.structure)


def test_a_tap_that_is_nan_has_no_line_for_as_long_as_its_window_knows():
    tracker, rng = EegTracker(flat_baseline(4), 4, 30.0), np.random.default_rng(15)
    for t in range(200):
        samples = rng.normal(size=4)
        if 100 <= t < 104:
            samples[2] = np.nan
        report = tracker.update(samples, ALL, 0)
        known = np.isfinite(report.line).tolist()
        late = t >= LINE_WINDOW - 1
        assert known == [late, late, late and not 103 <= t < 103 + LINE_WINDOW, late]


def test_a_report_is_never_written_again():
    tracker = EegTracker(flat_baseline(4), 4, 30.0)
    rng = np.random.default_rng(10)
    reports = [tracker.update(rng.normal(size=4), ALL, 0) for _ in range(300)]
    arrays = [(r.power, r.z, r.state, r.held, r.line, r.structure) for r in reports[-3:]]
    before = [[array.copy() for array in one] for one in arrays]
    tracker.update(np.full(4, np.nan), ALL, 0)
    for one, kept in zip(arrays, before, strict=True):
        for now, then in zip(one, kept, strict=True):
            np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("floor", np.zeros((4, 5)), "eeg.floor: 0.0"),
        ("scale", np.zeros((4, 5)), "eeg.scale: 0.0"),
        ("mean", np.zeros((3, 5)), r"eeg.mean: shape \(3, 5\)"),
        ("line", np.ones((4, 2)), r"eeg.line: shape \(4, 2\) is not \(4, 3\)"),
        ("line_level", np.ones((4, 30)), r"eeg.line_level: shape \(4, 30\) is not \(4, 31\)"),
    ],
)
def test_a_useless_baseline_is_refused(field, value, message):
    fields = {name: getattr(flat_baseline(4), name) for name in EegBaseline.__struct_fields__}
    with pytest.raises(MapError, match=message):
        EegTracker(EegBaseline(**{**fields, field: value}), 4, 30.0)


# Signatures


def test_a_layer_is_known_by_its_profile():
    """Against a Gaussian classifier's distance, written out; covariances with strong common movement."""
    rng = np.random.default_rng(11)
    mean = rng.normal(size=(6, 5))
    roots = rng.normal(size=(6, 5, 5))
    covariance = roots @ roots.transpose(0, 2, 1) + 4.0 + 0.1 * np.eye(5)
    for _ in range(50):
        profile = rng.normal(size=5)
        distances = [
            (profile - m) @ np.linalg.inv(c) @ (profile - m) for m, c in zip(mean, covariance, strict=True)
        ]
        assert nearest_profile(profile, mean, covariance) == int(np.argmin(distances))


def test_bands_that_move_together_are_one_hint():
    """All bands 2 up is what a busy scene does to tap 0; band by band tap 1 would look nearer."""
    mean = np.array([np.zeros(3), np.full(3, 3.0)])
    covariance = np.stack([np.eye(3) * 0.1 + 1.0, np.eye(3) * 0.1 + 0.05])
    assert nearest_profile(np.full(3, 2.0), mean, covariance) == 0


def test_profiles_are_compared_over_the_bands_both_know():
    mean = np.array([[0.0, 0.0, np.nan], [1.0, 1.0, 1.0]])
    covariance = np.tile(np.eye(3), (2, 1, 1))
    covariance[0, 2] = covariance[0, :, 2] = np.nan
    # Distances 0.5 over two bands against 1 over three; as sums tap 1 would not lose so clearly.
    assert nearest_profile(np.array([0.0, 1.0, 3.0]), mean, covariance) == 0
    assert nearest_profile(np.array([np.nan, np.nan, 3.0]), mean, covariance) == 1
    assert nearest_profile(np.full(3, np.nan), mean, covariance) is None


def test_log_powers_keep_silence_finite_and_nan_unknown():
    logs = log_powers(np.array([[0.0, 1.0, np.nan]]), np.full((1, 3), 1e-6))
    np.testing.assert_allclose(logs, [[np.log(1e-6), np.log(1 + 1e-6), np.nan]])
