"""What the rules of `edge_monitor.offline.tflite_operators` write with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_monitor.offline.tflite_model import read_objects
from edge_monitor.taps.tflite_file import Tensor


class Unknown(Exception):  # noqa: N818  # says what is not known, and never leaves this package
    """An operator that cannot be transcribed."""


class Transcript:
    """Collects nodes and weights.

    Parameters
    ----------
    data : bytes
        TensorFlow Lite model.
    tensors : tuple of Tensor
        What `read_model` says of it.
    names : dict of int to str
        ONNX name of each tensor.

    Attributes
    ----------
    nodes, weights : list
        Parts of the ONNX graph.
    schema : module
        Numbers of the format.
    """

    def __init__(self, data: bytes, tensors: tuple[Tensor, ...], names: dict[int, str]) -> None:
        self.tensors = tensors
        self.schema, self._objects = read_objects(data)
        self.names = names
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, index: int) -> NDArray[Any]:
        """Values of a constant, dequantised, as they lie in the model."""
        tensor = self.tensors[index]
        if not tensor.constant:
            raise Unknown(f"needs {tensor.name.split(';')[0]} to be constant")
        table = self._objects.subgraphs[0].tensors[index]
        stored = np.frombuffer(self._objects.buffers[table.buffer].data.tobytes(), tensor.dtype)
        values: NDArray[Any] = stored.reshape(tensor.shape)
        if not tensor.scales:
            return values
        axes = [-1 if axis == tensor.axis and len(tensor.scales) > 1 else 1 for axis in range(values.ndim)]
        scales, zeros = (
            np.array(numbers, np.float32).reshape(axes) for numbers in (tensor.scales, tensor.zero_points)
        )
        return np.asarray((values - zeros) * scales, np.float32)

    def operand(self, index: int, like: Tensor | None = None) -> str:
        """Name of a tensor; a constant is broadcast with the channels of ``like`` last."""
        if not self.tensors[index].constant:
            return self.names[index]
        values = np.asarray(self.constant(index), np.float32)
        if like is not None and len(like.shape) == 4:
            values = np.moveaxis(values.reshape((1,) * (4 - values.ndim) + values.shape), -1, 1)
        return self.weight(values)

    def weight(self, values: NDArray[Any] | Sequence[int]) -> str:
        name = f"weight:{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def make(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:  # noqa: ANN401  # as make_node takes them
        """Add a node and return the name of its output."""
        name = f"made:{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def channels_last(self, name: str, tensor: Tensor) -> str:
        """Elements in the order in which they lie in the model."""
        return self.make("Transpose", [name], perm=[0, 2, 3, 1]) if len(tensor.shape) == 4 else name

    def channels_first(self, name: str, tensor: Tensor) -> str:
        """Undo `channels_last`."""
        return self.make("Transpose", [name], perm=[0, 3, 1, 2]) if len(tensor.shape) == 4 else name

    def rounded(self, name: str, tensor: Tensor) -> str:
        """Values as a quantised tensor holds them."""
        if not tensor.scales:
            return name
        if len(tensor.scales) != 1 or tensor.dtype not in {"int8", "uint8"}:
            raise Unknown(f"gives {tensor.dtype} with {len(tensor.scales)} scales")
        scale = self.weight(np.array(tensor.scales[0], np.float32))
        zero = self.weight(np.array(tensor.zero_points[0], tensor.dtype))
        return self.make("DequantizeLinear", [self.make("QuantizeLinear", [name, scale, zero]), scale, zero])

    def finish(self, name: str) -> None:
        """Give what the last node makes another name."""
        self.nodes[-1].output[0] = name

    def options(self, place: int) -> Any:  # noqa: ANN401  # the schema has no types
        """Options of the operator at a place."""
        return self._objects.subgraphs[0].operators[place].builtinOptions
