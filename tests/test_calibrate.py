"""Calibration and monitoring of the real ResNet8 on real images, without any special case."""

import os
from pathlib import Path

import models
import msgspec
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from edge_monitor.band_plan import BandPlan
from edge_monitor.config import CalibrationSettings, FrameSettings
from edge_monitor.errors import InputError
from edge_monitor.fault_head import n_inputs
from edge_monitor.map_file import from_bytes, to_bytes
from edge_monitor.offline.baselines import band_powers, most_dead_rows
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.observe import (
    FIT_SHARE,
    LEAST_FRAMES,
    N_SCENES,
    SCENE_BYTES,
    SCENE_FRAMES,
    SCENE_LEAD,
    Images,
    observe,
    scene_onsets,
    silent,
)
from edge_monitor.offline.scene import BEFORE
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import Impact
from edge_monitor.reports import CHANNELS, FlagStatus, HealthState
from edge_monitor.service import Watch, open_probe
from edge_monitor.sources.frames import FrameSource

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MODEL = DATA / "mlperf_tiny" / "resnet8_float.onnx"
needs_data = pytest.mark.skipif(not MODEL.is_file(), reason=f"no ResNet8 in EDGE_MONITOR_DATA ({DATA})")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Rows of a small network over 1200 random frames."""
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "model.onnx").write_bytes(models.residual_cnn())
    rng = np.random.default_rng(4)
    np.save(folder / "frames.npy", rng.random((1200, 3, 16, 16), dtype=np.float32))
    return observe(folder / "model.onnx", FrameSettings(frames=str(folder / "frames.npy")))


@pytest.fixture(scope="module")
def region_map(clean):
    return calibrate(clean)


def test_baselines_are_medians_of_the_fitted_part(clean, region_map):
    counts = region_map.taps[1].voxel_counts()
    first = region_map.taps[0].n_voxels
    part = slice(first, first + counts.size)
    sums = np.stack([row.spatial.voxels[part] for row in clean.rows[: region_map.provenance.frames_fit]])
    var = sums[..., 2] / counts - (sums[..., 1] / counts) ** 2
    density = sums[..., 0] / counts + 0.1 * np.log(var + 1e-6)
    np.testing.assert_allclose(region_map.fmri.median[part], np.median(density, axis=0), rtol=1e-9)


def test_clean_scores_have_median_z_zero(clean, region_map):
    monitor = Monitor(region_map)
    z = np.stack([monitor.step(row).regions.z for row in clean.rows[: region_map.provenance.frames_fit]])
    np.testing.assert_allclose(np.median(z, axis=0), 0.0, atol=1e-9)


def louder(clean, first, factor):
    """The same rows, from ``first`` on with larger activations."""
    rows = [
        row
        if i < first
        else msgspec.structs.replace(
            row,
            signals=row.signals * factor,
            spatial=msgspec.structs.replace(row.spatial, voxels=row.spatial.voxels * factor),
        )
        for i, row in enumerate(clean.rows)
    ]
    return msgspec.structs.replace(clean, rows=rows)


def assert_same_numbers(a, b, *but):
    for name in a.__struct_fields__:
        if name not in but:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_rows_that_set_the_thresholds_fit_nothing_else(clean, region_map):
    """40 % of the rows fit, the next 40 % tune."""
    origin = region_map.provenance
    assert (origin.frames_fit, origin.frames_held_out) == (480, 480)
    changed = calibrate(louder(clean, origin.frames_fit, 1.2))
    assert_same_numbers(changed.fmri, region_map.fmri)
    assert_same_numbers(changed.residual, region_map.residual)
    assert_same_numbers(changed.eeg, region_map.eeg, "state_mix", "profile_accuracy")
    spatial = CHANNELS.index("spatial")
    assert (changed.evidence.quantiles[spatial] > region_map.evidence.quantiles[spatial]).all()


def test_the_last_rows_tune_nothing_and_are_judged(clean, region_map):
    """Whatever is wrong with them is an alarm, and is said when it is more than the budget."""
    assert region_map.evidence.judge_hours == pytest.approx(240 / 30 / 3600)
    assert region_map.evidence.judge_alarms == region_map.evidence.held_out_alarms == 0
    changed = calibrate(louder(clean, 960 + 70, 3.0))
    assert_same_numbers(changed.evidence, region_map.evidence, "judge_alarms")
    assert_same_numbers(changed.crossmodal, region_map.crossmodal)
    assert changed.evidence.judge_alarms > 0
    told = f"{changed.evidence.judge_alarms} false alarms in 0.00 h of clean frames that tuned nothing"
    assert any(told in remark for remark in changed.provenance.warnings)
    assert not any("that tuned nothing" in remark for remark in region_map.provenance.warnings)


def test_a_smaller_budget_raises_every_threshold(clean, region_map):
    loose = calibrate(clean, CalibrationSettings(alarms_per_hour=500.0))
    known = np.isfinite(region_map.evidence.threshold)
    assert_array_equal(np.isfinite(loose.evidence.threshold), known)
    assert (loose.evidence.threshold[known] < region_map.evidence.threshold[known]).all()


def test_channels_of_which_nothing_is_heard_are_off(region_map):
    """No speed, hence no stall; no scenes to break, hence no head; too short a stream for the shift."""
    off = np.isnan(region_map.evidence.threshold).all(axis=1)
    names = {channel for channel, is_off in zip(CHANNELS, off, strict=True) if is_off}
    assert {"stall", "faults", "shift"} <= names <= {"stall", "faults", "shift", "tracts"}
    assert region_map.faults is None


def test_a_line_is_measured_over_its_own_clean_spectrum(clean, region_map):
    """Median 0 and scale 1 on the rows that were fitted, for every tap."""
    monitor, n_fit = Monitor(region_map), region_map.provenance.frames_fit
    z = np.array([monitor.step(row).bands.line for row in clean.rows[:n_fit]])[63 + 24 :]
    assert_allclose(np.median(z, axis=0), 0.0, atol=0.02)
    assert_allclose(1.4826 * np.median(np.abs(z), axis=0), 1.0, atol=0.05)
    assert np.isfinite(region_map.eeg.line_level).all()


def test_a_region_is_bright_near_the_top_of_what_its_colour_had(clean, region_map):
    first, counts = region_map.taps[0].n_voxels, region_map.taps[0].voxel_counts()
    means = np.array([row.spatial.voxels[:first, 1] / counts for row in clean.rows[:480]])
    for colour in range(3):
        own = slice(16 * colour, 16 * (colour + 1))
        low, high = means[:, own].min(), means[:, own].max()
        assert_allclose(region_map.fmri.bright[own], low + 0.955 * (high - low), rtol=1e-12)
    assert np.isnan(region_map.fmri.bright[first:]).all()


def watched(folder, change):
    """Rows over frames that were changed, their map, and what the monitor says of them."""
    (folder / "model.onnx").write_bytes(models.residual_cnn())
    frames = 0.9 * np.random.default_rng(1).random((600, 3, 16, 16), dtype=np.float32)
    change(frames)
    np.save(folder / "frames.npy", frames)
    observed = observe(folder / "model.onnx", FrameSettings(frames=str(folder / "frames.npy")))
    known = calibrate(observed)
    monitor = Monitor(known)
    return known, np.array([monitor.step(row).evidence.overexposed for row in observed.rows])


def constant_colour(frames):
    frames[:, 2] = 0.5


def white_regions(frames):
    frames[:, :, :8] = 1.0


def often_white(frames):
    for first in range(0, len(frames), 100):
        frames[first : first + 10, :, :8] = 1.0


def seldom_white(frames):
    frames[[100, 300, 550], :, :8] = 1.0


@pytest.mark.parametrize("change", [constant_colour, white_regions, often_white])
def test_what_is_always_or_often_bright_is_not_overexposed(tmp_path, change):
    """No region's brightness may switch thresholds that clean frames hardly set."""
    known, overexposed = watched(tmp_path, change)
    on = {
        name for name, row in zip(CHANNELS, known.evidence.threshold, strict=True) if np.isfinite(row).all()
    }
    assert {"residual", "spatial", "temporal", "line", "output"} <= on
    assert not overexposed.any()


def test_what_is_seldom_bright_is_overexposed(tmp_path):
    _, overexposed = watched(tmp_path, seldom_white)
    assert_array_equal(np.flatnonzero(np.diff(overexposed)) + 1, [100, 145, 300, 345, 550, 595])


def test_guards_are_no_false_alarms_of_the_evidence(clean, region_map):
    """A slow workstation misses every deadline: that is no fault of a threshold."""
    slow = [msgspec.structs.replace(row, latency_ns=50_000_000) for row in clean.rows]
    found = calibrate(msgspec.structs.replace(clean, rows=slow))
    assert_same_numbers(found.evidence, region_map.evidence)
    assert found.evidence.held_out_alarms == found.evidence.judge_alarms == 0
    monitor = Monitor(found)
    reports = [monitor.step(row) for row in slow[:120]]
    raised = {flag.code for flag in reports[-1].flags if flag.status is FlagStatus.CONFIRMED}
    assert raised == {"LATENCY_HIGH"}


def test_rows_of_a_device_keep_its_bands(clean, region_map):
    recorded = msgspec.structs.replace(clean, workstation=region_map)
    with pytest.raises(InputError, match=r"^bands: .*hz.*nyquist"):
        calibrate(recorded, CalibrationSettings(bands="hz"))


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 512, 512), (3, 32, 32)])
def test_scenes_stay_within_their_memory(shape):
    """Whole frames are kept, whatever part of them the monitor looks at; each also as seen once more."""
    total, size = 200_000, int(np.prod(shape))
    onsets = scene_onsets(total, size)
    assert len(onsets) * (BEFORE + 2 * SCENE_FRAMES) * 4 * size <= SCENE_BYTES
    assert len(onsets) == min(N_SCENES, SCENE_BYTES // ((BEFORE + 2 * SCENE_FRAMES) * 4 * size)) > 0
    assert onsets == sorted(set(onsets))
    assert onsets[-1] + SCENE_FRAMES <= FIT_SHARE * total


def test_one_scene_more_than_the_fewest_frames():
    assert scene_onsets(LEAST_FRAMES, 1) == [SCENE_LEAD + BEFORE]
    assert scene_onsets(LEAST_FRAMES - 1, 1) == []


def test_scenes_are_those_of_the_frames_that_the_model_takes(tmp_path, monkeypatch):
    """Not of the points that the monitor looks at: a picture of 70 rows is sampled at every second one."""
    g = models._Graph(4)
    g.node("Flatten", ["input"], "flat")
    g.gemm("flat", "u", 350, 3)
    g.node("Relu", ["u"], "out")
    g.gemm("out", "answer", 3, 2)
    (tmp_path / "model.onnx").write_bytes(g.model([("input", [1, 1, 70, 5])], [("answer", [1, 2])]))
    np.save(tmp_path / "frames.npy", np.random.default_rng(0).random((1500, 1, 70, 5), dtype=np.float32))
    one = (BEFORE + 2 * SCENE_FRAMES) * 4 * 350
    monkeypatch.setattr("edge_monitor.offline.observe.SCENE_BYTES", one * 3 // 2)
    observed = observe(tmp_path / "model.onnx", FrameSettings(frames=str(tmp_path / "frames.npy")))
    assert observed.taps[0].shape == (1, 35, 5)
    assert len(observed.scenes) == 1


def test_views_disagree_below_nine_tenths_of_the_least_clean_agreement(clean, region_map):
    monitor = Monitor(region_map)
    seen = [monitor.step(row).consistency.agreement for row in clean.rows[480:960]]
    least = min(agreement for agreement in seen if agreement is not None)
    assert region_map.crossmodal.least_agreement == pytest.approx(0.9 * least)


def test_rows_of_a_device_keep_what_only_the_workstation_can_tell(clean, region_map):
    """Tracts, ridge and impact stay; baselines and thresholds are the device's."""
    n_voxels, n_taps = region_map.fmri.median.size, len(region_map.taps)
    impact = Impact(
        *(np.linspace(0, 1, n_voxels) for _ in range(3)),
        *(np.ones(n_taps - 1) for _ in range(3)),
        np.array([4.0]),
        np.ones((1, n_voxels)),
        "accuracy",
        images=8,
        evaluations=9,
        seed=0,
    )
    workshop = msgspec.structs.replace(region_map.provenance.workstation, machine="workshop")
    origin = msgspec.structs.replace(region_map.provenance, workstation=workshop)
    known = msgspec.structs.replace(region_map, impact=impact, provenance=origin)
    louder = [
        msgspec.structs.replace(
            row, spatial=msgspec.structs.replace(row.spatial, voxels=row.spatial.voxels * 1.1)
        )
        for row in clean.rows
    ]
    recorded = msgspec.structs.replace(
        clean,
        rows=louder,
        images=Images(clean.images.frames[:0], np.empty((0, 0, 3))),
        device=msgspec.structs.replace(clean.device, machine="device"),
        workstation=known,
    )
    found = calibrate(recorded)
    assert found.impact is impact
    assert (found.provenance.workstation.machine, found.provenance.device.machine) == ("workshop", "device")
    assert found.provenance.workstation_source == known.provenance.source != ""
    for section, kept, fitted in (
        ("tracts", ("strength", "fidelity", "gate", "problems", "images"), ("median", "active")),
        ("residual", ("floor", "low", "high", "weights"), ("whitening", "limit")),
        ("fmri", (), ("median",)),
    ):
        before, after = getattr(known, section), getattr(found, section)
        for name in kept:
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
        for name in fitted:
            assert not np.array_equal(getattr(after, name), getattr(before, name), equal_nan=True), name


def test_short_data_is_said_in_plain_words(region_map):
    assert any("thresholds are extrapolated" in remark for remark in region_map.provenance.warnings)


def test_repeated_frames_are_said(clean, region_map):
    """From all rows, those of the judged part too."""
    rows = [
        msgspec.structs.replace(row, fingerprint=clean.rows[i % 1100].fingerprint)
        for i, row in enumerate(clean.rows)
    ]
    told = calibrate(msgspec.structs.replace(clean, rows=rows)).provenance.warnings
    assert any("100 of 1200 frames repeat an earlier one" in remark for remark in told)
    assert not any("repeat" in remark for remark in region_map.provenance.warnings)


def test_constant_voxels_are_left_out_and_said(clean):
    dead = [
        msgspec.structs.replace(
            row, spatial=msgspec.structs.replace(row.spatial, voxels=np.full_like(row.spatial.voxels, 2.0))
        )
        for row in clean.rows
    ]
    region_map = from_bytes(to_bytes(calibrate(msgspec.structs.replace(clean, rows=dead))))
    assert np.isnan(region_map.fmri.scale).all()
    assert any("never varied" in remark for remark in region_map.provenance.warnings)
    report = Monitor(region_map).step(clean.rows[0])
    assert report.regions.score is None


def test_too_few_and_non_finite_rows_are_refused(clean):
    with pytest.raises(InputError, match="50 frames; calibration needs at least"):
        calibrate(msgspec.structs.replace(clean, rows=clean.rows[:50]))
    bad = msgspec.structs.replace(clean.rows[3], nonfinite=np.ones_like(clean.rows[3].nonfinite))
    with pytest.raises(InputError, match="frame 3 gives NaN or Inf"):
        calibrate(msgspec.structs.replace(clean, rows=[*clean.rows[:3], bad, *clean.rows[4:]]))
    blind = [msgspec.structs.replace(row, spatial=None) for row in clean.rows]
    with pytest.raises(InputError, match="none of the first 480 frames has voxel sums"):
        calibrate(msgspec.structs.replace(clean, rows=blind))


@pytest.mark.parametrize("budget", [0.0, -1.0, np.nan, np.inf])
def test_a_budget_that_makes_no_sense_is_refused(budget):
    with pytest.raises(ValueError, match=f"alarms_per_hour is {budget}"):
        CalibrationSettings(alarms_per_hour=budget)


def test_bands_see_a_gap_that_only_the_clock_shows(clean, region_map):
    """Baselines treat a gap as the monitor does: no window reaches over it."""
    pause_ns = 10**10
    rows = [
        msgspec.structs.replace(row, t_capture_ns=row.t_capture_ns + pause_ns * (i >= 300))
        for i, row in enumerate(clean.rows)
    ]
    plan = BandPlan.make("nyquist", clean.frame_rate_hz)
    powers, lines = band_powers(rows, plan, clean.taps, silent)
    monitor = Monitor(region_map)
    for i, row in enumerate(rows[:600]):
        np.testing.assert_array_equal(powers[i], monitor.step(row).bands.power, err_msg=str(i))
    for values, window in ((powers[..., -1], 32), (lines, 64)):
        known = np.isfinite(values[:500]).all(axis=tuple(range(1, values.ndim)))
        assert_array_equal(known, [(i if i < 300 else i - 300) >= window - 1 for i in range(500)])


def drive(folder, name, n, dark_from=None):
    """Rows over a strip that passes by, with noise; black from one frame on."""
    rng = np.random.default_rng(1)
    strip = 0.8 * rng.random((3, 16, 400), dtype=np.float32)
    frames = np.stack([strip[:, :, i // 4 : i // 4 + 16] for i in range(n)])
    frames[dark_from or n :] = 0.0
    np.save(folder / name, frames + 0.1 * rng.random(frames.shape, dtype=np.float32))
    return observe(folder / "model.onnx", FrameSettings(frames=str(folder / name)))


def test_a_long_stream_trains_a_fault_head(tmp_path):
    """Two scenes of it are broken; the head is in the map, speaks, and stays with rows of a device."""
    (tmp_path / "model.onnx").write_bytes(models.residual_cnn())
    observed = drive(tmp_path, "clean.npy", 1500)
    assert len(observed.scenes) == 2
    region_map = from_bytes(to_bytes(calibrate(observed)))
    assert "blackout" in region_map.faults.names
    assert region_map.faults.mean.size == n_inputs(region_map.taps)
    assert np.isfinite(region_map.evidence.threshold[CHANNELS.index("faults")]).all()
    monitor = Monitor(region_map)
    guesses = [monitor.step(row).guess for row in drive(tmp_path, "dark.npy", 500, dark_from=400).rows]
    scores = np.array([np.nan if guess.score is None else guess.score for guess in guesses])
    assert np.isnan(scores[:89]).all()
    assert np.median(scores[410:]) > np.median(scores[100:400]) + 2.0  # two scenes teach no more than that
    device = msgspec.structs.replace(observed, scenes=(), workstation=region_map)
    assert calibrate(device).faults is region_map.faults


@needs_data
def test_resnet8_is_calibrated_and_monitored_at_full_accuracy(tmp_path):
    settings = FrameSettings(frames=str(DATA / "cifar10_calibration_2000.npz"))
    region_map = calibrate(observe(MODEL, settings))
    assert [len(tap.shape) for tap in region_map.taps] == [3] * 4
    assert np.isfinite(region_map.fmri.scale).all()
    assert region_map.eeg.profile_accuracy == 1.0
    test = DATA / "cifar10_test_500.npz"
    with np.load(test) as archive:
        labels = archive["labels"]
    watch = Watch(Monitor(region_map), [])
    probe = open_probe(MODEL, region_map, watch)
    name = probe.get_inputs()[0].name
    frames = FrameSource(FrameSettings(frames=str(test)), region_map.input_shape)
    answers = []
    for frame in frames:
        probe.note(t_capture_ns=frame.t_capture_ns)
        answers.append(int(np.argmax(probe.run(None, {name: frame.array})[0])))
    assert (np.array(answers) == labels).mean() == 0.89
    assert probe.attached
    assert probe.unobserved == 0
    assert watch.monitor.report.frame == 499
    assert watch.monitor.report.state is HealthState.OK


@pytest.mark.parametrize(
    ("counts", "most"),
    [
        ((0, 3, 3, 3, 0, 1), 0),
        ((2, 3, 5, 4, 2, 1), 2),
        ((9, 9), 0),
        ((0, 5) * 20, 5),  # every other frame confirms, too: the counter climbs faster than it falls
        ((0, 0, 5) * 20, 0),
    ],
)
def test_rows_that_are_dead_for_as_long_as_their_flag_takes_are_clean(clean, counts, most):
    rows = []
    for row, count in zip(clean.rows, counts, strict=False):
        picture = row.picture.copy()
        picture[-4] = count
        rows.append(msgspec.structs.replace(row, picture=picture))
    assert most_dead_rows(rows) == most
