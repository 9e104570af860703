"""A recording given to a monitor or a calibration again; whole runs of it are in test_cli.py."""

import models
import msgspec
import numpy as np
import pytest
from maps import minimal_map

from edge_monitor.errors import RecordingError
from edge_monitor.fault_head import n_inputs
from edge_monitor.map_file import to_bytes
from edge_monitor.offline.observe import observe_recording
from edge_monitor.offline.replay import Replay, replay
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import FaultHead, Runtime
from edge_monitor.sinks.recording import RecordingSink
from edge_monitor.types import SpatialBlock, StatRow, Tick

MODEL = models.cnn()
MAP = minimal_map(MODEL)
HERE = msgspec.to_builtins(Runtime.here())
N_TAPS = len(MAP.taps)


def record(path, metadata, lost=()):
    """Twenty rows and a tick; the inputs numbered in ``lost`` reach the monitor but not the recording."""
    monitor = Monitor(MAP)
    sink = RecordingSink(path, to_bytes(MAP), metadata, tuple(tap.name for tap in MAP.taps))
    rows = [
        StatRow(i, i * 33_333_333, 1_000_000, np.full(N_TAPS, 1.0 + i), np.zeros(N_TAPS, np.int64), i)
        for i in range(20)
    ]
    for i, item in enumerate([*rows, Tick(10**10)]):
        report = monitor.feed(item)
        if i in lost:
            sink.lost(1)
        else:
            sink.write(item, report)
    sink.close()
    return path


def test_replay_says_what_happened(tmp_path):
    replayed = replay(record(tmp_path / "x.mcap", {}))
    assert (replayed.compared, replayed.identical, replayed.truncated, replayed.lost) == (21, 21, False, 0)
    assert replayed.transitions[0] == "frame 0: HEALTH NEVER_SEEN->WARMING EEG windows are filling"
    assert "frame 19: NO_FRAMES inactive->confirmed no frame arrives" in replayed.transitions


def test_what_needs_the_picture_is_replayed_to_the_bit(tmp_path):
    """Shift, stall and fault head, with statistics that are not known yet at the beginning."""
    rng, n = np.random.default_rng(0), n_inputs(MAP.taps)
    hidden, output = rng.normal(0, 0.1, (n + 1, 4)), rng.normal(0, 1, (5, 3))
    head = FaultHead(("blur", "snow"), np.zeros(n), np.ones(n), hidden, output, None)
    residual = msgspec.structs.replace(MAP.residual, shift=rng.normal(size=MAP.residual.shift.size))
    region_map = msgspec.structs.replace(MAP, faults=head, residual=residual)
    counts = np.concatenate([tap.voxel_counts() for tap in MAP.taps])
    n_channels = sum(tap.n_channels for tap in MAP.taps)
    monitor = Monitor(region_map)
    names = tuple(tap.name for tap in MAP.taps)
    sink = RecordingSink(tmp_path / "x.mcap", to_bytes(region_map), {}, names)
    told = []
    for i in range(130):
        picture = rng.uniform(0.1, 1.0, MAP.taps[0].n_picture)
        picture[np.arange(picture.size) % 7 > i] = np.nan
        sums = counts * rng.uniform(0.5, 1.5, counts.size)
        block = SpatialBlock(
            1, np.ones(N_TAPS, bool), np.stack([sums, sums, sums], axis=1), rng.random(n_channels)
        )
        row = StatRow(
            i,
            i * 33_333_333,
            1_000_000,
            rng.random(N_TAPS),
            np.zeros(N_TAPS, np.int64),
            i,
            spatial=block,
            context={"speed_mps": 20.0},
            picture=picture,
        )
        told.append(monitor.step(row))
        sink.write(row, told[-1])
    sink.close()
    again = Replay(tmp_path / "x.mcap")
    reports = list(again.reports())
    assert again.identical == len(reports) == 130
    for before, after in zip(told, reports, strict=True):
        np.testing.assert_array_equal(after.connectivity.shift, before.connectivity.shift)
        assert after.vitals.stall == before.vitals.stall
        assert msgspec.structs.asdict(after.guess) == msgspec.structs.asdict(before.guess)
    assert None not in (
        reports[-1].connectivity.shift_score,
        reports[-1].vitals.stall,
        reports[-1].guess.score,
    )


def test_what_did_not_reach_the_recording_is_counted(tmp_path):
    replayed = replay(record(tmp_path / "x.mcap", {}, lost=(3, 4)))
    assert (replayed.compared, replayed.lost) == (19, 2)
    assert replayed.identical < 19


@pytest.mark.parametrize("settings", ["{", "[]", '{"deadline_ms": -1}', '{"of_a_later_version": 1}'])
def test_settings_that_mean_nothing_here_are_refused(tmp_path, settings):
    path = record(tmp_path / "x.mcap", {"monitor_settings": settings})
    with pytest.raises(RecordingError, match=r"x\.mcap: monitor_settings cannot be used"):
        replay(path)


def test_rows_of_a_device_come_with_its_map(tmp_path):
    (tmp_path / "model.onnx").write_bytes(MODEL)
    observed = observe_recording(tmp_path / "model.onnx", record(tmp_path / "x.mcap", HERE))
    assert (len(observed.rows), observed.taps, observed.device) == (20, MAP.taps, Runtime.here())
    np.testing.assert_array_equal(observed.golden.frames, MAP.golden.frames)


def test_a_recording_that_names_no_versions_calibrates_nothing(tmp_path):
    (tmp_path / "model.onnx").write_bytes(MODEL)
    with pytest.raises(RecordingError, match=r"x\.mcap: does not say which versions made it"):
        observe_recording(tmp_path / "model.onnx", record(tmp_path / "x.mcap", {"machine": "arm"}))
