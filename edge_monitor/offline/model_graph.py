"""ONNX graphs: reading them, making models of their parts, opening and running those."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_monitor.errors import ModelError, first_line
from edge_monitor.taps.onnx import find_observed_input, input_type, open_session, quiet_options
from edge_monitor.taps.onnx_graph import read_graph

_SIZES = frozenset({"Shape", "Size"})


def data_tensors(graph: onnx.GraphProto) -> list[str]:
    """Tensors that depend on the values of the inputs, not only on their sizes, in order of execution."""
    found = dict.fromkeys(value.name for value in real_inputs(graph))
    for node in graph.node:
        if node.op_type not in _SIZES and not found.keys().isdisjoint(reads(node)):
            found.update(dict.fromkeys(filter(None, node.output)))
    return list(found)


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the real inputs: old models list their weights as inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, the bodies of If and Loop included, which may give an outer tensor as it is."""
    bodies = [attribute.g for attribute in node.attribute]
    given = (value.name for body in bodies for value in body.output)
    inner = (reads(child) for body in bodies for child in body.node)
    return {name for name in node.input if name}.union(given, *inner)


def submodel(
    model: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[str],
    weights: Iterable[onnx.TensorProto] = (),
) -> bytes:
    """Model of those ``nodes`` that the outputs need; ``weights`` come on top of the model's own."""
    needed = set(outputs)
    kept = []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(reads(node))
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for field in ("node", "input", "output", "value_info", "initializer"):
        part.graph.ClearField(field)
    part.graph.node.extend(kept[::-1])
    part.graph.input.extend(inputs)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.initializer.extend(weights)
    return bytes(part.SerializeToString())


def free_batch(data: bytes) -> bytes:
    """Return the same model with a free batch axis.

    The first axis of inputs and outputs becomes free, recorded shapes inside are forgotten, and a
    Reshape to a constant shape (1, ...) keeps its input's first axis instead.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    del graph.value_info[:]
    for value in [*real_inputs(graph), *graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    moving = set(data_tensors(graph))
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] not in moving or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if shape.size and shape[0] == 1 and 0 not in shape[1:]:
            patched = np.concatenate([[0], shape[1:]]).astype(np.int64)
            name = f"{node.output[0]}_shape"
            graph.initializer.append(numpy_helper.from_array(patched, name))
            node.input[1] = name
    return bytes(model.SerializeToString())


def open_model(data: bytes, *, as_written: bool = False) -> onnxruntime.InferenceSession:
    """Session of a whole model or of a part.

    ``as_written``: what stands between a DequantizeLinear and a QuantizeLinear is computed in floats. The
    runtime would take integers for it, and round even weights that are floats to eight bits.

    Raises
    ------
    ModelError
        The runtime refuses it.
    """
    options = quiet_options()
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(data, options)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ModelError("model", f"cannot be run ({first_line(error)})") from error


def run_whole(
    data: bytes, label: str, frames: NDArray[np.float32]
) -> tuple[list[str], list[list[NDArray[Any]]]]:
    """Names of the outputs, and the answers to each frame (n, ...) as it is served.

    Raises
    ------
    ModelError
        The model cannot be read or run.
    """
    read_graph(data, label)
    try:
        session = open_session(data, (), {"sess_options": quiet_options()})
        name = find_observed_input(session)
        (dtype,) = (input_type(arg)[1] for arg in session.get_inputs() if arg.name == name)
        answers = [session.run(None, {name: frame[np.newaxis].astype(dtype)}) for frame in frames]
    except ModelError as error:
        raise ModelError(label, str(error)) from error
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ModelError(label, f"cannot be run ({first_line(error)})") from error
    return [output.name for output in session.get_outputs()], answers
