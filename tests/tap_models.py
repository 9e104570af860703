"""ONNX models whose taps lie in memory in unusual ways."""

from __future__ import annotations

from itertools import pairwise

import models
import numpy as np
from onnx import TensorProto, numpy_helper


def odd(*, seed: int = 0, dtype: int = TensorProto.FLOAT) -> bytes:
    """Convolutions of odd channels and sizes down to one element. Taps: relu0 to relu4."""
    g = models._Graph(seed)
    x, channels = "input", [3, 5, 17, 33, 1, 19]
    for i, (c_in, c_out) in enumerate(pairwise(channels)):
        g.conv(x, f"conv{i}", c_in, c_out)
        g.node("Relu", [f"conv{i}"], f"relu{i}")
        g.node("MaxPool", [f"relu{i}"], f"pool{i}", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
        x = f"pool{i}"
    g.node("Flatten", [x], "flat")
    g.gemm("flat", "output", 19, 4)
    if dtype == TensorProto.FLOAT16:
        halves = [numpy_helper.to_array(tensor).astype(np.float16) for tensor in g._initializers]
        g._initializers = [
            numpy_helper.from_array(half, tensor.name)
            for half, tensor in zip(halves, g._initializers, strict=True)
        ]
    return g.model([("input", [1, 3, 21, 15], dtype)], [("output", [1, 4], dtype)])


def quantised(*, seed: int = 0, zero_point: int = 0, dtype: type = np.uint8) -> bytes:
    """Two quantised convolutions joined, QDQ. Taps: relu_dq (a Relu before it), add_dq.

    With the least integer for 0 the second convolution is a tap too, folded_dq.
    """
    g = models._Graph(seed)

    def number(name: str, value: object, kind: type) -> str:
        g._initializers.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def quantise(x: str, name: str, scale: float, zero: int) -> str:
        pair = [number(f"{name}_scale", scale, np.float32), number(f"{name}_zero", zero, dtype)]
        g.node("QuantizeLinear", [x, *pair], f"{name}_q")
        g.node("DequantizeLinear", [f"{name}_q", *pair], f"{name}_dq")
        return f"{name}_dq"

    rng = np.random.default_rng(seed)

    def conv(x: str, name: str, c_in: int, c_out: int) -> str:
        weight = rng.integers(-100, 100, (c_out, c_in, 3, 3))
        number(f"{name}_w", weight, np.int8)
        scale, zero = number(f"{name}_ws", 0.004, np.float32), number(f"{name}_wz", 0, np.int8)
        g.node("DequantizeLinear", [f"{name}_w", scale, zero], f"{name}_wf")
        g.node("Conv", [x, f"{name}_wf"], name, kernel_shape=[3, 3], pads=[1] * 4)
        return name

    least = np.iinfo(dtype).min
    x = quantise("input", "in", 0.02, least + 128)
    g.node("Relu", [conv(x, "conv1", 3, 7)], "relu")
    x = quantise("relu", "relu", 0.03, least)
    y = quantise(conv(x, "conv2", 7, 7), "folded", 0.04, least + zero_point)
    g.node("Add", [x, y], "add")
    x = quantise("add", "add", 0.05, least + 3)
    g.node("GlobalAveragePool", [x], "pool")
    g.node("Flatten", ["pool"], "flat")
    g.gemm("flat", "output", 7, 3)
    return g.model([("input", [1, 3, 9, 5])], [("output", [1, 3])])
