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


def mobilenet(*, seed: int = 0, batch: int | str = "N") -> bytes:
    """Depthwise blocks with BatchNormalization, strides, a dilation, one residual join.

    Taps: stem, dw1, pw1, dw2 (dilated), add2 (no activation follows), dw3, pw3.
    """
    g = _Graph(seed)
    six = [g.constant("zero", 0.0), g.constant("six", 6.0)]

    def block(x: str, name: str, c_in: int, c_out: int, **attributes: object) -> str:
        g.conv(x, f"{name}_conv", c_in, c_out, **attributes)
        g.batch_norm(f"{name}_conv", f"{name}_bn", c_out)
        g.node("Clip", [f"{name}_bn", *six], name)
        return name

    x = block("input", "stem", 3, 8, strides=[2, 2])
    x = block(x, "dw1", 8, 8, group=8)
    x = block(x, "pw1", 8, 12, kernel=1)
    y = block(x, "dw2", 12, 12, group=12, dilations=[2, 2], pads=[2] * 4)
    g.conv(y, "pw2_conv", 12, 12, kernel=1)
    g.batch_norm("pw2_conv", "pw2_bn", 12)
    g.node("Add", [x, "pw2_bn"], "add2")
    x = block("add2", "dw3", 12, 12, group=12, strides=[2, 2])
    x = block(x, "pw3", 12, 16, kernel=1)
    g.node("AveragePool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    g.node("Flatten", ["pool"], "flat")
    g.gemm("flat", "logits", 16 * 4, 5)
    g.node("Softmax", ["logits"], "probabilities", axis=-1)
    return g.model([("input", [batch, 3, 16, 16])], [("probabilities", [batch, 5])])


def vit(*, seed: int = 0, batch: int | str = "N") -> bytes:
    """Small vision transformer: 16 tokens of 8, a perceptron block, then attention of two heads.

    Taps: patches, gelu, add1; what follows the attention's Softmax is none.
    """
    g = _Graph(seed)
    n = 1 if batch == 1 else -1
    tokens, dim, heads = 16, 8, 2

    def norm(x: str, name: str) -> str:
        scale, bias = g.weight(f"s_{name}", (dim,)), g.weight(f"b_{name}", (dim,))
        g.node("LayerNormalization", [x, scale, bias], name, axis=-1)
        return name

    g.conv("input", "patch_conv", 3, dim, kernel=4, strides=[4, 4], pads=[0] * 4)
    g.node("Relu", ["patch_conv"], "patches")
    g.node("Reshape", ["patches", g.shape("s_tokens", [n, dim, tokens])], "columns")
    g.node("Transpose", ["columns"], "tokens", perm=[0, 2, 1])
    g.node("Add", ["tokens", g.weight("positions", (1, tokens, dim))], "placed")
    g.node("MatMul", [norm("placed", "norm1"), g.weight("w_up", (dim, 2 * dim))], "up")
    g.node("Gelu", ["up"], "gelu")
    g.node("MatMul", ["gelu", g.weight("w_down", (2 * dim, dim))], "down")
    g.node("Add", ["placed", "down"], "add1")
    x = norm("add1", "norm2")
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        g.node("MatMul", [x, g.weight(f"w_{part}", (dim, dim))], f"{part}_flat")
        shape = g.shape(f"s_{part}", [n, tokens, heads, dim // heads])
        g.node("Reshape", [f"{part}_flat", shape], f"{part}_heads")
        g.node("Transpose", [f"{part}_heads"], part, perm=perm)
    g.node("MatMul", ["q", "k"], "products")
    g.node("Mul", ["products", g.constant("root", (dim // heads) ** -0.5)], "scores")
    g.node("Softmax", ["scores"], "attention", axis=-1)
    g.node("MatMul", ["attention", "v"], "mixed")
    g.node("Transpose", ["mixed"], "mixed_tokens", perm=[0, 2, 1, 3])
    g.node("Reshape", ["mixed_tokens", g.shape("s_mixed", [n, tokens, dim])], "joined")
    g.node("MatMul", ["joined", g.weight("w_out", (dim, dim))], "attended")
    g.node("Add", ["add1", "attended"], "add2")
    g.node("ReduceMean", [norm("add2", "norm3"), g.shape("a_mean", [1])], "mean", keepdims=0)
    g.gemm("mean", "logits", dim, 4)
    g.node("Softmax", ["logits"], "probabilities", axis=-1)
    return g.model([("input", [batch, 3, 16, 16])], [("probabilities", [batch, 4])], opset=20)


def two_heads(*, seed: int = 0) -> bytes:
    """An early answer that needs relu1 alone, and a late one. Taps: relu1, relu2.

    The late one is reshaped to a batch size that the graph reads off its input.
    """
    g = _Graph(seed)
    g.conv("input", "conv1", 3, 4)
    g.node("Relu", ["conv1"], "relu1")
    g.node("GlobalAveragePool", ["relu1"], "early")
    g.conv("relu1", "conv2", 4, 6)
    g.node("Relu", ["conv2"], "relu2")
    g.node("GlobalMaxPool", ["relu2"], "pool")
    g.node("Shape", ["input"], "sizes")
    g.node("Gather", ["sizes", g.shape("first", [0])], "n")
    g.node("Concat", ["n", g.shape("rest", [6])], "target", axis=0)
    g.node("Reshape", ["pool", "target"], "flat")
    g.gemm("flat", "late", 6, 3)
    return g.model([("input", ["N", 3, 8, 8])], [("early", ["N", 4, 1, 1]), ("late", ["N", 3])])


def one_by_one(*, seed: int = 0, refuses: bool) -> bytes:
    """Fixed batch 1 that cannot be freed: joins a token of batch 1, or the batch's maximum. Tap: relu1."""
    g = _Graph(seed)
    g.gemm("input", "fc1", 6, 5)
    g.node("Relu", ["fc1"], "relu1")
    if refuses:
        g.node("Concat", ["relu1", g.weight("token", (1, 3))], "joint", axis=1)
    else:
        g.node("ReduceMax", ["relu1"], "largest", axes=[0], keepdims=1)
        g.node("Concat", ["relu1", "largest"], "twice", axis=1)
        g.node("Slice", ["twice", *(g.shape(f"slice{k}", [k]) for k in (2, 10, 1))], "joint")
    g.gemm("joint", "output", 8, 2)
    return g.model([("input", [1, 6])], [("output", [1, 2])])


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

    def shape(self, name: str, values: list[int]) -> str:
        """Integer constant: a shape, axes and the like."""
        self._initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def int8(self, name: str) -> str:
        """Zero point 0."""
        self._initializers.append(numpy_helper.from_array(np.array(0, np.int8), name))
        return name

    def conv(
        self, x: str, output: str, c_in: int, c_out: int, *, kernel: int = 3, **attributes: object
    ) -> None:
        weight = self.weight(f"w_{output}", (c_out, c_in // attributes.get("group", 1), kernel, kernel))
        bias = self.weight(f"b_{output}", (c_out,))
        attributes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4} | attributes
        self.node("Conv", [x, weight, bias], output, **attributes)

    def batch_norm(self, x: str, output: str, channels: int, **attributes: object) -> None:
        names = [self.weight(f"{part}_{output}", (channels,)) for part in ("scale", "bias", "mean")]
        variance = self.constant(f"variance_{output}", self._rng.uniform(0.5, 2.0, channels))
        self.node("BatchNormalization", [x, *names, variance], output, **attributes)

    def gemm(self, x: str, output: str, n_in: int, n_out: int) -> None:
        weight, bias = self.weight(f"w_{output}", (n_out, n_in)), self.weight(f"b_{output}", (n_out,))
        self.node("Gemm", [x, weight, bias], output, transB=1)

    def model(self, inputs: list, outputs: list, *, opset: int = 17) -> bytes:
        def info(name: str, shape: list, dtype: int = TensorProto.FLOAT) -> object:
            return helper.make_tensor_value_info(name, dtype, shape)

        graph = helper.make_graph(
            self._nodes, "net", [info(*i) for i in inputs], [info(*o) for o in outputs], self._initializers
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
