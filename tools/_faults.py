"""Faulty copies of an ONNX model: a channel that is dead or stuck, a weight with a flipped exponent bit."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

EXPONENT_BITS = range(23, 31)
"""Of an IEEE 754 single-precision number."""


def hold_channel(model: onnx.ModelProto, tap: str, channel: int, value: float) -> bytes:
    """Model in which the input of the activation that makes ``tap`` is ``value`` in one channel."""
    faulty = onnx.ModelProto()
    faulty.CopyFrom(model)
    nodes = list(faulty.graph.node)
    place, activation = next((i, node) for i, node in enumerate(nodes) if tap in node.output)
    n_channels, n_axes = _shape(model, tap)
    shape = (1, n_channels, *[1] * (n_axes - 2))
    gain, bias = np.ones(n_channels, np.float32), np.zeros(n_channels, np.float32)
    gain[channel], bias[channel] = 0.0, value
    faulty.graph.initializer.extend(
        [
            numpy_helper.from_array(gain.reshape(shape), "fault_gain"),
            numpy_helper.from_array(bias.reshape(shape), "fault_bias"),
        ]
    )
    held = [
        helper.make_node("Mul", [activation.input[0], "fault_gain"], ["fault_scaled"]),
        helper.make_node("Add", ["fault_scaled", "fault_bias"], ["fault_held"]),
    ]
    activation.input[0] = "fault_held"
    nodes[place:place] = held
    del faulty.graph.node[:]
    faulty.graph.node.extend(nodes)
    return faulty.SerializeToString()


def flip_bit(model: onnx.ModelProto, tensor: str, index: int, bit: int) -> bytes:
    """Model with one bit of one weight flipped."""
    faulty = onnx.ModelProto()
    faulty.CopyFrom(model)
    initializer = next(item for item in faulty.graph.initializer if item.name == tensor)
    values = numpy_helper.to_array(initializer).astype(np.float32)
    values.reshape(-1).view(np.uint32)[index] ^= np.uint32(1 << bit)
    initializer.CopyFrom(numpy_helper.from_array(values, tensor))
    return faulty.SerializeToString()


def weights_before(model: onnx.ModelProto, taps: list[str]) -> dict[str, str]:
    """Weight matrices and the first of ``taps`` (in order of execution) that each one reaches.

    Weights that reach none, behind the last tap, are left out.
    """
    weights = {item.name for item in model.graph.initializer if len(item.dims) > 1}
    reached: dict[str, set[str]] = {}
    for node in model.graph.node:
        sources = {name for name in node.input if name in weights}
        for name in node.input:
            sources |= reached.get(name, set())
        for output in node.output:
            reached[output] = sources
    first: dict[str, str] = {}
    for tap in taps:
        for name in sorted(reached[tap]):
            first.setdefault(name, tap)
    return first


def _shape(model: onnx.ModelProto, tensor: str) -> tuple[int, int]:
    """Channels and number of axes of a tensor."""
    inferred = onnx.shape_inference.infer_shapes(model)
    value = next(item for item in inferred.graph.value_info if item.name == tensor)
    dims = value.type.tensor_type.shape.dim
    return dims[1].dim_value, len(dims)
