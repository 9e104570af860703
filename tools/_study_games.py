"""What the impact study looks at: models, taps of at most so many voxels, images, tabulated games."""

from __future__ import annotations

import os
from itertools import islice
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from _venv import ROOT
from numpy.typing import NDArray

from edge_monitor.config import FrameSettings
from edge_monitor.offline.ablation import Game, whole_answers
from edge_monitor.offline.payoff import DECISION_PROBABILITY
from edge_monitor.offline.shapley import Value
from edge_monitor.sources.frames import FrameSource
from edge_monitor.taps.onnx import list_taps
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.types import TapSpec

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", ROOT.parent / "shared" / "data"))
RESNET8 = DATA / "mlperf_tiny" / "resnet8_float.onnx"
CALIBRATION = DATA / "cifar10_calibration_2000.npz"
TEST = DATA / "cifar10_test_500.npz"
DEMO = ROOT / "edge_monitor" / "data" / "demo_model.onnx"

_DEMO_STRIDE = 40
"""Frames of the demo road lie so far apart that each shows another place."""


class Network(msgspec.Struct, frozen=True, eq=False):
    """A model, its default taps (the input first) and images, (n, ...) float32."""

    name: str
    data: bytes
    taps: tuple[TapSpec, ...]
    images: NDArray[np.float32]


def missing_data() -> str | None:
    """Say what is not there, or None."""
    absent = [str(path) for path in (RESNET8, CALIBRATION, TEST) if not path.is_file()]
    return f"EDGE_MONITOR_DATA: {', '.join(absent)} missing" if absent else None


def cifar10(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (n, 3, 32, 32), raw 0 ... 255, and labels (n,)."""
    with np.load(path) as archive:
        return archive["images"].transpose(0, 3, 1, 2).astype(np.float32), archive["labels"].astype(np.int64)


def resnet8(images: NDArray[np.float32], grid: tuple[int, int, int] = (4, 2, 2)) -> Network:
    return network("resnet8", RESNET8.read_bytes(), images, grid)


def demo(n_images: int, grid: tuple[int, int, int] = (4, 2, 2)) -> Network:
    """Return the shipped model and frames of its own road."""
    source = FrameSource(FrameSettings(frames="demo:0", realtime=False), (3, 48, 48))
    frames = islice(source, 0, n_images * _DEMO_STRIDE, _DEMO_STRIDE)
    images = np.concatenate([frame.array for frame in frames])
    return network("demo", DEMO.read_bytes(), images, grid)


def network(name: str, data: bytes, images: NDArray[np.float32], grid: tuple[int, int, int]) -> Network:
    """Take the default taps, a dense one with as many voxels as ``grid`` has."""
    taps = [
        tap_spec(tap.name, tap.shape, grid if len(tap.shape) == 3 else (prod(grid), 1, 1))
        for tap in list_taps(data)
        if tap.default
    ]
    return Network(name, data, (input_spec("input", images.shape[1:]), *taps), images)


def remembered(net: Network, tap: TapSpec) -> Value:
    """Return the tap's game with the default payoff, in which each coalition is computed once."""
    game = Game(
        net.data, tap, net.images, DECISION_PROBABILITY, whole_answers(net.data, net.name, net.images)
    )
    known: dict[bytes, NDArray[np.float64]] = {}

    def value(coalition: NDArray[np.bool_]) -> NDArray[np.float64]:
        key = coalition.tobytes()
        if key not in known:
            known[key] = game.value(coalition)
        return known[key]

    return value
