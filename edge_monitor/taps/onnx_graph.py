"""ONNX model files: which tensors can be tapped (design section 4).

Only *post-activation* tensors are tapped: what a Relu, Clip or the like returns, or a residual Add
that no activation follows. ONNX Runtime fuses convolution, normalisation, residual Add and activation
into one kernel. A tensor at the end of such a kernel can be read without splitting it; one from its
middle (a convolution before its activation) makes the runtime compute apart what was fused, which
costs time and rounds differently. In quantised (QDQ) graphs the tensor is named by what it is behind its
QuantizeLinear and DequantizeLinear, for the same reason, and read between the two (`find_quantised`).

The standard library alone is used: the device has no ``onnx`` package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edge_monitor.errors import ModelError
from edge_monitor.taps.candidates import check_taps
from edge_monitor.taps.model_file import is_tflite
from edge_monitor.taps.onnx_edit import append_outputs
from edge_monitor.taps.onnx_schema import (
    EXTERNAL,
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    MODEL_GRAPH,
    NODE_INPUT,
    NODE_OP,
    NODE_OUTPUT,
    TENSOR_LOCATION,
    TENSOR_NAME,
    VALUE_NAME,
)
from edge_monitor.taps.onnx_tensor import Scalar, read_scalar
from edge_monitor.taps.protobuf import read_fields, submessages, texts

ACTIVATIONS = frozenset(
    {
        *("Celu", "Clip", "Elu", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish"),
        *("PRelu", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"),
        "ThresholdedRelu",
    }
)
_GATES = frozenset({"Sigmoid", "HardSigmoid"})
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_LINEAR = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_LEAST = {"int8": -128.0, "uint8": 0.0}


class Node(NamedTuple):
    """One operator of a graph; an optional input that is not used is the empty string."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph(NamedTuple):
    """What tapping needs to know of a model: operators in order of execution, outputs, initializers.

    ``scalars``: the initializers of one element.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    initializers: frozenset[str]
    scalars: Mapping[str, Scalar]


class Quantised(NamedTuple):
    """Tensor of integers q that stand for scale (q - zero point)."""

    tensor: str
    scale: float
    zero_point: int


def read_graph(data: bytes, name: str = "model") -> Graph:
    """Read the graph of a serialized ONNX model.

    Raises
    ------
    ModelError
        The bytes are no whole ONNX model, or its weights lie in other files.
    """
    nodes: list[Node] = []
    outputs: list[str] = []
    initializers: list[str] = []
    scalars: dict[str, Scalar] = {}
    external = False
    if is_tflite(data):
        raise ModelError(name, "is a TensorFlow Lite model; this takes the ONNX form of it")
    try:
        # A graph that was extended by appended bytes occurs several times.
        for graph in submessages(memoryview(data), MODEL_GRAPH):
            for message in submessages(graph, GRAPH_NODE):
                op = texts(message, NODE_OP)[0]
                nodes.append(Node(op, texts(message, NODE_INPUT), texts(message, NODE_OUTPUT)))
            for message in submessages(graph, GRAPH_OUTPUT):
                outputs.extend(texts(message, VALUE_NAME))
            for message in submessages(graph, GRAPH_INITIALIZER):
                initializers.extend(texts(message, TENSOR_NAME))
                external |= (TENSOR_LOCATION, EXTERNAL) in read_fields(message)
                scalar = read_scalar(message)
                if scalar is not None:
                    scalars[initializers[-1]] = scalar
    except (ValueError, IndexError) as error:
        raise ModelError(name, f"not a whole ONNX model ({error})") from error
    if not nodes or not outputs:
        raise ModelError(name, f"not a whole ONNX model ({len(nodes)} nodes, {len(outputs)} outputs)")
    if external:
        raise ModelError(name, "keeps weights in other files; save it with its weights inside")
    return Graph(tuple(nodes), tuple(outputs), frozenset(initializers), scalars)


def find_candidates(graph: Graph) -> dict[str, str]:
    """Post-activation tensors in order of execution: name -> operator that made it.

    Left out are the model's own outputs, all that follows a Softmax, and gates: a Sigmoid that only
    scales another tensor. Of ``x * Sigmoid(x)`` (SiLU) the product is listed, and of a quantised model
    also what is quantised with its least integer for 0: that is how a Relu looks that was folded into it.
    """
    readers = find_readers(graph)
    gates: dict[str, str] = {}
    constants = set(graph.initializers)
    after_softmax: set[str] = set()
    found: dict[str, str] = {}
    for op, inputs, outputs in graph.nodes:
        if op == "Constant" or (inputs and constants.issuperset(inputs)):
            constants.update(outputs)
            continue
        if op in _SOFTMAX or not after_softmax.isdisjoint(inputs):
            after_softmax.update(outputs)
            continue
        read_by = {node.op for node in readers.get(outputs[0], ())}
        if op in _GATES and read_by == {"Mul"}:
            gates[outputs[0]] = inputs[0]
            continue
        silu = op == "Mul" and (gates.get(inputs[0]) == inputs[1] or gates.get(inputs[1]) == inputs[0])
        residual = op == "Add" and constants.isdisjoint(inputs) and read_by.isdisjoint(ACTIVATIONS)
        folded = op in _LINEAR and _is_cut_at_zero(readers.get(outputs[0], ()), graph.scalars)
        if silu or residual or folded or op in ACTIVATIONS:
            found[_behind_quantisation(outputs[0], readers)] = op
    return {name: op for name, op in found.items() if name not in graph.outputs}


def find_readers(graph: Graph) -> dict[str, list[Node]]:
    """Operators that read each tensor."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)
    return readers


def find_quantised(graph: Graph) -> dict[str, Quantised]:
    """Integers behind what DequantizeLinear returns, where one scale stands for the whole tensor."""
    found = {}
    for op, inputs, outputs in graph.nodes:
        if op == "DequantizeLinear" and inputs[0] not in graph.initializers:
            numbers = [graph.scalars.get(name) for name in inputs[1:]]
            if numbers and all(number is not None and math.isfinite(number.value) for number in numbers):
                scale, zero_point = (*(number.value for number in numbers if number), 0.0)[:2]
                if scale > 0:
                    found[outputs[0]] = Quantised(inputs[0], scale, int(zero_point))
    return found


def add_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """Return the model with post-activation tensors as further outputs, behind its own.

    Raises
    ------
    ModelError
        ``data`` is no whole ONNX model, a name is no candidate (`find_candidates`) or given twice.
    """
    check_taps(names, find_candidates(read_graph(data)))
    return append_outputs(data, names)


def _behind_quantisation(name: str, readers: Mapping[str, Sequence[Node]]) -> str:
    """Return the tensor behind QuantizeLinear and DequantizeLinear when only that pair reads ``name``."""
    tensor = name
    for op in ("QuantizeLinear", "DequantizeLinear"):
        nodes = readers.get(tensor, ())
        if len(nodes) == 0 or any(node.op != op for node in nodes):
            return name
        tensor = nodes[0].outputs[0]
    return tensor


def _is_cut_at_zero(readers: Sequence[Node], scalars: Mapping[str, Scalar]) -> bool:
    """Whether all that reads a tensor quantises it with the least integer for 0."""
    for op, inputs, _ in readers:
        zero_point = scalars.get(inputs[2]) if op == "QuantizeLinear" and len(inputs) == 3 else None
        if zero_point is None or zero_point.value != _LEAST.get(zero_point.dtype):
            return False
    return len(readers) > 0
