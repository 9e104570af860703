"""TensorFlow Lite models that cannot be watched: one line from the command line that names file and fault."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models
from numpy.testing import assert_array_equal
from tflite_runs import RUNTIMES

from edge_monitor.cli import main
from edge_monitor.probe import Probe

DEMO = Path(__file__).parent.parent / "edge_monitor" / "data" / "demo_model.tflite"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the command line: ``refused(*words)`` is the one line with which it refuses."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["edge-monitor", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert ended.value.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def activated(dtype: str, shape=(1, 4, 4, 3), scale: float = 0.0) -> bytes:
    """Model whose only activation is of this type and shape, from a float picture."""
    net = models.Net()
    image = net.tensor("image", (1, 4, 4, 3))
    relu = net.tensor("relu", shape, dtype, scale=scale)
    net.operator("RELU", [image], [relu])
    answer = net.tensor("answer", shape, dtype, scale=scale)
    net.operator("RESHAPE", [relu], [answer])
    return net.model([image], [answer])


def takes(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Model with an activation, whose input is of this type."""
    net = models.Net()
    given = net.tensor("given", shape, dtype)
    relu, answer = net.tensor("relu", (1, 3)), net.tensor("answer", (1, 3))
    net.operator("RELU", [given], [relu])
    net.operator("RESHAPE", [relu], [answer])
    return net.model([given], [answer])


def without_activation() -> bytes:
    net = models.Net()
    image = net.value("image", (1, 4, 4, 3))
    return net.model([image], [net.mean(image, "mean")])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (DEMO.read_bytes()[:200_000], "not a whole TensorFlow Lite model"),
        (DEMO.read_bytes()[:6], "not a whole TensorFlow Lite model"),
        (b"", "not a whole TensorFlow Lite model"),
        (b"words, no flatbuffer " * 50, "not a whole TensorFlow Lite model"),
        (without_activation(), "no tensor can be tapped: it has no activation before its output"),
        (activated("float64"), "no tensor can be tapped: type or shape of relu cannot be read"),
        (activated("int16", scale=0.1), "no tensor can be tapped: type or shape of relu cannot be read"),
        (activated("float32", (2, 4, 4, 3)), "no tensor can be tapped: type or shape of relu cannot be read"),
    ],
    ids=["cut", "head", "empty", "text", "no_activation", "float64", "int16", "batch"],
)
def test_taps_refuses(data, problem, refused, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    line = refused("taps", path)
    assert str(path) in line
    assert problem in line


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (DEMO.read_bytes()[:200_000], "not a whole TensorFlow Lite model"),
        (without_activation(), "has no post-activation tensor that can be tapped"),
        (activated("float64"), "has no post-activation tensor that can be tapped"),
        (takes("string", (1,)), r"needs an input of shape (1, H, W, C) or (1, N) of float32, float16, int8"),
        (takes("float64", (1, 4, 4, 3)), "has given float64(1, 4, 4, 3)"),
    ],
    ids=["cut", "no_activation", "float64", "string_input", "float64_input"],
)
def test_calibrate_refuses(data, problem, refused, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    assert problem in refused("calibrate", path, "demo:1000", "--limit", 200, "-o", tmp_path / "map.npz")
    assert not (tmp_path / "map.npz").exists()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("change", ["cut", "other", "gone"])
def test_a_model_that_changes_on_disk_serves_as_it_was_read(runtime, change, tmp_path):
    """The file is read once, before the runtime sees it: what comes later cannot reach either of them."""
    path = tmp_path / "model.tflite"
    path.write_bytes(models.residual_cnn())
    rows = []
    probe = Probe.litert(path, runtime, on_row=rows.append, num_threads=1)
    probe.allocate_tensors()
    frame = np.random.default_rng(0).normal(size=(1, *probe.frame_shape)).astype(np.float32)
    before = probe.feed(frame)
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if change == "cut" else models.residual_cnn(seed=1))
    after = probe.feed(frame)
    probe.resize_tensor_input(0, (1, 8, 6, 3))
    probe.allocate_tensors()
    for answer in (after, probe.feed(frame)):
        assert_array_equal(answer[0], before[0])
    assert probe.attached
    assert_array_equal(rows[0].signals, rows[2].signals)
