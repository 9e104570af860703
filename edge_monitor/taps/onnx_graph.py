"""ONNX model files: which tensors can be tapped, and how a file gains outputs (design section 4).

Only *post-activation* tensors are tapped: what a Relu, Clip or the like returns, or a residual Add
that no activation follows. ONNX Runtime fuses convolution, normalisation, residual Add and activation
into one kernel. A tensor at the end of such a kernel can be read without splitting it; one from its
middle (a convolution before its activation) makes the runtime compute apart what was fused, which
costs time and rounds differently. In quantised (QDQ) graphs the tensor is read behind its
QuantizeLinear and DequantizeLinear, for the same reason.

The standard library alone is used: the device has no ``onnx`` package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from edge_monitor.errors import ModelError
from edge_monitor.taps.model_file import is_tflite
from edge_monitor.taps.protobuf import bytes_field, encode_field, read_fields

ACTIVATIONS = frozenset(
    {
        *("Celu", "Clip", "Elu", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish"),
        *("PRelu", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"),
        "ThresholdedRelu",
    }
)
_GATES = frozenset({"Sigmoid", "HardSigmoid"})
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT, _GRAPH_VALUE = 1, 5, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_VALUE_NAME = 1
_TENSOR_NAME, _TENSOR_LOCATION, _EXTERNAL = 8, 14, 1


class Node(NamedTuple):
    """One operator of a graph; an optional input that is not used is the empty string."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph(NamedTuple):
    """What tapping needs to know of a model: operators in order of execution, outputs, initializers."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    initializers: frozenset[str]


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
    external = False
    if is_tflite(data):
        raise ModelError(name, "is a TensorFlow Lite model; this takes the ONNX form of it")
    try:
        # A graph that was extended by appended bytes occurs several times.
        for graph in _submessages(memoryview(data), _MODEL_GRAPH):
            for message in _submessages(graph, _GRAPH_NODE):
                op = _texts(message, _NODE_OP)[0]
                nodes.append(Node(op, _texts(message, _NODE_INPUT), _texts(message, _NODE_OUTPUT)))
            outputs.extend(_outputs(graph))
            for message in _submessages(graph, _GRAPH_INITIALIZER):
                initializers.extend(_texts(message, _TENSOR_NAME))
                external |= (_TENSOR_LOCATION, _EXTERNAL) in read_fields(message)
    except (ValueError, IndexError) as error:
        raise ModelError(name, f"not a whole ONNX model ({error})") from error
    if not nodes or not outputs:
        raise ModelError(name, f"not a whole ONNX model ({len(nodes)} nodes, {len(outputs)} outputs)")
    if external:
        raise ModelError(name, "keeps weights in other files; save it with its weights inside")
    return Graph(tuple(nodes), tuple(outputs), frozenset(initializers))


def find_candidates(graph: Graph) -> dict[str, str]:
    """Post-activation tensors in order of execution: name -> operator that made it.

    Left out are the model's own outputs, all that follows a Softmax, and gates: a Sigmoid that only
    scales another tensor. Of ``x * Sigmoid(x)`` (SiLU) the product is listed.
    """
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)
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
        if silu or residual or op in ACTIVATIONS:
            found[_behind_quantisation(outputs[0], readers)] = op
    return {name: op for name, op in found.items() if name not in graph.outputs}


def add_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """Return the model with post-activation tensors as further outputs, behind its own.

    The bytes of ``ModelProto{graph{output{name}}}`` are appended; a decoder merges them into the
    model's graph, and the runtime infers their types.

    Raises
    ------
    ModelError
        ``data`` is no whole ONNX model, a name is no candidate (`find_candidates`) or given twice.
    """
    valid = find_candidates(read_graph(data))
    for index, name in enumerate(names):
        if name not in valid:
            nearest = difflib.get_close_matches(name, valid, n=3, cutoff=0.0)
            raise ModelError(name, f"no such tap; nearest: {', '.join(nearest) or 'the model has none'}")
        if name in names[:index]:
            raise ModelError(name, "tapped twice")
    outputs = (bytes_field(_GRAPH_OUTPUT, bytes_field(_VALUE_NAME, name.encode())) for name in names)
    return data + bytes_field(_MODEL_GRAPH, b"".join(outputs))


def prefix(data: bytes, name: str) -> bytes:
    """Return the model up to one tensor: it is the only output, and nothing else is computed.

    Operators that the tensor does not need are left out, for the runtime would run them all the same.

    Raises
    ------
    ModelError
        ``data`` is no whole ONNX model, or no operator makes the tensor.
    """
    if all(name not in node.outputs for node in read_graph(data).nodes):
        raise ModelError(name, "no operator of the model makes it")
    whole, needed = memoryview(data), {name}
    nodes = [node for graph in _submessages(whole, _MODEL_GRAPH) for node in _submessages(graph, _GRAPH_NODE)]
    for node in reversed(nodes):
        if not needed.isdisjoint(_texts(node, _NODE_OUTPUT)):
            needed |= _reads(node)

    def is_kept(field: int, value: int | memoryview) -> bool:
        made = {_GRAPH_NODE: _NODE_OUTPUT, _GRAPH_INITIALIZER: _TENSOR_NAME, _GRAPH_VALUE: _VALUE_NAME}
        if field not in made or isinstance(value, int):
            return field != _GRAPH_OUTPUT
        return not needed.isdisjoint(_texts(value, made[field]))

    cut = bytearray()
    for field, value in read_fields(whole):
        if field == _MODEL_GRAPH and isinstance(value, memoryview):
            kept = (encode_field(*item) for item in read_fields(value) if is_kept(*item))
            cut += bytes_field(_MODEL_GRAPH, b"".join(kept))
        else:
            cut += encode_field(field, value)
    output = bytes_field(_GRAPH_OUTPUT, bytes_field(_VALUE_NAME, name.encode()))
    return bytes(cut) + bytes_field(_MODEL_GRAPH, output)


def _reads(node: memoryview) -> set[str]:
    """Names that an operator reads, the bodies of If, Loop and Scan included."""
    names = set(_texts(node, _NODE_INPUT))
    for attribute in _submessages(node, _NODE_ATTRIBUTE):
        for field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            for body in _submessages(attribute, field):
                names.update(*map(_reads, _submessages(body, _GRAPH_NODE)))
                names.update(_outputs(body))
    return names - {""}


def _outputs(graph: memoryview) -> Iterator[str]:
    """Yield the outputs of a graph; a branch of If may give back an outer tensor as it is."""
    for message in _submessages(graph, _GRAPH_OUTPUT):
        yield from _texts(message, _VALUE_NAME)


def _submessages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Every occurrence of one message or string field."""
    for field, value in read_fields(message):
        if field == number and isinstance(value, memoryview):
            yield value


def _texts(message: memoryview, number: int) -> tuple[str, ...]:
    return tuple(str(value, "utf-8") for value in _submessages(message, number))


def _behind_quantisation(name: str, readers: Mapping[str, Sequence[Node]]) -> str:
    """Return the tensor behind QuantizeLinear and DequantizeLinear when only that pair reads ``name``."""
    tensor = name
    for op in ("QuantizeLinear", "DequantizeLinear"):
        nodes = readers.get(tensor, ())
        if len(nodes) == 0 or any(node.op != op for node in nodes):
            return name
        tensor = nodes[0].outputs[0]
    return tensor
