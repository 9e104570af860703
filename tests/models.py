"""Small ONNX models with seeded weights, one per property that matters to tapping."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def cnn(*, seed: int = 0, batch: int | str = "N", size: int | str = 16) -> bytes:
    """Plain CNN, softmax over 5: taps relu1, clip2, relu3 (dense); logits and probabilities behind."""
    g = _Graph(seed)
    g.conv("input", "conv1", 3, 8)
    g.node("Relu", ["conv1"], "relu1")
    g.node("MaxPool", ["relu1"], "pool1", kernel_shape=[2, 2], strides=[2, 2])
    g.conv("pool1", "conv2", 8, 12)
    g.node("Clip", ["conv2", g.constant("zero", 0.0), g.constant("six", 6.0)], "clip2")
    g.node("GlobalAveragePool", ["clip2"], "gap")
    g.node("Flatten", ["gap"], "flat")
    g.gemm("flat", "fc1", 12, 10)
    g.node("Relu", ["fc1"], "relu3")
    g.gemm("relu3", "logits", 10, 5)
    g.node("Softmax", ["logits"], "probabilities", axis=-1)
    return g.model([("input", [batch, 3, size, size])], [("probabilities", [batch, 5])])


def residual_cnn(*, seed: int = 0) -> bytes:
    """Two residual joins: one followed by a Relu (tap relu2), one not (tap add2). Taps: relu1 too."""
    g = _Graph(seed)
    g.conv("input", "conv1", 3, 8)
    g.node("Relu", ["conv1"], "relu1")
    g.conv("relu1", "conv2", 8, 8)
    g.node("Add", ["relu1", "conv2"], "add1")
    g.node("Relu", ["add1"], "relu2")
    g.conv("relu2", "conv3", 8, 8)
    g.node("Add", ["relu2", "conv3"], "add2")
    g.node("GlobalAveragePool", ["add2"], "gap")
    g.node("Flatten", ["gap"], "flat")
    g.gemm("flat", "logits", 8, 4)
    g.node("Softmax", ["logits"], "probabilities", axis=-1)
    return g.model([("input", ["N", 3, 16, 16])], [("probabilities", ["N", 4])])


def dense(*, seed: int = 0) -> bytes:
    """Dense net of 20 inputs; its answer is 3 logits. A bias Add is no residual join. Taps: relu1, tanh2."""
    g = _Graph(seed)
    g.node("MatMul", ["input", g.weight("w1", (20, 16))], "matmul1")
    g.node("Add", ["matmul1", g.weight("b1", (16,))], "biased1")
    g.node("Relu", ["biased1"], "relu1")
    g.gemm("relu1", "fc2", 16, 7)
    g.node("Tanh", ["fc2"], "tanh2")
    g.node("MatMul", ["tanh2", g.weight("w3", (7, 3))], "matmul3")
    g.node("Add", ["matmul3", g.weight("b3", (3,))], "logits")
    return g.model([("input", ["N", 20])], [("logits", ["N", 3])])


def two_inputs(*, seed: int = 0) -> bytes:
    """A state vector (named first), an image, and two outputs: a float answer and the winner's index."""
    g = _Graph(seed)
    g.conv("image", "conv1", 3, 8)
    g.node("Relu", ["conv1"], "relu1")
    g.node("GlobalAveragePool", ["relu1"], "gap")
    g.node("Flatten", ["gap"], "flat")
    g.node("Concat", ["flat", "state"], "joint", axis=1)
    g.gemm("joint", "fc", 12, 9)
    g.node("Relu", ["fc"], "relu2")
    g.gemm("relu2", "answer", 9, 3)
    g.node("ArgMax", ["answer"], "winner", axis=1, keepdims=0)
    inputs = [("state", ["N", 4]), ("image", ["N", 3, 12, 12])]
    return g.model(inputs, [("answer", ["N", 3]), ("winner", ["N"], TensorProto.INT64)])


def no_activations(*, seed: int = 0) -> bytes:
    """Nothing to tap: the only activation is the model's own output."""
    g = _Graph(seed)
    g.conv("input", "conv1", 3, 4)
    g.node("Relu", ["conv1"], "output")
    return g.model([("input", [1, 3, 8, 8])], [("output", [1, 4, 8, 8])])


def gated(*, seed: int = 0) -> bytes:
    """SiLU (tap silu), then squeeze-and-excite: its Sigmoid is a gate and no tap. Tap: relu too."""
    g = _Graph(seed)
    g.conv("input", "conv1", 3, 8)
    g.node("Sigmoid", ["conv1"], "sigmoid")
    g.node("Mul", ["sigmoid", "conv1"], "silu")
    g.node("GlobalAveragePool", ["silu"], "gap")
    g.conv("gap", "squeeze", 8, 8, kernel=1)
    g.node("HardSigmoid", ["squeeze"], "gate")
    g.node("Mul", ["silu", "gate"], "scaled")
    g.conv("scaled", "conv2", 8, 4)
    g.node("Relu", ["conv2"], "relu")
    g.node("GlobalAveragePool", ["relu"], "output")
    return g.model([("input", [1, 3, 8, 8])], [("output", [1, 4, 1, 1])])


def behind_softmax(*, seed: int = 0) -> bytes:
    """An activation behind a softmax is no tap. Tap: relu1."""
    g = _Graph(seed)
    g.gemm("input", "fc1", 6, 6)
    g.node("Relu", ["fc1"], "relu1")
    g.node("Softmax", ["relu1"], "softmax", axis=-1)
    g.node("Relu", ["softmax"], "relu2")
    g.gemm("relu2", "output", 6, 2)
    return g.model([("input", ["N", 6])], [("output", ["N", 2])])


class _Graph:
    """Collects nodes and initializers; every tensor carries the name it is given."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list = []
        self._initializers: list = []

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> None:
        self._nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))

    def constant(self, name: str, value: object) -> str:
        self._initializers.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        return self.constant(name, self._rng.normal(0, fan_in**-0.5, shape))

    def conv(self, x: str, output: str, c_in: int, c_out: int, *, kernel: int = 3) -> None:
        weight = self.weight(f"w_{output}", (c_out, c_in, kernel, kernel))
        bias = self.weight(f"b_{output}", (c_out,))
        self.node("Conv", [x, weight, bias], output, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def gemm(self, x: str, output: str, n_in: int, n_out: int) -> None:
        weight, bias = self.weight(f"w_{output}", (n_out, n_in)), self.weight(f"b_{output}", (n_out,))
        self.node("Gemm", [x, weight, bias], output, transB=1)

    def model(self, inputs: list, outputs: list) -> bytes:
        def info(name: str, shape: list, dtype: int = TensorProto.FLOAT) -> object:
            return helper.make_tensor_value_info(name, dtype, shape)

        graph = helper.make_graph(
            self._nodes, "net", [info(*i) for i in inputs], [info(*o) for o in outputs], self._initializers
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
