"""How operators of TensorFlow Lite are written in ONNX, NCHW: the rules of a transcript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_monitor.offline.tflite_transcript import Transcript, Unknown
from edge_monitor.taps.tflite_file import Operator, Tensor

_AXES = (0, 2, 3, 1)
"""Where each axis of NHWC lies in NCHW."""
Options = Any
"""Options of an operator, as the format's schema names them."""
Rule = Callable[[Transcript, Operator, Options, Tensor], str]
"""Writes an operator, the last argument being what it gives, and returns the name of the result."""


def write_operator(script: Transcript, operator: Operator, options: Options) -> None:
    """Write one operator and what is fused into it.

    Raises
    ------
    Unknown
        There is no rule for it, or for the way in which it is used.
    """
    tensors = [script.tensors[index] for index in (*operator.inputs, *operator.outputs)]
    if operator.op not in _RULES or len(operator.outputs) != 1:
        raise Unknown("there is no rule for it")
    if any(0 in tensor.shape or min(tensor.shape, default=1) < 0 for tensor in tensors):
        raise Unknown("its sizes are not fixed")
    out = tensors[-1]
    result = _fused(script, _RULES[operator.op](script, operator, options, out), operator.activation)
    if operator.op != "LOGISTIC":  # one step is 1/256, and a gate has to stay next to the product it gates
        script.rounded(result, out)
    script.finish(script.names[out.index])


def _fused(script: Transcript, name: str, activation: str) -> str:
    if activation == "NONE":
        return name
    if activation not in _FUSED:
        raise Unknown(f"{activation} is fused into it")
    return _FUSED[activation](script, name)


def _clip(low: float, high: float) -> Callable[[Transcript, str], str]:
    def write(script: Transcript, name: str) -> str:
        return script.make("Clip", [name, *(script.weight(np.array(end, np.float32)) for end in (low, high))])

    return write


_FUSED: dict[str, Callable[[Transcript, str], str]] = {
    "RELU": lambda script, name: script.make("Relu", [name]),
    "RELU6": _clip(0.0, 6.0),
    "RELU_N1_TO_1": _clip(-1.0, 1.0),
}
"""What the kernels do with a fused TANH differs from one to the next, so there is no rule for it."""


def _padding(
    script: Transcript, options: Options, x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int]
) -> list[int]:
    """Zeros before and behind rows and columns: top, left, bottom, right."""
    if options.padding == script.schema.Padding.VALID:
        return [0, 0, 0, 0]
    before, behind = [], []
    for n, k, s, d in zip(x.shape[1:3], kernel, (options.strideH, options.strideW), dilation, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        before.append(total // 2)
        behind.append(total - total // 2)
    return before + behind


def _convolution(script: Transcript, operator: Operator, options: Options, _: Tensor) -> str:
    """Weights (out, height, width, in); of a depthwise convolution (1, height, width, out)."""
    x, weights = script.tensors[operator.inputs[0]], script.constant(operator.inputs[1])
    kernel = (weights.shape[1], weights.shape[2])
    dilation = (options.dilationHFactor, options.dilationWFactor)
    perm = (3, 0, 1, 2) if operator.op == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
    turned = weights.astype(np.float32).transpose(perm)
    inputs = [script.names[operator.inputs[0]], script.weight(turned)]
    if len(operator.inputs) > 2:
        inputs.append(script.weight(script.constant(operator.inputs[2]).astype(np.float32)))
    return script.make(
        "Conv",
        inputs,
        kernel_shape=list(kernel),
        strides=[options.strideH, options.strideW],
        dilations=list(dilation),
        pads=_padding(script, options, x, kernel, dilation),
        group=x.shape[3] // turned.shape[1],
    )


def _dense(script: Transcript, operator: Operator, _: Options, out: Tensor) -> str:
    x, weights = script.tensors[operator.inputs[0]], script.constant(operator.inputs[1])
    if len(out.shape) != 2:
        raise Unknown(f"gives {len(out.shape)} axes")
    flat = script.channels_last(script.names[x.index], x)
    if len(x.shape) != 2:
        flat = script.make("Reshape", [flat, script.weight(np.array([1, weights.shape[1]], np.int64))])
    inputs = [flat, script.weight(weights.astype(np.float32))]
    if len(operator.inputs) > 2:
        inputs.append(script.weight(script.constant(operator.inputs[2]).astype(np.float32)))
    return script.make("Gemm", inputs, transB=1)


def _binary(op: str) -> Rule:
    def write(script: Transcript, operator: Operator, _: Options, out: Tensor) -> str:
        operands = [script.tensors[index] for index in operator.inputs]
        if any(not tensor.constant and len(tensor.shape) != len(out.shape) for tensor in operands):
            raise Unknown("broadcasts axes")
        return script.make(op, [script.operand(tensor.index, out) for tensor in operands])

    return write


def _activation(op: str) -> Rule:
    return lambda script, operator, _, __: script.make(op, [script.names[operator.inputs[0]]])


def _clipped(low: float, high: float) -> Rule:
    return lambda script, operator, _, __: _clip(low, high)(script, script.names[operator.inputs[0]])


def _leaky(script: Transcript, operator: Operator, options: Options, _: Tensor) -> str:
    return script.make("LeakyRelu", [script.names[operator.inputs[0]]], alpha=options.alpha)


def _gelu(script: Transcript, operator: Operator, options: Options, _: Tensor) -> str:
    approximate = "tanh" if options.approximate else "none"
    return script.make("Gelu", [script.names[operator.inputs[0]]], approximate=approximate)


def _prelu(script: Transcript, operator: Operator, _: Options, out: Tensor) -> str:
    return script.make("PRelu", [script.names[operator.inputs[0]], script.operand(operator.inputs[1], out)])


def _pool(op: str) -> Rule:
    def write(script: Transcript, operator: Operator, options: Options, _: Tensor) -> str:
        x, kernel = script.tensors[operator.inputs[0]], (options.filterHeight, options.filterWidth)
        return script.make(
            op,
            [script.names[x.index]],
            kernel_shape=list(kernel),
            strides=[options.strideH, options.strideW],
            pads=_padding(script, options, x, kernel, (1, 1)),
        )

    return write


def _reduce(op: str) -> Rule:
    def write(script: Transcript, operator: Operator, options: Options, out: Tensor) -> str:
        x = script.tensors[operator.inputs[0]]
        axes = [int(axis) % len(x.shape) for axis in script.constant(operator.inputs[1]).ravel()]
        if len(x.shape) == 4:
            if len(out.shape) == 3:
                raise Unknown("gives 3 axes")
            axes = sorted(_AXES[axis] for axis in axes)
        inputs = [script.names[x.index], script.weight(np.array(axes, np.int64))]
        return script.make(op, inputs, keepdims=int(options.keepDims))

    return write


def _concatenation(script: Transcript, operator: Operator, options: Options, out: Tensor) -> str:
    axis = options.axis % len(out.shape)
    if any(script.tensors[index].constant for index in operator.inputs):
        raise Unknown("joins a constant")
    names = [script.names[index] for index in operator.inputs]
    return script.make("Concat", names, axis=_AXES[axis] if len(out.shape) == 4 else axis)


def _rearrange(script: Transcript, operator: Operator, _: Options, out: Tensor) -> str:
    """Elements keep the order in which they lie in the model."""
    x = script.tensors[operator.inputs[0]]
    flat = script.channels_last(script.names[x.index], x)
    shaped = script.make("Reshape", [flat, script.weight(np.array(out.shape, np.int64))])
    return script.channels_first(shaped, out)


def _pad(script: Transcript, operator: Operator, _: Options, out: Tensor) -> str:
    widths = script.constant(operator.inputs[1]).astype(np.int64)
    if len(out.shape) == 4:
        widths = widths[[0, 3, 1, 2]]
    return script.make("Pad", [script.names[operator.inputs[0]], script.weight(widths.T.ravel())])


_RULES: dict[str, Rule] = {
    **dict.fromkeys(["CONV_2D", "DEPTHWISE_CONV_2D"], _convolution),
    "FULLY_CONNECTED": _dense,
    **{name: _binary(name.capitalize()) for name in ("ADD", "SUB", "MUL", "DIV")},
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "MEAN": _reduce("ReduceMean"),
    "SUM": _reduce("ReduceSum"),
    "CONCATENATION": _concatenation,
    **dict.fromkeys(["RESHAPE", "SQUEEZE", "EXPAND_DIMS"], _rearrange),
    "PAD": _pad,
    "RELU": _activation("Relu"),
    "RELU6": _clipped(0.0, 6.0),
    "RELU_0_TO_1": _clipped(0.0, 1.0),
    "RELU_N1_TO_1": _clipped(-1.0, 1.0),
    "LOGISTIC": _activation("Sigmoid"),
    "TANH": _activation("Tanh"),
    "ELU": _activation("Elu"),
    "HARD_SWISH": _activation("HardSwish"),
    "LEAKY_RELU": _leaky,
    "GELU": _gelu,
    "PRELU": _prelu,
    # Values do not change but for the rounding to the scale of the result.
    **dict.fromkeys(["QUANTIZE", "DEQUANTIZE"], _activation("Identity")),
}
