"""TensorFlow Lite model files: tensors, operators and signatures.

A file is a flatbuffer of subgraphs. The runtime runs the first; others belong to control flow or to
further signatures. The standard library alone is used: the device has no package for the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from edge_monitor.errors import ModelError
from edge_monitor.taps import tflite_schema as schema
from edge_monitor.taps.flatbuffer import FlatBuffer, Table


class Tensor(msgspec.Struct, frozen=True):
    """One tensor; where it has scales, value = scale * (stored - zero point).

    ``scales`` and ``zero_points`` have one entry for the whole tensor, or one for each index along
    ``axis``, or none. ``constant``: the file holds its values; ``variable``: it lives from one frame
    to the next.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    constant: bool
    variable: bool


class Operator(NamedTuple):
    """One operator: its builtin or custom name, the inputs that are used, and what is fused into it.

    ``activation`` is NONE, too, where the operator can have none.
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str


class Signature(NamedTuple):
    """One way to call the model: the subgraph it runs, and its names for that subgraph's tensors."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


class Graph(NamedTuple):
    """The first subgraph, operators in order of execution, and what the file has besides it."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    n_subgraphs: int
    signatures: tuple[Signature, ...]


def read_model(data: bytes, name: str = "model") -> Graph:
    """Read a serialized TensorFlow Lite model.

    Raises
    ------
    ModelError
        The bytes are no whole TensorFlow Lite model, or its weights lie in other files.
    """
    try:
        model = FlatBuffer(data, schema.IDENTIFIER).root()
        graph = _read_graph(model, len(data))
        external = any(model.tables(schema.MODEL_EXTERNAL))
    except ValueError as error:
        raise ModelError(name, f"not a whole TensorFlow Lite model ({error})") from error
    if external:
        raise ModelError(name, "keeps weights in other files; save it with its weights inside")
    return graph


def check_entry(graph: Graph, name: str = "model") -> None:
    """Refuse a model of which it is not known which graph will run.

    Graphs of control flow do no harm: they run as part of the first.

    Raises
    ------
    ModelError
        Signatures run other subgraphs than the first.
    """
    elsewhere = [signature.key for signature in graph.signatures if signature.subgraph != 0]
    if elsewhere:
        raise ModelError(
            name, f"signatures {', '.join(elsewhere)} run graphs of their own; save one model for each"
        )


def _read_graph(model: Table, file_size: int) -> Graph:
    for metadata in model.tables(schema.MODEL_METADATA):
        metadata.text(schema.METADATA_NAME)
    filled = [_is_filled(buffer, file_size) for buffer in model.tables(schema.MODEL_BUFFERS)]
    codes = [_read_code(code) for code in model.tables(schema.MODEL_CODES)]
    subgraphs = [_read_subgraph(graph, codes, filled) for graph in model.tables(schema.MODEL_SUBGRAPHS)]
    if not subgraphs or not subgraphs[0].operators or not subgraphs[0].outputs:
        raise ValueError("nothing in it is computed")
    sizes = [len(graph.tensors) for graph in subgraphs]
    signatures = [_read_signature(table, sizes) for table in model.tables(schema.MODEL_SIGNATURES)]
    return subgraphs[0]._replace(n_subgraphs=len(subgraphs), signatures=tuple(signatures))


def _is_filled(buffer: Table, file_size: int) -> bool:
    """Whether a buffer holds anything; in very large files that lies behind the flatbuffer."""
    offset, size = buffer.number(schema.BUFFER_OFFSET, "Q"), buffer.number(schema.BUFFER_SIZE, "Q")
    if offset + size > file_size:
        raise ValueError(f"weights at bytes {offset} to {offset + size} of {file_size}")
    return bool(size or buffer.n_bytes(schema.BUFFER_DATA))


def _read_code(code: Table) -> str:
    # Files written before there were 127 operators have the number in a byte of its own.
    number = max(code.number(schema.CODE_BYTE, "b"), code.number(schema.CODE_INT, "i"))
    if number == schema.CUSTOM:
        return code.text(schema.CODE_CUSTOM)
    return _name(schema.OPERATORS, number, "operator")


def _read_subgraph(graph: Table, codes: Sequence[str], filled: Sequence[bool]) -> Graph:
    tensors = [
        _read_tensor(table, index, filled)
        for index, table in enumerate(graph.tables(schema.SUBGRAPH_TENSORS))
    ]
    operators = [
        _read_operator(table, codes, len(tensors)) for table in graph.tables(schema.SUBGRAPH_OPERATORS)
    ]
    inputs, outputs = (
        graph.vector(field, "i") for field in (schema.SUBGRAPH_INPUTS, schema.SUBGRAPH_OUTPUTS)
    )
    _check_tensors([*inputs, *outputs], len(tensors))
    return Graph(tuple(tensors), tuple(operators), inputs, outputs, 0, ())


def _read_tensor(tensor: Table, index: int, filled: Sequence[bool]) -> Tensor:
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = 0
    if quantisation := tensor.table(schema.TENSOR_QUANTISATION):
        scales = quantisation.vector(schema.QUANTISATION_SCALES, "f")
        zero_points = quantisation.vector(schema.QUANTISATION_ZERO_POINTS, "q") or (0,) * len(scales)
        axis = quantisation.number(schema.QUANTISATION_AXIS, "i")
        if len(zero_points) != len(scales):
            raise ValueError(f"tensor {index} has {len(scales)} scales and {len(zero_points)} zero points")
    buffer = tensor.number(schema.TENSOR_BUFFER, "I")
    if buffer >= len(filled):
        raise ValueError(f"tensor {index} lies in buffer {buffer} of {len(filled)}")
    return Tensor(
        index,
        tensor.text(schema.TENSOR_NAME),
        tensor.vector(schema.TENSOR_SHAPE, "i"),
        _name(schema.DTYPES, tensor.number(schema.TENSOR_TYPE, "b"), "type"),
        scales,
        zero_points,
        axis,
        filled[buffer],
        bool(tensor.number(schema.TENSOR_VARIABLE, "B")),
    )


def _read_operator(operator: Table, codes: Sequence[str], n_tensors: int) -> Operator:
    code = operator.number(schema.OPERATOR_CODE, "I")
    if code >= len(codes):
        raise ValueError(f"operator of kind {code}, {len(codes)} are named")
    inputs = tuple(i for i in operator.vector(schema.OPERATOR_INPUTS, "i") if i != schema.UNUSED)
    outputs = operator.vector(schema.OPERATOR_OUTPUTS, "i")
    _check_tensors([*inputs, *outputs], n_tensors)
    operator.n_bytes(schema.OPERATOR_CUSTOM)
    options, op = operator.table(schema.OPERATOR_OPTIONS), codes[code]
    fused = options.number(schema.FUSED_FIELDS[op], "b") if options and op in schema.FUSED_FIELDS else 0
    return Operator(op, inputs, outputs, _name(schema.FUSED, fused, "activation"))


def _read_signature(signature: Table, sizes: Sequence[int]) -> Signature:
    key, subgraph = signature.text(schema.SIGNATURE_KEY), signature.number(schema.SIGNATURE_SUBGRAPH, "I")
    if subgraph >= len(sizes):
        raise ValueError(f"signature {key} of subgraph {subgraph}, there are {len(sizes)}")
    inputs, outputs = (
        {
            table.text(schema.MAP_NAME): table.number(schema.MAP_TENSOR, "I")
            for table in signature.tables(field)
        }
        for field in (schema.SIGNATURE_INPUTS, schema.SIGNATURE_OUTPUTS)
    )
    _check_tensors([*inputs.values(), *outputs.values()], sizes[subgraph])
    return Signature(key, subgraph, inputs, outputs)


def _check_tensors(indices: Sequence[int], n_tensors: int) -> None:
    for index in indices:
        if not 0 <= index < n_tensors:
            raise ValueError(f"tensor {index} of {n_tensors}")


def _name(names: Sequence[str], number: int, kind: str) -> str:
    """Name by number; one that is newer than this list, or no number of the kind, is called by it."""
    return names[number] if 0 <= number < len(names) else f"{kind} {number}"
