"""Band states, lines and signatures of every tap, on tones and noise."""

import numpy as np
import pytest

from edge_monitor.band_plan import LINE_BINS, WINDOWS
from edge_monitor.eeg import EegTracker, log_powers, nearest_profile
from edge_monitor.errors import MapError
from edge_monitor.kernels.line import WINDOW as LINE_WINDOW
from edge_monitor.region_map import EegBaseline
from edge_monitor.reports import STATES
from edge_monitor.types import BANDS

ALL = np.ones(4, bool)


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
