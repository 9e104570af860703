"""The model between two taps, rewritten to carry drive instead of activations (design D8).

Every tensor on a path from the source tap to the target tap gets a twin, its drive v: linear operators
keep their form with abs(W) in place of W and no bias, an activation with pre-activation u becomes
``v * sigmoid(u)``, operators that only move elements move v in the same way. The batch axis of v
counts source voxels; what the rewritten graph needs of the forward pass (u, and what a MaxPool compared)
are further inputs with a batch axis of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

from edge_monitor.errors import ModelError
from edge_monitor.offline.model_graph import data_tensors, submodel
from edge_monitor.offline.tract_rewriter import Rewriter
from edge_monitor.offline.tract_rules import RULES

SOURCE, TARGET = "drive:source", "drive:target"
"""Names of a tract graph's input, float32 (n_sources, ...), and of its output."""


class TractGraph(NamedTuple):
    """An ONNX model from drive `SOURCE` to drive `TARGET`; ``forward``: its further inputs, (1, ...) each."""

    model: bytes
    forward: tuple[str, ...]


class Path(NamedTuple):
    """What lies between two taps: nodes in order, tensors, and the tensors that hold the source's values."""

    nodes: tuple[onnx.NodeProto, ...]
    tensors: frozenset[str]
    starts: frozenset[str]


def find_path(graph: onnx.GraphProto, source: str, target: str) -> Path:
    """Everything on a way from one tensor to another; no nodes when there is none."""
    starts = {source}
    maker = next((node for node in graph.node if source in node.output), None)
    if maker is not None and maker.op_type == "DequantizeLinear":
        # A quantised tensor may be dequantised once per reader: all of them are the tap.
        quantised = maker.input[0]
        twins = (n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == quantised)
        starts.update(node.output[0] for node in twins)
    data = set(data_tensors(graph))
    reached = set(starts)
    for node in graph.node:
        if not reached.isdisjoint(node.input):
            reached.update(data.intersection(node.output))
    leading = {target}
    for node in reversed(graph.node):
        if not leading.isdisjoint(node.output):
            leading.update(node.input)
    tensors = reached & leading if target in reached else set()
    nodes = (n for n in graph.node if not (tensors - starts).isdisjoint(n.output))
    return Path(tuple(nodes), frozenset(tensors), frozenset(starts))


def build_tract(
    model: onnx.ModelProto, path: Path, source: str, target: str, n_sources: int, values: Mapping[str, Any]
) -> TractGraph:
    """Rewrite one path.

    Parameters
    ----------
    model : onnx.ModelProto
        Where the path lies.
    path : Path
        From `find_path`.
    source, target : str
        The two taps.
    n_sources : int
        Voxels of the source: the fixed batch of the drive.
    values : mapping of str to array
        Every tensor that the path's nodes read or make, as some frame with batch 1 leaves it.

    Raises
    ------
    ModelError
        No path, or an operator on it whose drive is not defined; it and its node are named.
    """
    if not path.nodes:
        raise ModelError(f"{source} -> {target}", "no path")
    drive = dict.fromkeys(path.starts, SOURCE)
    rewriter = Rewriter(model, drive, f"{source} -> {target}", n_sources, values)
    for node in path.nodes:
        if node.op_type not in RULES or not path.tensors.isdisjoint(node.output[1:]):
            raise rewriter.unsupported(node)
        if values[node.output[0]].shape[:1] != (1,):
            raise rewriter.unsupported(node, "moves the batch axis")
        drive[node.output[0]] = RULES[node.op_type](rewriter, node)
    rewriter.nodes.append(helper.make_node("Identity", [drive[target]], [TARGET]))
    shapes = {SOURCE: (n_sources, *values[source].shape[1:])}
    shapes |= {name: values[name].shape for name in rewriter.forward}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    data = submodel(model, rewriter.nodes, inputs, [TARGET], rewriter.weights)
    return TractGraph(data, tuple(rewriter.forward))
