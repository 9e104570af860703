"""What the rules of `edge_monitor.offline.tract_rules` write with, and what they ask of a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_monitor.errors import ModelError
from edge_monitor.offline.model_graph import data_tensors

_GATES = frozenset({"Sigmoid", "HardSigmoid"})


class Rewriter:
    """Collects the nodes and weights of one tract graph.

    Parameters
    ----------
    model : onnx.ModelProto
        Where the path lies.
    drive : dict of str to str
        Tensor -> name of its drive; at first the source's.
    title : str
        The transition, for messages.
    n_sources : int
        The fixed batch of the drive.
    values : mapping of str to array
        Every tensor that the path's nodes read or make, as some frame with batch 1 leaves it.

    Attributes
    ----------
    nodes, weights : list
        Parts of the tract graph.
    forward : dict
        Its further inputs: names of tensors of the forward pass.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        drive: dict[str, str],
        title: str,
        n_sources: int,
        values: Mapping[str, Any],
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.forward: dict[str, None] = {}
        self.drive, self.n_sources, self.values = drive, n_sources, values
        self._title = title
        self._data = set(data_tensors(model.graph))
        self._makers = {name: node for node in model.graph.node for name in node.output}

    def unsupported(self, node: onnx.NodeProto, reason: str = "") -> ModelError:
        where = f"{node.op_type} (node {node.name or node.output[0]})"
        return ModelError(self._title, f"{where} is not supported" + (f": it {reason}" if reason else ""))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def drives(self, node: onnx.NodeProto) -> list[str]:
        """Drives of those inputs that lie on the path."""
        return [self.drive[name] for name in node.input if name in self.drive]

    def only(self, node: onnx.NodeProto, index: int = 0) -> str:
        """Drive of one input; no other input may lie on the path."""
        if len(self.drives(node)) != 1 or node.input[index] not in self.drive:
            raise self.unsupported(node)
        return self.drive[node.input[index]]

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any]:
        """Value of an input that depends on no data."""
        if node.input[index] in self._data:
            raise self.unsupported(node, f"combines two activations, one of them {node.input[index]}")
        return np.asarray(self.values[node.input[index]])

    def parameters(self, node: onnx.NodeProto) -> list[str]:
        """Return all inputs but the first, which have to be constant, as weights."""
        return [
            self.weight(self.constant(node, index)) if name else ""
            for index, name in enumerate(node.input[1:], 1)
        ]

    def read_forward(self, name: str) -> str:
        """Take a tensor of the forward pass as a further input."""
        self.forward[name] = None
        return name

    def weight(self, array: NDArray[Any] | Sequence[int]) -> str:
        name = f"drive:weight{len(self.weights)}"
        values = np.asarray(array)
        dtype = np.float32 if values.dtype.kind == "f" else np.int64
        self.weights.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def make(self, op: str, inputs: Sequence[str], attributes: Iterable[onnx.AttributeProto] = ()) -> str:
        """Add a node and return the name of its output."""
        name = f"drive:{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name]))
        self.nodes[-1].attribute.extend(attributes)
        return name

    def keep(self, node: onnx.NodeProto, inputs: Sequence[str], without: str = "") -> str:
        """Apply the node's own operator, its attributes included but for one, to other inputs."""
        return self.make(node.op_type, inputs, [a for a in node.attribute if a.name != without])

    def reshape(self, drive: str, shape: Sequence[int]) -> str:
        return self.make("Reshape", [drive, self.weight([self.n_sources, *shape])])

    def silu_input(self, node: onnx.NodeProto) -> str | None:
        """Return x when the node is x * Sigmoid(x), the activation SiLU, and x lies on the path."""
        for gate, x in (node.input, reversed(node.input)):
            maker = self._makers.get(gate)
            gated = maker is not None and maker.op_type in _GATES and maker.input[0] == x
            if gated and x in self.drive:
                return str(x)
        return None

    def refuse_batch_axis(self, node: onnx.NodeProto, index: int) -> None:
        """Axes stand in an attribute (old operator sets) or an input; the first may not be among them."""
        listed = next((a.ints for a in node.attribute if a.name == "axes"), None)
        if listed is None and len(node.input) > index and node.input[index]:
            listed = self.constant(node, index)
        if listed is None or 0 in np.asarray(listed) % len(self.shape(node.input[0])):
            raise self.unsupported(node, "covers the batch axis")
