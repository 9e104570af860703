"""TensorFlow Lite model files with other outputs, or cut in two, by repointing a few vectors.

Nothing is moved: new vectors of tensor numbers come behind the file's last byte, and the subgraph's
references to the old ones are set to them. A reference can only point forward, so a list of operators
cannot be appended; it is shortened in place. Tensors keep their numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from edge_monitor.errors import ModelError
from edge_monitor.taps import tflite_schema as schema
from edge_monitor.taps.flatbuffer import FlatBuffer
from edge_monitor.taps.tflite_file import Graph, check_entry, read_model

_LARGEST = 2**31 - 1
"""Bytes of a flatbuffer at most, by its specification."""


def with_outputs(model: bytes, tensors: Sequence[int]) -> bytes:
    """Return the model with further outputs, behind its own.

    Its signatures are kept: a call by signature gives its own outputs alone, and leaves the taps in the
    memory of their tensors. In a model that is cut they would name tensors that are gone.

    Raises
    ------
    ModelError
        ``model`` is no whole model, or it is not known which of its graphs will run, or a tensor does
        not depend on the inputs, or is an output already, or is given twice.
    """
    graph = read_model(model)
    _check(graph, tensors)
    for index in tensors:
        if index in graph.outputs or index in graph.inputs:
            raise ModelError(_label(graph, index), "is an input or output of the model already")
    return _rewrite(model, outputs=[*graph.outputs, *tensors], keep_signatures=True)


def prefix(model: bytes, tensors: Sequence[int]) -> bytes:
    """Return the model up to these tensors: they are its outputs, and nothing else is computed.

    Raises
    ------
    ModelError
        As `with_outputs`, or the model keeps state, or all the tensors are inputs of the model.
    """
    graph = read_model(model)
    _check(graph, tensors)
    _check_stateless(graph)
    operators, _ = _find_needed(graph, tensors, set())
    if not operators:
        raise ModelError(_label(graph, tensors[0]), "is an input of the model, nothing comes before it")
    return _rewrite(model, outputs=tensors, operators=operators)


def suffix(model: bytes, tensors: Sequence[int]) -> bytes:
    """Return the model from these tensors on: those of its outputs that depend on them.

    Its inputs are the tensors, then every other tensor that is still read and does not depend on them,
    like that of a skip branch: so every tensor splits the model. They are ``read_model(...).inputs``
    of the result, and `prefix` of the same numbers is the other half.

    Raises
    ------
    ModelError
        As `with_outputs`, or the model keeps state, or no output depends on the tensors.
    """
    graph = read_model(model)
    _check(graph, tensors)
    _check_stateless(graph)
    cut, behind = set(tensors), set(tensors)
    for operator in graph.operators:
        if cut.isdisjoint(operator.outputs) and not behind.isdisjoint(operator.inputs):
            behind.update(operator.outputs)
    outputs = [index for index in graph.outputs if index in behind - cut]
    if not outputs:
        raise ModelError(_label(graph, tensors[0]), "no output of the model depends on it")
    passing = [index for index in _find_values(graph) if index not in behind]
    operators, read = _find_needed(graph, outputs, cut.union(passing))
    inputs = [*tensors, *(index for index in passing if index in read)]
    return _rewrite(model, inputs=inputs, outputs=outputs, operators=operators)


def _find_values(graph: Graph) -> list[int]:
    """Tensors that depend on the values of the inputs, not only on their sizes, in order of execution."""
    found = dict.fromkeys(graph.inputs)
    for operator in graph.operators:
        if operator.op != "SHAPE" and not found.keys().isdisjoint(operator.inputs):
            found.update(dict.fromkeys(operator.outputs))
    return list(found)


def _find_needed(graph: Graph, tensors: Sequence[int], given: set[int]) -> tuple[list[int], set[int]]:
    """Places of the operators that compute ``tensors`` from those ``given``, and all tensors they read."""
    read = set(tensors)
    places = []
    for place, operator in reversed(list(enumerate(graph.operators))):
        if not read.isdisjoint(operator.outputs) and given.isdisjoint(operator.outputs):
            places.append(place)
            read.update(operator.inputs)
    return places[::-1], read


def _check(graph: Graph, tensors: Sequence[int]) -> None:
    check_entry(graph)
    if not tensors:
        raise ModelError("tensors", "none given")
    values = set(_find_values(graph))
    for place, index in enumerate(tensors):
        if index not in values:
            raise ModelError(_label(graph, index), "does not depend on the model's inputs")
        if index in tensors[:place]:
            raise ModelError(_label(graph, index), "given twice")


def _check_stateless(graph: Graph) -> None:
    for operator in graph.operators:
        if not operator.outputs or any(graph.tensors[index].variable for index in operator.inputs):
            raise ModelError("model", f"keeps state from frame to frame ({operator.op}); it cannot be cut")


def _label(graph: Graph, index: int) -> str:
    name = graph.tensors[index].name if 0 <= index < len(graph.tensors) else ""
    return f"tensor {index} {name}".rstrip()


def _rewrite(
    data: bytes,
    *,
    inputs: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
    operators: Sequence[int] | None = None,
    keep_signatures: bool = False,
) -> bytes:
    """Return the model with other inputs or outputs, or with only those of its operators."""
    model = FlatBuffer(data, schema.IDENTIFIER).root()
    graph = next(model.tables(schema.MODEL_SUBGRAPHS))
    edited = bytearray(data)
    vectors = [
        (graph.position(schema.SUBGRAPH_INPUTS), inputs),
        (graph.position(schema.SUBGRAPH_OUTPUTS), outputs),
        (model.position(schema.MODEL_SIGNATURES), None if keep_signatures else ()),
    ]
    for field, numbers in vectors:
        if field is None or numbers is None:
            continue
        # A vector of 4-byte numbers lies at a multiple of 4 (test_vectors_are_aligned).
        edited.extend(bytes(-len(edited) % 4))
        struct.pack_into("<I", edited, field, len(edited) - field)
        edited.extend(struct.pack(f"<I{len(numbers)}i", len(numbers), *numbers))
    start = graph.target(schema.SUBGRAPH_OPERATORS)
    if operators is not None and start is not None:
        # Each reference moves towards the front, hence stays positive.
        (length,) = struct.unpack_from("<I", data, start)
        references = struct.unpack_from(f"<{length}I", data, start + 4)
        kept = [references[place] + 4 * (place - slot) for slot, place in enumerate(operators)]
        struct.pack_into(f"<I{len(kept)}I", edited, start, len(kept), *kept)
    if len(edited) > _LARGEST:
        raise ModelError("model", f"has {len(edited)} bytes, at most {_LARGEST} can be edited")
    return bytes(edited)
