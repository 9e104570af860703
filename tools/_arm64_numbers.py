"""Numbers that must be the same on every processor; started by tools/test_arm64 on each.

Models and the layouts of tensors are those of the tests.

usage: _arm64_numbers.py RECORDING FILE: writes the numbers to FILE, an .npz, and says where it ran.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec
import naive
import numpy as np
import onnxruntime
import tflite_models

from edge_monitor.kernels import strips
from edge_monitor.kernels._jit import PLAIN
from edge_monitor.kernels.tap_moments import tap_moments
from edge_monitor.neutrality import certify_neutrality
from edge_monitor.offline.replay import Replay
from edge_monitor.probe import Probe
from edge_monitor.reports import HealthReport
from edge_monitor.taps.onnx import list_taps, quiet_options
from edge_monitor.taps.onnx_graph import read_graph
from edge_monitor.taps.tap_table import Layout, TapTable
from edge_monitor.types import SpatialBlock, StatRow, TapSpec

Numbers = dict[str, np.ndarray]
ROOT = Path(__file__).resolve().parent.parent

SHAPE, GRID = (20, 7, 9), (4, 2, 2)
"""Odd on purpose: rows that share vectors, blocks that are filled up."""
FRAMES = 8
DEMO = ROOT / "edge_monitor" / "data" / "demo_model.onnx"
DATA = Path(os.environ.get("EDGE_MONITOR_DATA", ROOT.parent / "shared" / "data"))
RESNET8 = ("resnet8_float.onnx", "resnet8_float.tflite", "resnet8_int8.tflite")
QDQ = "resnet8_qdq.onnx"
"""Compared with its own runtime on the same processor alone: on ARM, onnxruntime adds quantised tensors in
fixed point (multipliers of 22 bits), elsewhere in floats. What lies next to a tie may come out a step apart,
and the layers behind multiply that."""
BLOCKED_OPS = {"ReorderInput", "ReorderOutput"}
"""Operators that the domain com.microsoft.nchwc alone has."""


def main(recording: str, file: str) -> None:
    numbers = {
        **kernel_numbers(),
        **{name: array for path, model in models() for name, array in probe_numbers(path, model).items()},
        **replay_numbers(Path(recording)),
    }
    np.savez(file, **numbers)
    print(f"{platform.machine()}, Python {platform.python_version()}", end="")
    for package in ("numpy", "numba", "onnxruntime", "ai-edge-litert"):
        print(f", {package} {version(package)}", end="")
    print(f"\n  {QDQ}: {check_quantised(DATA / 'mlperf_tiny' / QDQ)}")
    print(f"  kernels: {'plain' if strips.run_strips in PLAIN else 'vector'} code")
    print(f"  onnxruntime: {'blocked (NCHWc)' if uses_blocked_layout() else 'plain (NCHW)'} convolutions")


def kernel_numbers() -> Numbers:
    """Moments of random tensors in every layout and type, ReLU's and signed ones."""
    layouts = [Layout(dtype, block) for dtype in ("float32", "float16") for block in (1, 4, 8, 16, SHAPE[0])]
    layouts += [Layout("int8", block, 0.05, -3) for block in (1, SHAPE[0])]
    layouts += [Layout("uint8", block, 0.05, 7) for block in (1, SHAPE[0])]
    specs = tuple(TapSpec(f"tap{i}", SHAPE, GRID) for i in range(len(layouts)))
    table = TapTable(specs, tuple(layouts))
    n_voxels, n_channels = specs[0].n_voxels * len(specs), SHAPE[0] * len(specs)
    numbers = {}
    for name, low in (("relu", 0), ("signed", -3)):
        rng, memory = np.random.default_rng(0), []
        for i, layout in enumerate(layouts):
            tensor = np.maximum(rng.standard_normal(SHAPE), low)
            stored = 20 * tensor if layout.dtype.endswith("int8") else tensor
            limits = (0, 255) if layout.dtype == "uint8" else (-128, 127)
            tensor = np.clip(stored, *limits).astype(layout.dtype)
            memory.append(naive.in_memory(tensor, layout.block, np.zeros(1, layout.dtype)[0]))
            table.place(i, memory[-1].ctypes.data)
        table.choose(np.ones(len(specs), np.bool_))
        out = (
            np.empty(len(specs)),
            np.empty(len(specs), np.int64),
            np.empty((n_voxels, 3)),
            np.empty(n_channels),
        )
        tap_moments(table.taps, table.program, table.scales, *out)
        numbers |= {
            f"kernel/{name}/{what}": array for what, array in zip(("signals", "nonfinite"), out, strict=False)
        }
        numbers[f"kernel/{name}/voxels"] = out[2] / np.tile(specs[0].voxel_counts(), len(specs))[:, None]
        numbers[f"kernel/{name}/channels"] = out[3]
    return numbers


def models() -> Iterator[tuple[str, bytes]]:
    """ONNX and TensorFlow Lite models; those of EDGE_MONITOR_DATA where they are."""
    yield "demo.onnx", DEMO.read_bytes()
    yield "float.tflite", tflite_models.residual_cnn()
    yield "int8.tflite", tflite_models.residual_cnn(dtype="int8")
    for name in RESNET8:
        path = DATA / "mlperf_tiny" / name
        if path.is_file():
            yield name, path.read_bytes()


def probe_numbers(name: str, model: bytes) -> Numbers:
    """Rows and answers of seeded frames, all taps watched."""
    rows: list[StatRow] = []
    if name.endswith(".onnx"):
        probe = Probe.open(model, on_row=rows.append)
    else:
        probe = Probe.litert(model, on_row=rows.append, num_threads=1)
        probe.allocate_tensors()
    span = 255 if name.startswith("resnet8") else 1
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(FRAMES):
        frame = span * rng.random((1, *probe.frame_shape), dtype=np.float32)
        answers.append(np.concatenate([answer.ravel() for answer in probe.feed(frame)]))
    assert len(rows) == FRAMES, probe.detach_reason
    counts = np.concatenate([tap.voxel_counts() for tap in probe.taps])
    sizes = np.concatenate([np.full(tap.n_channels, tap.size / tap.n_channels) for tap in probe.taps])
    arrays = {
        "answer": answers,
        "signals": [row.signals for row in rows],
        "nonfinite": [row.nonfinite for row in rows],
        "picture": [row.picture for row in rows],
        "voxels": [block_of(row).voxels / counts[:, None] for row in rows],
        "channels": [block_of(row).channels / sizes for row in rows],
    }
    return {f"probe/{name}/{what}": np.array(array) for what, array in arrays.items()}


def check_quantised(path: Path) -> str:
    """Hold answers and the integers of all taps against those of the same runtime without taps: bit-equal."""
    if not path.is_file():
        return "not there"
    model = path.read_bytes()
    found = certify_neutrality(
        model,
        taps=[tap.name for tap in list_taps(model)],
        choose_frames=lambda shape: 255 * np.random.default_rng(0).random((FRAMES, *shape), np.float32),
    )
    assert not found.problems, found.problems
    assert found.max_difference == 0
    return f"answers and {len(found.taps)} taps are the untapped runtime's own"


def block_of(row: StatRow) -> SpatialBlock:
    assert row.spatial is not None
    return row.spatial


def replay_numbers(recording: Path) -> Numbers:
    """Every number of every report of a recording, and what was raised when."""
    replay = Replay(recording)
    raised, found = [], {}
    for report in replay.reports():
        raised += [f"{t.frame} {t.code} {t.before} {t.after}" for t in report.transitions]
        for name, values in stage_numbers(report):
            found.setdefault(name, []).append(values)
    numbers = {f"replay/{name}": np.array(values) for name, values in found.items()}
    return numbers | {"replay/transitions": np.array(raised)}


def stage_numbers(report: HealthReport) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers of the stages; what is not known is NaN."""
    for stage in ("bands", "regions", "connectivity", "consistency", "evidence"):
        part = getattr(report, stage)
        for field, value in msgspec.structs.asdict(part).items() if part is not None else ():
            if value is None or isinstance(value, (bool, int, float, np.ndarray)):
                yield f"{stage}.{field}", np.array(np.nan if value is None else value, np.float64)


def uses_blocked_layout() -> bool:
    """Whether the runtime reorders the demo model's convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        options = quiet_options()
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        options.log_severity_level = 4  # that such a file is for this processor alone is the point
        onnxruntime.InferenceSession(DEMO.read_bytes(), options, providers=["CPUExecutionProvider"])
        graph = read_graph(Path(options.optimized_model_filepath).read_bytes())
    return not BLOCKED_OPS.isdisjoint(node.op for node in graph.nodes)


if __name__ == "__main__":
    main(*sys.argv[1:])
