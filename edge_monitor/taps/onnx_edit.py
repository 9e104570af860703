"""ONNX model files: how one gains outputs, and how an output gives way to another tensor.

The standard library alone is used: the device has no ``onnx`` package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_monitor.taps.onnx_schema import (
    ATTRIBUTE_GRAPH,
    ATTRIBUTE_GRAPHS,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    NODE_INPUT,
    NODE_OUTPUT,
    VALUE_NAME,
)
from edge_monitor.taps.protobuf import bytes_field, encode_field, read_fields, submessages, texts


def append_outputs(data: bytes, tensors: Sequence[str]) -> bytes:
    """Return the model with any tensors as further outputs.

    The bytes of ``ModelProto{graph{output{name}}}`` are appended; a decoder merges them into the
    model's graph, and the runtime infers their types.
    """
    return data + bytes_field(MODEL_GRAPH, b"".join(map(_output, tensors)))


def replace_outputs(data: bytes, replacements: Mapping[str, str]) -> bytes:
    """Return the model with other tensors in the place of some outputs.

    An operator is left out whose result was such an output and that nobody else reads: the runtime would
    go on computing it.

    Raises
    ------
    ValueError
        ``data`` is no message of Protocol Buffers.
    """
    model = []
    for field, value in read_fields(memoryview(data)):
        if field == MODEL_GRAPH and isinstance(value, memoryview):
            model.append(bytes_field(field, _in_graph(value, replacements)))
        else:
            model.append(encode_field(field, value))
    return b"".join(model)


def tensors_read(node: memoryview) -> set[str]:
    """Names that an operator reads, the bodies of If, Loop and Scan included."""
    names = set(texts(node, NODE_INPUT))
    for attribute in submessages(node, NODE_ATTRIBUTE):
        for field in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            for body in submessages(attribute, field):
                names.update(*map(tensors_read, submessages(body, GRAPH_NODE)))
                for output in submessages(body, GRAPH_OUTPUT):  # a branch may give an outer tensor as it is
                    names.update(texts(output, VALUE_NAME))
    return names - {""}


def _in_graph(graph: memoryview, replacements: Mapping[str, str]) -> bytes:
    read = {name for node in submessages(graph, GRAPH_NODE) for name in tensors_read(node)}
    unread = replacements.keys() - read
    fields = []
    for field, value in read_fields(graph):
        assert isinstance(value, memoryview)  # all fields of a graph are messages or strings
        made = texts(value, NODE_OUTPUT) if field == GRAPH_NODE else ()
        if made and unread.issuperset(made):
            continue
        name = texts(value, VALUE_NAME)[0] if field == GRAPH_OUTPUT else ""
        fields.append(_output(replacements[name]) if name in replacements else bytes_field(field, value))
    return b"".join(fields)


def _output(name: str) -> bytes:
    return bytes_field(GRAPH_OUTPUT, bytes_field(VALUE_NAME, name.encode()))
