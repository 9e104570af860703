"""Networks of the benchmark: those of EDGE_MONITOR_DATA, and two of known shape with generated weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from _bench_measure import UnavailableError
from _venv import ROOT
from onnx import TensorProto, helper, numpy_helper

from edge_monitor.taps.onnx import quiet_options

DEMO = ROOT / "edge_monitor" / "data" / "demo_model.onnx"
OPSET, IR_VERSION = 13, 8
"""Old enough for every ONNX Runtime that is supported."""


def one_thread() -> dict[str, object]:
    """Session options of every model here."""
    return {"sess_options": quiet_options(), "providers": ["CPUExecutionProvider"]}


def mlperf_tiny(name: str) -> bytes:
    """Return a model file of EDGE_MONITOR_DATA.

    Raises
    ------
    UnavailableError
        It is not there.
    """
    folder = Path(os.environ.get("EDGE_MONITOR_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "mlperf_tiny" / name
    if not path.is_file():
        raise UnavailableError(f"{path} is missing")
    return path.read_bytes()


def demo() -> bytes:
    return DEMO.read_bytes()


def resnet8() -> bytes:
    return mlperf_tiny("resnet8_float.onnx")


def resnet8_qdq() -> bytes:
    return mlperf_tiny("resnet8_qdq.onnx")


def mobilenet_v1() -> bytes:
    """MobileNetV1 of width 0.25 on 96 x 96 pixels (Howard et al. 2017): 27 activations, each a tap."""
    net = _Network(seed=0)
    x = net.relu6(net.conv("image", 3, 8, stride=2))
    n = 8
    for n_out, stride in (
        *((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2)),
        *((128, 1),) * 5,
        *((256, 2), (256, 1)),
    ):
        x = net.relu6(net.conv(x, n, n, stride=stride, group=n))
        x = net.relu6(net.conv(x, n, n_out, size=1))
        n = n_out
    return net.classifier(x, n, 2, 96)


def resnet18() -> bytes:
    """ResNet18 on 224 x 224 pixels (He et al. 2016): a network of several milliseconds."""
    net = _Network(seed=0)
    x = net.relu(net.conv("image", 3, 64, size=7, stride=2))
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    n = 64
    for n_out in (64, 128, 256, 512):
        for stride in (1 if n_out == 64 else 2, 1):
            y = net.relu(net.conv(x, n, n_out, stride=stride))
            y = net.conv(y, n_out, n_out, gain=0.1)  # or the sums of the blocks would grow
            if n != n_out:
                x = net.conv(x, n, n_out, size=1, stride=stride)
            x = net.relu(net.node("Add", [x, y]))
            n = n_out
    return net.classifier(x, n, 1000, 224)


class _Network:
    """Graph in the making; convolutions have a bias, as when a batch normalisation was folded in."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list = []
        self._weights: list = []
        self._zero, self._six = (self._constant(np.float32(value)) for value in (0, 6))

    def _constant(self, values: np.ndarray) -> str:
        name = f"constant{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _random(self, shape: tuple[int, ...], deviation: float) -> str:
        return self._constant(deviation * self._rng.standard_normal(shape, np.float32))

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def conv(
        self, x: str, n: int, n_out: int, *, size: int = 3, stride: int = 1, group: int = 1, gain: float = 1.0
    ) -> str:
        """Convolution with weights whose variance keeps that of activations (He et al. 2015)."""
        deviation = gain * (2 / (n // group * size * size)) ** 0.5
        weights = self._random((n_out, n // group, size, size), deviation)
        pads, strides = [size // 2] * 4, [stride] * 2
        return self.node(
            "Conv", [x, weights, self._random((n_out,), 0.1)], pads=pads, strides=strides, group=group
        )

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, self._zero, self._six])

    def classifier(self, x: str, n: int, n_classes: int, size: int) -> bytes:
        """Finish with the mean over the picture, a dense layer and a softmax."""
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        weights = self._random((n, n_classes), n**-0.5)
        x = self.node("Gemm", [x, weights, self._random((n_classes,), 0.1)])
        y = self.node("Softmax", [x], axis=-1)
        ends = (
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, n_classes])],
        )
        graph = helper.make_graph(self._nodes, "generated", *ends, self._weights)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
