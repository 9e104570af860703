"""ONNX model files: the model up to one tensor, cut with the standard library alone."""

from __future__ import annotations

from edge_monitor.errors import ModelError
from edge_monitor.taps.onnx_edit import tensors_read
from edge_monitor.taps.onnx_graph import read_graph
from edge_monitor.taps.onnx_schema import (
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    GRAPH_VALUE,
    MODEL_GRAPH,
    NODE_OUTPUT,
    TENSOR_NAME,
    VALUE_NAME,
)
from edge_monitor.taps.protobuf import bytes_field, encode_field, read_fields, submessages, texts

_MADE = {GRAPH_NODE: NODE_OUTPUT, GRAPH_INITIALIZER: TENSOR_NAME, GRAPH_VALUE: VALUE_NAME}


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
    nodes = [node for graph in submessages(whole, MODEL_GRAPH) for node in submessages(graph, GRAPH_NODE)]
    for node in reversed(nodes):
        if not needed.isdisjoint(texts(node, NODE_OUTPUT)):
            needed |= tensors_read(node)

    def is_kept(field: int, value: int | memoryview) -> bool:
        if field not in _MADE or isinstance(value, int):
            return field != GRAPH_OUTPUT
        return not needed.isdisjoint(texts(value, _MADE[field]))

    cut = bytearray()
    for field, value in read_fields(whole):
        if field == MODEL_GRAPH and isinstance(value, memoryview):
            kept = (encode_field(*item) for item in read_fields(value) if is_kept(*item))
            cut += bytes_field(MODEL_GRAPH, b"".join(kept))
        else:
            cut += encode_field(field, value)
    output = bytes_field(GRAPH_OUTPUT, bytes_field(VALUE_NAME, name.encode()))
    return bytes(cut) + bytes_field(MODEL_GRAPH, output)
