"""Edits of a TensorFlow Lite model that break it: weights, scales, what a layer hands on.

What a quantised model stores is edited as it is stored. A fault of a layer is put behind the operator that
makes a tap: that operator writes to another tensor, which is scaled, moved and cut off, and an activation
that changes nothing gives the result the tap's own tensor. So the tap can still be tapped, and everything
behind it reads the faulty values. A quantised tap is dequantised for that and quantised again with its own
scale and zero point: it cannot leave what they span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.offline.model_edits import Layer
from edge_monitor.offline.tflite_model import (
    PartRunner,
    encode_frames,
    only_input,
    read_objects,
    read_values,
)
from edge_monitor.taps import tflite_schema as schema
from edge_monitor.taps.tflite_edit import prefix
from edge_monitor.taps.tflite_file import Tensor, read_model
from edge_monitor.taps.tflite_taps import choose, find_candidates

_CHANNEL_AXES = {"CONV_2D": 0, "TRANSPOSE_CONV": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3}
"""Operators with weights, and the axis of the weights that counts their channels."""
_WEIGHTS = 1
"""Their place among an operator's inputs; the bias, where there is one, comes last."""
_STORED = ("float32", "float16", "int8", "uint8")
"""Types of constants that can be edited."""


class EditedTfliteModel:
    """A TensorFlow Lite model that can be altered; see `edge_monitor.offline.backend.Editable`.

    Raises
    ------
    ModelError
        It cannot be read, or not as objects (`read_objects`).
    """

    def __init__(self, data: bytes) -> None:
        self._graph = read_model(data)
        self._schema, self._model = read_objects(data)
        self._main = self._model.subgraphs[0]

    def to_bytes(self) -> bytes:
        """Serialize the model."""
        builder = import_module("flatbuffers").Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), file_identifier=schema.IDENTIFIER)
        return bytes(builder.Output())

    def layers(self) -> list[Layer]:
        """Layers with constant weights, in order of execution."""
        found = []
        for operator in self._graph.operators:
            if operator.op not in _CHANNEL_AXES or len(operator.inputs) <= _WEIGHTS:
                continue
            weights, last = (self._graph.tensors[operator.inputs[place]] for place in (_WEIGHTS, -1))
            if not _editable(weights) or weights.dtype == "float16":  # no kernel takes those as they are
                continue
            zero = weights.zero_points[0] if weights.zero_points else 0
            bias = _name(last) if last.constant and last != weights else None
            found.append(Layer(_name(weights), bias, _CHANNEL_AXES[operator.op], zero))
        return found

    def weights(self) -> Mapping[str, NDArray[Any]]:
        """Matrices of weights by name, as they are stored; they must not be written to."""
        return {
            _name(tensor): self.read(_name(tensor))
            for tensor in self._graph.tensors
            if len(tensor.shape) > 1 and _editable(tensor)
        }

    def read(self, name: str) -> NDArray[Any]:
        """Return a constant as it is stored; it must not be written to."""
        tensor = self._constant(name)
        stored: NDArray[Any] = np.frombuffer(self._buffer(tensor).data.tobytes(), tensor.dtype)
        return stored.reshape(tensor.shape)

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other stored numbers; others that share its buffer keep theirs."""
        tensor = self._main.tensors[self._constant(name).index]
        tensors = [each for graph in self._model.subgraphs for each in graph.tensors]
        if sum(each.buffer == tensor.buffer for each in tensors) > 1:
            tensor.buffer = self._add_buffer(values)
        else:
            self._model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)

    def scale(self, layer: Layer, factor: float) -> None:
        """Multiply a layer's weights; of integers the scale, and that of the bias with it."""
        weights = self._constant(layer.weight)
        if not weights.scales:
            self.replace(layer.weight, self.read(layer.weight) * np.float32(factor))
            return
        for name in filter(None, (layer.weight, layer.bias)):
            quantisation = self._main.tensors[self._constant(name).index].quantization
            quantisation.scale = np.asarray(quantisation.scale, np.float32) * np.float32(factor)

    def taps(self) -> list[str]:
        """Names of the activations that can be made faulty."""
        return [
            name
            for name, candidate in find_candidates(self._graph).items()
            if candidate.readable and candidate.tensor.dtype != "float16"  # which is scaled by no kernel
        ]

    def tap_values(self, tap: str, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (n, ...) of a tap on frames."""
        (candidate,) = choose(self._graph, [tap])
        entry, index = only_input(self._graph), candidate.tensor.index
        runner = PartRunner(prefix(self.to_bytes(), [index]))
        stored = [runner.run({entry.index: encoded}, [index])[0] for encoded in encode_frames(entry, frames)]
        return read_values(candidate.tensor, np.concatenate(stored))

    def alter(
        self,
        tap: str,
        gain: NDArray[np.float32],
        bias: NDArray[np.float32],
        ceiling: float | None = None,
    ) -> None:
        """Let a tap be its value x ``gain`` + ``bias`` (C), at most ``ceiling``."""
        (candidate,) = choose(self._graph, [tap])
        tensor, operators = candidate.tensor, self._main.operators
        place = next(
            i for i, operator in enumerate(self._graph.operators) if tensor.index in operator.outputs
        )
        sound = self._add_tensor(tensor, f"sound/{tap}", tensor.dtype, quantised=True)
        operators[place].outputs = [sound if i == tensor.index else i for i in operators[place].outputs]
        steps = [("MUL", gain), ("ADD", bias)]
        if ceiling is not None:
            steps.append(("MINIMUM", np.array([ceiling], np.float32)))
        added: list[Any] = []
        current = sound
        if tensor.scales:
            current = self._add_step(added, "DEQUANTIZE", [sound], self._add_tensor(tensor, "", "float32"))
        for op, value in steps:
            result = self._add_tensor(tensor, "", "float32")
            current = self._add_step(added, op, [current, self._add_constant(value)], result)
        if tensor.scales:
            result = self._add_tensor(tensor, "", tensor.dtype, quantised=True)
            current = self._add_step(added, "QUANTIZE", [current], result)
        # Only what an activation returns can be tapped; this one returns what it is given, NaN included.
        self._add_step(added, "LEAKY_RELU", [current], tensor.index)
        operators[place + 1 : place + 1] = added
        self._graph = read_model(self.to_bytes())

    def _add_tensor(self, like: Tensor, name: str, dtype: str, *, quantised: bool = False) -> int:
        """Add a tensor of the shape of another, with the scale of that if ``quantised``."""
        model = self._main.tensors[like.index]
        added = self._schema.TensorT(shape=model.shape, type=schema.DTYPES.index(dtype), name=name or None)
        added.quantization = model.quantization if quantised else None
        self._main.tensors.append(added)
        return len(self._main.tensors) - 1

    def _add_constant(self, values: NDArray[np.float32]) -> int:
        self._main.tensors.append(
            self._schema.TensorT(
                shape=list(values.shape),
                type=schema.DTYPES.index("float32"),
                buffer=self._add_buffer(values),
            )
        )
        return len(self._main.tensors) - 1

    def _add_buffer(self, values: NDArray[Any]) -> int:
        self._model.buffers.append(self._schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        return len(self._model.buffers) - 1

    def _add_step(self, added: list[Any], op: str, inputs: Sequence[int], output: int) -> int:
        """Add an operator to ``added`` and return its output."""
        number = schema.OPERATORS.index(op)
        code = self._schema.OperatorCodeT(
            deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=_VERSIONS.get(op, 1)
        )
        self._model.operatorCodes.append(code)
        operator = self._schema.OperatorT(
            opcodeIndex=len(self._model.operatorCodes) - 1, inputs=list(inputs), outputs=[output]
        )
        if op in _OPTIONS:
            kind, arguments = _OPTIONS[op]
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(self._schema, f"{kind}T")(**arguments)
        added.append(operator)
        return output

    def _constant(self, name: str) -> Tensor:
        return self._graph.tensors[int(name.rsplit("#", 1)[1])]

    def _buffer(self, tensor: Tensor) -> Any:  # noqa: ANN401  # the schema has no types
        return self._model.buffers[self._main.tensors[tensor.index].buffer]


_VERSIONS = {"LEAKY_RELU": 2, "DEQUANTIZE": 2}
"""Those that first took integers."""
_OPTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "MUL": ("MulOptions", {}),
    "ADD": ("AddOptions", {}),
    "LEAKY_RELU": ("LeakyReluOptions", {"alpha": 1.0}),
}


def _editable(tensor: Tensor) -> bool:
    return tensor.constant and tensor.dtype in _STORED


def _name(tensor: Tensor) -> str:
    """Name of a constant: the head of its own, for the converter joins many, and its number."""
    return f"{tensor.name.split(';')[0]}#{tensor.index}"
