"""Calibration and monitoring of the real ResNet8 on real images, without any special case."""

import os
from pathlib import Path

import models
import msgspec
import numpy as np
import pytest

from edge_monitor.config import CalibrationSettings, FrameSettings
from edge_monitor.eeg import BandPlan
from edge_monitor.errors import InputError
from edge_monitor.map_file import from_bytes, to_bytes
from edge_monitor.offline.baselines import band_powers
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.observe import Images, observe, silent
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import Impact
from edge_monitor.service import Watch, open_probe
from edge_monitor.sources.frames import FrameSource
from edge_monitor.types import CHANNELS, HealthState

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MODEL = DATA / "mlperf_tiny" / "resnet8_float.onnx"
needs_data = pytest.mark.skipif(not MODEL.is_file(), reason=f"no ResNet8 in EDGE_MONITOR_DATA ({DATA})")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Rows of a small network over 1200 random frames."""
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "model.onnx").write_bytes(models.residual_cnn())
    rng = np.random.default_rng(1)
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


def test_thresholds_come_from_the_held_out_part_alone(clean):
    """Changing fitted rows changes no threshold's data; changing held-out rows does not move baselines."""
    n_fit = calibrate(clean).provenance.frames_fit
    louder = [
        row if i < n_fit else msgspec.structs.replace(row, signals=row.signals * 1.5)
        for i, row in enumerate(clean.rows)
    ]
    changed = calibrate(msgspec.structs.replace(clean, rows=louder))
    original = calibrate(clean)
    np.testing.assert_array_equal(changed.eeg.mean, original.eeg.mean)
    temporal = CHANNELS.index("temporal")
    np.testing.assert_array_equal(changed.evidence.quantiles, original.evidence.quantiles)
    assert changed.evidence.threshold[temporal] > original.evidence.threshold[temporal]


def test_a_smaller_budget_raises_every_threshold(clean, region_map):
    strict = calibrate(clean, CalibrationSettings(alarms_per_hour=0.01))
    assert (strict.evidence.threshold > region_map.evidence.threshold).all()


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
    with pytest.raises(InputError, match="none of the first 720 frames has voxel sums"):
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
    powers = band_powers(rows, plan, clean.taps, silent)
    monitor = Monitor(region_map)
    for i, row in enumerate(rows[:600]):
        np.testing.assert_array_equal(powers[i], monitor.step(row).bands.power, err_msg=str(i))
    assert np.isnan(powers[300]).all()


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
