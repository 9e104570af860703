"""Edits of an ONNX model that break it: a channel held, a layer scaled or cut off, a bit of a weight flipped.

A fault of a layer is put behind the operator that makes a tap: the operator's tensor is renamed, scaled,
moved and cut off, and an identity activation gives the result the tap's name. So the tap can still be tapped,
and everything behind it reads the faulty values.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_monitor.errors import InputError, ModelError
from edge_monitor.taps.onnx import input_type, list_taps, open_session, quiet_options

EXPONENT_BITS = range(23, 31)
"""Of an IEEE 754 single-precision number."""


class Layer(NamedTuple):
    """Constants of one layer, the axis of the weights that counts its channels, and what a weight of 0 is."""

    weight: str
    bias: str | None
    axis: int
    zero: int = 0


class EditedOnnxModel:
    """An ONNX model that can be altered; see `edge_monitor.offline.backend.Editable`."""

    def __init__(self, data: bytes) -> None:
        self._model = onnx.load_model_from_string(data)

    def to_bytes(self) -> bytes:
        """Serialize the model."""
        return bytes(self._model.SerializeToString())

    def layers(self) -> list[Layer]:
        """Conv, Gemm and MatMul with float32 weights, in order of execution."""
        constants = {item.name: item for item in self._model.graph.initializer}
        found = []
        for node in self._model.graph.node:
            if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.input[1] not in constants:
                continue
            transposed = any(item.name == "transB" and item.i for item in node.attribute)
            axis = 0 if node.op_type == "Conv" or transposed else 1
            bias = node.input[2] if len(node.input) > 2 and node.input[2] in constants else None
            weights = constants[node.input[1]]
            if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) > 1:
                found.append(Layer(node.input[1], bias, axis))
        return found

    def weights(self) -> dict[str, NDArray[Any]]:
        """Matrices of weights by name; they must not be written to."""
        matrices = (item for item in self._model.graph.initializer if len(item.dims) > 1)
        return {item.name: numpy_helper.to_array(item) for item in matrices}

    def read(self, name: str) -> NDArray[Any]:
        """Return a constant; it must not be written to."""
        return read_initializer(self._model, name)

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other values."""
        replace_initializer(self._model, name, values)

    def scale(self, layer: Layer, factor: float) -> None:
        """Multiply a layer's weights."""
        self.replace(layer.weight, self.read(layer.weight) * np.float32(factor))

    def taps(self) -> list[str]:
        """Names of the activations that can be made faulty."""
        return list(self._n_axes)

    def tap_values(self, tap: str, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (n, ...) of a tap on frames, run one by one: the model's batch axis may be fixed."""
        session = open_session(self.to_bytes(), [tap], {"sess_options": quiet_options()})
        arguments = session.get_inputs()
        if len(arguments) != 1:
            raise ModelError("model", f"has {len(arguments)} inputs, only models with one can be probed")
        shape, dtype = input_type(arguments[0])
        if frames.shape[1:] != shape[1:] or len(frames) == 0 or frames.dtype != dtype:
            raise InputError(
                "probe frames",
                f"are {frames.dtype}{frames.shape}, the model takes {dtype}(n, *{shape[1:]})",
            )
        parts = [session.run([tap], {arguments[0].name: frame[None]})[0] for frame in frames]
        return np.concatenate(parts)

    def alter(
        self,
        tap: str,
        gain: NDArray[np.float32],
        bias: NDArray[np.float32],
        ceiling: float | None = None,
    ) -> None:
        """Let a tap be its value x ``gain`` + ``bias`` (C), at most ``ceiling``."""
        alter_tap(self._model, tap, self._n_axes[tap], gain, bias, ceiling)

    @cached_property
    def _n_axes(self) -> dict[str, int]:
        """Number of axes of each tap, the batch axis included; no edit changes it."""
        shapes = {tap.name: tap.shape for tap in list_taps(self.to_bytes())}
        return {name: 1 + len(shape) for name, shape in shapes.items() if len(shape) in {1, 3}}


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy that can be altered."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def hold_channel(model: onnx.ModelProto, tap: str, channel: int, value: float) -> bytes:
    """Model in which ``tap`` (1, C, H, W) or (1, N) is ``value`` in one channel."""
    faulty = copy_model(model)
    n_channels, n_axes = _shape(model, tap)
    gain, bias = np.ones(n_channels, np.float32), np.zeros(n_channels, np.float32)
    gain[channel], bias[channel] = 0.0, value
    alter_tap(faulty, tap, n_axes, gain, bias)
    return bytes(faulty.SerializeToString())


def flip_bit(model: onnx.ModelProto, tensor: str, index: int, bit: int) -> bytes:
    """Model with one bit of one weight flipped."""
    faulty = copy_model(model)
    replace_initializer(faulty, tensor, flip_bits(read_initializer(faulty, tensor), index, [bit]))
    return bytes(faulty.SerializeToString())


def flip_bits(values: NDArray[Any], index: int, bits: list[int]) -> NDArray[Any]:
    """Weights with bits of one of them flipped."""
    flipped = values.copy()
    words = flipped.reshape(-1).view(f"u{values.itemsize}")
    words[index] ^= words.dtype.type(sum(1 << bit for bit in bits))
    return flipped


def alter_tap(
    model: onnx.ModelProto,
    tap: str,
    n_axes: int,
    gain: NDArray[np.float32],
    bias: NDArray[np.float32],
    ceiling: float | None = None,
) -> None:
    """Let ``tap`` be its value x ``gain`` + ``bias`` (C), at most ``ceiling``; in place.

    ``n_axes`` is the number of axes of the tap, whose second one counts channels.
    """
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if tap in node.output)
    sound = f"{tap}_sound"
    nodes[place].output[list(nodes[place].output).index(tap)] = sound
    shape = (1, len(gain), *[1] * (n_axes - 2))
    steps = [("Mul", gain.reshape(shape)), ("Add", bias.reshape(shape))]
    if ceiling is not None:
        steps.append(("Min", np.array(ceiling, np.float32)))
    added, tensor = [], sound
    for op, value in steps:
        constant, result = f"{tap}_{op.lower()}_by", f"{tap}_{op.lower()}"
        added.append(helper.make_node("Constant", [], [constant], value=numpy_helper.from_array(value)))
        added.append(helper.make_node(op, [tensor, constant], [result]))
        tensor = result
    # Only what an activation returns can be tapped; this one returns what it is given, NaN included.
    added.append(helper.make_node("LeakyRelu", [tensor], [tap], alpha=1.0))
    nodes[place + 1 : place + 1] = added
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def read_initializer(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """Values of a weight or constant; they must not be written to."""
    return numpy_helper.to_array(_initializer(model, name))


def replace_initializer(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    """Give an initializer other values, in place."""
    initializer = _initializer(model, name)
    initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def weights_before(model: onnx.ModelProto, taps: list[str]) -> dict[str, str]:
    """Weight matrices and the first of ``taps`` (in order of execution) that each one reaches.

    Weights that reach none, behind the last tap, are left out.
    """
    weights = {item.name for item in model.graph.initializer if len(item.dims) > 1}
    reached: dict[str, set[str]] = {}
    for node in model.graph.node:
        sources = {name for name in node.input if name in weights}
        for name in node.input:
            sources |= reached.get(name, set())
        for output in node.output:
            reached[output] = sources
    first: dict[str, str] = {}
    for tap in taps:
        for name in sorted(reached[tap]):
            first.setdefault(name, tap)
    return first


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: dict[str, onnx.TensorProto] = {item.name: item for item in model.graph.initializer}
    return found[name]


def _shape(model: onnx.ModelProto, tensor: str) -> tuple[int, int]:
    """Channels and number of axes of a tensor."""
    inferred = onnx.shape_inference.infer_shapes(model)
    found = [item for item in inferred.graph.value_info if item.name == tensor]
    if not found:
        raise ModelError(tensor, "no such tensor, or one of unknown shape")
    dims = found[0].type.tensor_type.shape.dim
    return dims[1].dim_value, len(dims)
