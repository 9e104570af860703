"""The demo model as TensorFlow Lite files: the same network, and the files are what the tool makes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tflite_runs import RUNTIMES, open_plain, run

from edge_monitor.sources.scenes import CLASSES, Road
from edge_monitor.taps.onnx import list_taps as list_onnx_taps
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import list_taps

ROOT = Path(__file__).parent.parent
DATA = ROOT / "edge_monitor" / "data"
FLOAT, INT8 = DATA / "demo_model.tflite", DATA / "demo_model_int8.tflite"
FORMS = pytest.mark.parametrize("path", [FLOAT, INT8], ids=["float", "int8"])
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)
LEAST_AGREEMENT = 0.99
"""Share of frames in which int8 has to choose the class that the float model does."""


@pytest.fixture(scope="module")
def images():
    """(n, 48, 48, 3) of trips that neither trained nor calibrated anything."""
    return np.stack([scene.image for seed in range(2000, 2012) for scene in islice(Road(seed), 0, 600, 15)])


@pytest.fixture(scope="module")
def expected(images):
    session = onnxruntime.InferenceSession(DATA / "demo_model.onnx", quiet_options())
    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    return np.concatenate([session.run(None, {"image": frame[None]})[0] for frame in planar])


def answers(path, runtime, images):
    interpreter = open_plain(path.read_bytes(), runtime)
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    frames = images.astype(np.float32)
    return np.concatenate([run(interpreter, {image["index"]: frame[None]})[0] for frame in frames])


@each_runtime
def test_float_answers_as_the_onnx_model(runtime, images, expected):
    np.testing.assert_allclose(answers(FLOAT, runtime, images), expected, rtol=0, atol=1e-5)


@each_runtime
def test_int8_chooses_the_same_class(runtime, images, expected):
    found = answers(INT8, runtime, images)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= LEAST_AGREEMENT
    assert np.abs(found - expected).mean() < 0.002
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)  # the softmax itself is float
    assert not np.array_equal(found, answers(FLOAT, runtime, images))


@FORMS
def test_input_and_output_are_float_and_channels_come_last(path):
    graph = read_model(path.read_bytes())
    (image,), (answer,) = ([graph.tensors[i] for i in ends] for ends in (graph.inputs, graph.outputs))
    assert (image.name, image.shape, image.dtype) == ("image", (1, 48, 48, 3), "float32")
    assert (answer.name, answer.shape, answer.dtype) == ("probabilities", (1, len(CLASSES)), "float32")


@FORMS
def test_taps_are_those_of_the_onnx_model(path):
    found = [(tap.name, tap.shape, tap.default) for tap in list_taps(path)]
    assert found == [(tap.name, tap.shape, tap.default) for tap in list_onnx_taps(DATA / "demo_model.onnx")]


def test_int8_follows_the_quantisation_specification():
    tensors = {tensor.name: tensor for tensor in read_model(INT8.read_bytes()).tensors}
    image = tensors["image_int8"]
    assert (image.dtype, image.scales, image.zero_points) == ("int8", (1.0,), (-128,))  # all pixels, exactly
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            by_channel = len(tensor.shape) == 4
            assert len(tensor.scales) == (tensor.shape[0] if by_channel else 1)
            assert (tensor.dtype, tensor.axis, set(tensor.zero_points)) == ("int8", 0, {0})
        elif name.endswith(".bias"):
            assert tensor.dtype == "int32"
        elif name in {tap.name for tap in list_taps(INT8)}:  # behind a ReLU zero is the least integer
            assert (tensor.dtype, tensor.zero_points) == ("int8", (-128,))


@FORMS
def test_weights_are_aligned(path):
    """Kernels read them where they lie in the file."""
    data = path.read_bytes()
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.Model.GetRootAs(data)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 20
    assert {start % 16 for start in starts} == {0}


@FORMS
def test_the_file_names_what_it_was_made_from(path):
    digest = hashlib.sha256((DATA / "demo_model.onnx").read_bytes()).hexdigest()
    assert f"demo_model.onnx, SHA-256 {digest}".encode() in path.read_bytes()


@pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="ai_edge_litert, which writes it, is missing")
def test_files_are_what_the_tool_makes(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    from _tflite_convert import convert, measure_ranges  # noqa: PLC0415

    model = (DATA / "demo_model.onnx").read_bytes()
    assert convert(model) == FLOAT.read_bytes(), "run tools/make_demo_tflite"
    assert convert(model, measure_ranges(model)) == INT8.read_bytes(), "run tools/make_demo_tflite"


@each_runtime
@pytest.mark.parametrize("options", [[], ["--int8"]], ids=["float", "int8"])
def test_the_demo_finds_on_it_what_it_finds_on_the_onnx_model(runtime, options, tmp_path):
    script = ROOT / "tools" / "demo"
    command = [sys.executable, script, "--runtime", runtime, *options, "--fast", "--json"]
    done = subprocess.run(
        [*command, "--recordings", tmp_path], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["model"] == (INT8 if options else FLOAT).name
    assert result["runtime"].startswith({"litert": "ai-edge-litert", "tflite": "tflite-runtime"}[runtime])
    freeze, blackout = result["faults"]
    assert freeze["flag"] == "INPUT_FROZEN"
    assert freeze["delay_frames"] <= 3
    assert blackout["flag"] is not None
    assert blackout["delay_frames"] <= 30
    assert result["false_alarms"] == 0
    assert "SELF_TEST_FAILED" not in done.stderr  # in a demo without terminal every flag is a line there


def test_the_demo_serves_int8_on_tflite_runtimes_alone():
    command = [sys.executable, ROOT / "tools" / "demo", "--int8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--int8 needs --runtime litert or --runtime tflite" in done.stderr
