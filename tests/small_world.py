"""A pattern that drifts past a camera, a small network that sees it, and what was learnt from both."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import models
import msgspec
import numpy as np

from edge_monitor.config import CalibrationSettings, FrameSettings
from edge_monitor.offline.calibrate import calibrate
from edge_monitor.offline.drill_scenes import CleanScenes
from edge_monitor.offline.injection import Injector, Range
from edge_monitor.offline.observe import observe

MODEL = models.residual_cnn()
RATE_HZ = 30.0
FOLDER = tempfile.TemporaryDirectory(prefix="small-world-")


def pictures(n, seed=0, noise=2.0):
    """Frames (n, 3, 16, 16) float32 of whole numbers: waves that drift and breathe, and a sensor's noise.

    The waves are always the same, and always somewhere else: ``seed`` says when the camera is switched on.
    """
    waves, rng = np.random.default_rng(0), np.random.default_rng(seed)
    phase = waves.uniform(0, 2 * np.pi, (6, 3, 1, 1))
    wave = waves.uniform(0.2, 0.9, (6, 2, 1, 1, 1))
    speed = waves.uniform(0.05, 0.4, 6)
    row, column = np.mgrid[:16, :16]
    out = np.empty((n, 3, 16, 16), np.float32)
    for i, t in enumerate(range(5000 * seed, 5000 * seed + n)):
        light = 120 + 8 * np.sin(0.11 * t)
        for k in range(6):
            light = light + 14 * np.sin(wave[k, 0] * row + wave[k, 1] * column + phase[k] + speed[k] * t)
        out[i] = np.clip(np.rint(light + rng.normal(0, noise, out[i].shape)), 0, 255)
    return out


@cache
def model_file():
    path = Path(FOLDER.name) / "model.onnx"
    path.write_bytes(MODEL)
    return path


@cache
def frame_file(n=1300, seed=0):
    path = Path(FOLDER.name) / f"frames-{n}-{seed}.npy"
    np.save(path, pictures(n, seed))
    return path


@cache
def observed():
    return observe(model_file(), FrameSettings(frames=str(frame_file())))


@cache
def region_map():
    """Calibrated map, with a fault head."""
    return calibrate(observed(), CalibrationSettings(alarms_per_hour=60.0))


@cache
def scene():
    """Scene of frames that calibration never saw; it can be shown again, and the vehicle drives."""
    settings = FrameSettings(frames=str(frame_file(700, seed=1)))
    cut = next(iter(CleanScenes(model_file(), region_map(), settings, 1)))
    rng = np.random.default_rng(2)
    again = np.rint(cut.frames[18] + rng.normal(0, 2.0, (cut.length, *cut.frames[18].shape)))
    rows = [msgspec.structs.replace(row, context={"speed_mps": 12.0}) for row in cut.rows]
    contexts = [{"speed_mps": 12.0, "place": float(i)} for i in range(len(cut.frames))]
    return msgspec.structs.replace(cut, again=again.astype(np.float32), rows=rows, contexts=contexts)


@cache
def injector():
    return Injector(MODEL, region_map().taps, Range.of(observed().images.frames), RATE_HZ)


def same_picture(a, b):
    """Whether two rows tell the same about the picture and the network, to the bit."""
    return (
        a.fingerprint == b.fingerprint
        and a.output == b.output
        and all(
            np.array_equal(x, y, equal_nan=True)
            for x, y in (
                (a.signals, b.signals),
                (a.nonfinite, b.nonfinite),
                (a.spatial.voxels, b.spatial.voxels),
                (a.spatial.channels, b.spatial.channels),
                (a.picture, b.picture),
            )
        )
    )
