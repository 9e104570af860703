"""The shipped demo: what the README promises, on trips that neither training nor calibration has seen."""

import json
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edge_monitor.band_bank import BandBank
from edge_monitor.band_plan import BandPlan
from edge_monitor.eeg import log_powers, nearest_profile
from edge_monitor.map_file import load_region_map
from edge_monitor.pipeline import Monitor
from edge_monitor.reports import STATES, FlagStatus
from edge_monitor.service import Watch, open_probe
from edge_monitor.sources.camera_faults import camera_fault
from edge_monitor.sources.recording import RecordingReader
from edge_monitor.sources.scenes import Road
from edge_monitor.types import BANDS

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "edge_monitor" / "data" / "demo_model.onnx"
UNSEEN = (2000, 2001, 2002)
TEN_MINUTES = 18_000


@pytest.fixture(scope="module")
def region_map():
    return load_region_map(MODEL.with_name("demo_map.npz"))


def drive(region_map, seed, frames, fault=None, start=0):
    """Yield the report of every frame of a trip; ``fault`` begins at frame ``start``."""
    watch = Watch(Monitor(region_map), [])
    probe = open_probe(MODEL, region_map, watch)
    spoil = camera_fault(fault, seed) if fault else None
    for scene in islice(Road(seed), frames):
        image = spoil(scene.image, scene.index >= start) if spoil else scene.image
        probe.note(t_capture_ns=scene.t_capture_ns, speed_mps=scene.speed_mps)
        probe.run(None, {"image": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)})
        assert probe.attached, probe.detach_reason
        yield watch.monitor.report


def confirmed(report):
    return {flag.code for flag in report.flags if flag.status is FlagStatus.CONFIRMED}


def test_the_script_says_what_it_promises(tmp_path):
    command = [sys.executable, ROOT / "tools" / "demo", "--fast", "--json", "--recordings", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {
        "frames",
        "faults",
        "false_alarms",
        "overhead_ratio",
        "step_us_p50",
        "recording",
        "model",
        "runtime",
    }
    faults = {fault["name"]: fault for fault in result["faults"]}
    assert faults["freeze"]["flag"] == "INPUT_FROZEN"
    assert faults["freeze"]["delay_frames"] <= 3
    assert faults["blackout"]["flag"] is not None
    assert faults["blackout"]["delay_frames"] <= 30
    assert result["false_alarms"] == 0
    assert Path(result["recording"]).is_file()
    again = subprocess.run(
        [sys.executable, "-m", "edge_monitor.cli", "replay", result["recording"], "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    replayed = json.loads(again.stdout)
    assert replayed["identical"] == replayed["compared"] == result["frames"]


def test_ctrl_c_ends_the_script_with_a_whole_recording(tmp_path):
    command = [sys.executable, ROOT / "tools" / "demo", "--recordings", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "WARMING" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    (recording,) = tmp_path.glob("*.mcap")
    assert str(recording) in err
    reader = RecordingReader(recording)
    assert list(reader.items())
    assert not reader.truncated


def test_a_folder_that_holds_no_recordings_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, ROOT / "tools" / "demo", "--fast", "--recordings", tmp_path / "file"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("seed", UNSEEN)
@pytest.mark.parametrize("start", [300, 450, 611])
def test_a_freeze_is_flagged_within_three_frames(region_map, seed, start):
    for report in drive(region_map, seed, start + 3, "freeze", start):
        if "INPUT_FROZEN" in confirmed(report):
            break
    # Frame `start` is the first repeat: the fault holds the image before it.
    assert "INPUT_FROZEN" in confirmed(report)
    assert start <= report.frame < start + 3


@pytest.mark.parametrize("seed", UNSEEN)
@pytest.mark.parametrize("start", [300, 450, 611])
def test_a_blackout_is_flagged_within_thirty_frames(region_map, seed, start):
    before = set()
    for report in drive(region_map, seed, start + 30, "blackout", start):
        if report.frame < start:
            before |= confirmed(report)
        elif confirmed(report):
            break
    assert not before
    assert confirmed(report)


@pytest.mark.parametrize("seed", UNSEEN)
def test_ten_clean_minutes_of_an_unseen_trip_raise_no_flag(region_map, seed):
    raised = [
        (transition.code, transition.frame, transition.cause)
        for report in drive(region_map, seed, TEN_MINUTES)
        for transition in report.transitions
        if transition.after == "confirmed"
    ]
    assert raised == []


def test_clean_driving_gives_the_calibrated_mix_of_states(region_map):
    states = np.stack(
        [
            report.bands.state
            for seed in UNSEEN
            for report in drive(region_map, seed, 6000)
            if report.frame > 256
        ]
    )
    mix = np.stack([(states == s).mean(axis=0) for s in range(len(STATES))], axis=1)
    # Total variation distance of two distributions over five states.
    distance = 0.5 * np.abs(mix - region_map.eeg.state_mix).sum(axis=1)
    assert distance.max() < 0.1, distance


def test_a_nearest_profile_names_the_layer_on_unseen_trips(region_map):
    """Ten seconds of band powers name the layer in at least nine of ten cases."""
    plan = BandPlan.make("nyquist", 30.0)
    named = []
    for seed in UNSEEN:
        bank = BandBank(plan, len(region_map.taps))
        window = []
        watch_rows = []
        watch = Watch(Monitor(region_map), [])
        probe = open_probe(MODEL, region_map, watch)
        probe._on_row = watch_rows.append
        for scene in islice(Road(seed), 6256):
            image = np.ascontiguousarray(scene.image.transpose(2, 0, 1)[None], np.float32)
            probe.run(None, {"image": image})
            row = watch_rows.pop()
            power = bank.update(row.signals, np.ones(len(region_map.taps), bool), 0)
            if scene.index < 256:
                continue
            window.append(log_powers(power, region_map.eeg.floor))
            if len(window) == 300:
                profile = np.mean(window, axis=0)
                window.clear()
                named += [
                    nearest_profile(
                        profile[tap], region_map.eeg.profile_mean, region_map.eeg.profile_covariance
                    )
                    == tap
                    for tap in range(len(region_map.taps))
                ]
    assert len(named) == len(UNSEEN) * 20 * len(region_map.taps)
    assert np.mean(named) >= 0.9


@pytest.mark.parametrize("band", range(len(BANDS)))
def test_a_tone_in_a_band_gives_its_state_within_two_windows(region_map, band):
    """A signal of calibrated noise, then a tone at the band's middle with twenty times its amplitude."""
    from edge_monitor.eeg import EegTracker  # noqa: PLC0415

    plan = BandPlan.make(region_map.eeg.scale_mode, 30.0)
    tracker = EegTracker(region_map.eeg, len(region_map.taps), 30.0)
    n_taps = len(region_map.taps)
    rng = np.random.default_rng(band)
    power = np.nanmedian(np.exp(region_map.eeg.mean), axis=1)
    amplitude = np.sqrt(power)
    low, high = plan.edges_hz[band]
    tone_hz = np.sqrt(low * high) if band else (low + high) / 2
    good = np.ones(n_taps, bool)
    for _ in range(600):
        tracker.update(1.0 + amplitude * rng.standard_normal(n_taps), good, 0)
    for frame in range(2 * plan.windows[band]):
        tone = 20 * amplitude * np.sin(2 * np.pi * tone_hz / 30.0 * frame)
        bands = tracker.update(1.0 + tone + amplitude * rng.standard_normal(n_taps), good, 0)
    assert (bands.state == band).all(), bands.z
