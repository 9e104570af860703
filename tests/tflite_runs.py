"""Models, frames and untapped runs for the tests of TensorFlow Lite probes."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models

from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import find_candidates

DATA = Path(os.environ.get("EDGE_MONITOR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESNET8 = {f"resnet8_{kind}": DATA / "mlperf_tiny" / f"resnet8_{kind}.tflite" for kind in ("float", "int8")}
CIFAR10 = DATA / "cifar10_test_500.npz"
needs_data = pytest.mark.skipif(
    not CIFAR10.is_file() or not all(path.is_file() for path in RESNET8.values()),
    reason=f"no ResNet8 or no CIFAR-10 in EDGE_MONITOR_DATA ({DATA})",
)

PACKAGES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}
RUNTIMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    )
    for name, package in PACKAGES.items()
]
"""To parametrize by: every test that runs a model runs on all runtimes that are installed."""

HANDMADE = {
    "float": models.residual_cnn,
    "int8": lambda: models.residual_cnn(dtype="int8"),
    "signature": lambda: models.residual_cnn(signature="serving_default"),
    "branches": models.branches,
    "two_heads": models.two_heads,
    "moving": models.moving,
}
ALL = [*HANDMADE, *(pytest.param(name, marks=needs_data) for name in RESNET8)]


@cache
def model_of(name: str) -> bytes:
    return HANDMADE[name]() if name in HANDMADE else RESNET8[name].read_bytes()


def open_plain(data: bytes, runtime: str, **options):
    """Interpreter without taps, not yet allocated."""
    module = import_module(f"{PACKAGES[runtime]}.interpreter")
    return module.Interpreter(model_content=data, **({"num_threads": 1} | options))


def builtin_kernels(runtime: str) -> dict:
    """Options that switch XNNPACK off."""
    module = import_module(f"{PACKAGES[runtime]}.interpreter")
    return {"experimental_op_resolver_type": module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


def taps_of(data: bytes) -> dict:
    """All candidates by name."""
    return find_candidates(read_model(data))


def feeds_of(data: bytes, n: int = 4) -> list[dict[int, np.ndarray]]:
    """Values of every input by number, for n frames: pictures for a ResNet8, else noise in its range."""
    graph, rng = read_model(data), np.random.default_rng(0)
    first = graph.tensors[graph.inputs[0]]
    if first.shape == (1, 32, 32, 3):
        images = np.load(CIFAR10)["images"][:n, None].astype(np.int64)
        return [
            {first.index: (image - 128 * (first.dtype == "int8")).astype(first.dtype)} for image in images
        ]
    ranges = {"bool": (0, 2), "int32": (0, 1), "int8": (-128, 128), "float32": (-2, 2)}
    return [
        {
            index: rng.uniform(*ranges[(tensor := graph.tensors[index]).dtype], tensor.shape).astype(
                tensor.dtype
            )
            for index in graph.inputs
        }
        for _ in range(n)
    ]


def run(interpreter, feed: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Answer of an interpreter, or of a probe in its place, that is allocated."""
    for index, value in feed.items():
        interpreter.set_tensor(index, value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def values(tensor, stored: np.ndarray) -> np.ndarray:
    """(C, H, W) or (N, 1, 1) float32 of what is stored, by the definition, in NumPy alone."""
    numbers = stored[0].astype(np.float32)
    if tensor.scales:
        numbers = np.float32(tensor.scales) * (numbers - np.float32(tensor.zero_points))
    return np.moveaxis(numbers, -1, 0) if numbers.ndim == 3 else numbers.reshape(-1, 1, 1)
