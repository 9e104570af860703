"""The demo model as a TensorFlow Lite one: channels last, weights transposed, float32 or int8.

Knows the operators of `tools/train_demo_model`'s residual network and no others. What it makes keeps the
names of the ONNX model's tensors, so that both have the same taps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from _tflite_writer import Scaling, Writer
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_monitor.sources.scenes import Road
from edge_monitor.taps.onnx import quiet_options

TRIPS, FRAMES, STRIDE = range(1000, 1064), 10, 15
"""Clean driving that gives int8 its ranges: trips that calibrate, of each 10 frames half a second apart."""
STEPS_PER_UNIT = 64
"""Ranges are widened to such steps: runtimes that round differently then give the same file."""

Ranges = Mapping[str, tuple[float, float]]
"""Least and largest value of each tensor."""


def measure_ranges(model: bytes) -> dict[str, tuple[float, float]]:
    """Ranges of all tensors over clean frames, by a run of the ONNX model that gives every one of them."""
    graph = onnx.load_from_string(model)
    names = [name for node in graph.graph.node for name in node.output]
    graph.graph.ClearField("output")
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), quiet_options())
    low, high = np.zeros(len(names)), np.zeros(len(names))  # zero must be a number that int8 can hold
    for seed in TRIPS:
        for scene in islice(Road(seed), 0, FRAMES * STRIDE, STRIDE):
            frame = scene.image.transpose(2, 0, 1)[None].astype(np.float32)
            values = session.run(names, {"image": frame})
            low = np.minimum(low, [value.min() for value in values])
            high = np.maximum(high, [value.max() for value in values])
    low, high = np.floor(low * STEPS_PER_UNIT), np.ceil(high * STEPS_PER_UNIT)
    ends = zip((low / STEPS_PER_UNIT).tolist(), (high / STEPS_PER_UNIT).tolist(), strict=True)
    return {"image": (0.0, 255.0), **dict(zip(names, ends, strict=True))}


def convert(model: bytes, ranges: Ranges | None = None) -> bytes:
    """Return an ONNX model as a TensorFlow Lite one, int8 inside when ``ranges`` are given.

    int8 follows TensorFlow Lite's 8-bit quantization specification: activations have one scale and zero
    point, weights are symmetric, with a scale for each output channel of a convolution and one for a dense
    layer, biases are int32. Input and output stay float32, and so does the softmax, that probabilities sum
    to 1.
    """
    graph = onnx.load_from_string(model).graph
    converter = _Converter(graph, ranges)
    for node in graph.node:
        converter.add(node)
    (answer,) = graph.output
    description = f"demo_model.onnx, SHA-256 {hashlib.sha256(model).hexdigest()}"
    return converter.writer.to_bytes(converter.image, converter.tensors[answer.name], description)


class _Layer(NamedTuple):
    """Weights of a convolution or dense layer, output channels first, and the biases."""

    name: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


class _Converter:
    """Adds node after node; ``tensors`` are the numbers of what is there, by ONNX name."""

    def __init__(self, graph: onnx.GraphProto, ranges: Ranges | None) -> None:
        self.writer = Writer()
        self._ranges = ranges
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._activated = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Relu"}
        self._scalings: dict[int, Scaling | None] = {}
        self._flattened: dict[int, tuple[int, ...]] = {}
        (image,) = graph.input
        _, channels, height, width = (axis.dim_value for axis in image.type.tensor_type.shape.dim)
        shape = (1, height, width, channels)
        self.image = self._value(image.name, shape, None)
        self.tensors = {image.name: self.image}
        if ranges is not None:
            integers = self._value(f"{image.name}_int8", shape, self._scaling(image.name))
            self.writer.operator("QUANTIZE", [self.image], integers, schema.QuantizeOptionsT())
            self.tensors[image.name] = integers

    def add(self, node: onnx.NodeProto) -> None:
        """Add what a node does, together with the activation that follows it."""
        kinds = {
            "Conv": self._convolution,
            "Relu": self._activation,
            "Add": self._sum,
            "AveragePool": self._average,
            "Flatten": self._vector,
            "Gemm": self._dense,
            "Softmax": self._probabilities,
        }
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.tensors[node.output[0]] = kinds[node.op_type](node, attributes)

    def _convolution(self, node: onnx.NodeProto, attributes: dict[str, list[int]]) -> int:
        weights, bias = (self._constants[name] for name in node.input[1:])
        layer = _Layer(node.output[0], weights.transpose(0, 2, 3, 1), bias)
        x, strides = self.tensors[node.input[0]], attributes["strides"]
        n_out, *kernel, _ = layer.weights.shape
        # Padding SAME keeps the size, and where a stride does not, it pads bottom and right alone.
        if strides == [1, 1] and attributes["pads"] == [size // 2 for size in kernel * 2]:
            padding, shape = schema.Padding.SAME, (*self.writer.shape(x)[:3], n_out)
        else:
            padding = schema.Padding.VALID
            if any(attributes["pads"]):
                x = self._padded(x, layer.name, attributes["pads"])
            shape = (1, *self._places(x, kernel, strides), n_out)
        options = schema.Conv2DOptionsT(padding, strideH=strides[0], strideW=strides[1])
        return self._layer("CONV_2D", x, layer, shape, options, 3)

    def _padded(self, x: int, name: str, pads: list[int]) -> int:
        """Zeros around a picture."""
        top, left, bottom, right = pads
        sizes = np.array([(0, 0), (top, bottom), (left, right), (0, 0)], np.int32)
        shape = tuple(np.add(self.writer.shape(x), sizes.sum(axis=1)).tolist())
        y = self._value(f"{name}_padded", shape, self._scalings[x])
        inputs = [x, self.writer.constant(f"{name}.pads", sizes)]
        self.writer.operator("PAD", inputs, y, schema.PadOptionsT(), version=self._version(2))
        return y

    def _places(self, x: int, kernel: list[int], strides: list[int]) -> list[int]:
        """Height and width of what a kernel without padding makes of ``x``."""
        sizes = self.writer.shape(x)[1:3]
        return [(n - k) // stride + 1 for n, k, stride in zip(sizes, kernel, strides, strict=True)]

    def _activation(self, node: onnx.NodeProto, _: object) -> int:
        return self.tensors[node.input[0]]  # fused into the node before

    def _sum(self, node: onnx.NodeProto, _: object) -> int:
        inputs = [self.tensors[name] for name in node.input]
        name, fused = self._fused(node.output[0])
        y = self._value(name, self.writer.shape(inputs[0]), self._scaling(name))
        self.writer.operator("ADD", inputs, y, schema.AddOptionsT(fused), version=self._version(2))
        return y

    def _average(self, node: onnx.NodeProto, attributes: dict[str, list[int]]) -> int:
        x, kernel, strides = self.tensors[node.input[0]], attributes["kernel_shape"], attributes["strides"]
        shape = (1, *self._places(x, kernel, strides), self.writer.shape(x)[3])
        y = self._value(node.output[0], shape, self._scalings[x])
        options = schema.Pool2DOptionsT(
            schema.Padding.VALID, strides[1], strides[0], filterWidth=kernel[1], filterHeight=kernel[0]
        )
        self.writer.operator("AVERAGE_POOL_2D", [x], y, options, version=self._version(2))
        return y

    def _vector(self, node: onnx.NodeProto, _: object) -> int:
        x, name = self.tensors[node.input[0]], node.output[0]
        shape = (1, int(np.prod(self.writer.shape(x))))
        y = self._value(name, shape, self._scalings[x])
        inputs = [x, self.writer.constant(f"{name}.shape", np.array(shape, np.int32))]
        self.writer.operator("RESHAPE", inputs, y, schema.ReshapeOptionsT(list(shape)))
        self._flattened[y] = self.writer.shape(x)
        return y

    def _dense(self, node: onnx.NodeProto, attributes: dict[str, int]) -> int:
        assert attributes == {"transB": 1}
        weights, bias = (self._constants[name] for name in node.input[1:])
        x = self.tensors[node.input[0]]
        if x in self._flattened:  # the vector is in another order now: channels come last
            _, height, width, channels = self._flattened[x]
            planar = weights.reshape(-1, channels, height, width)
            weights = planar.transpose(0, 2, 3, 1).reshape(weights.shape)
        layer = _Layer(node.output[0], weights, bias)
        return self._layer("FULLY_CONNECTED", x, layer, (1, len(bias)), schema.FullyConnectedOptionsT(), 4)

    def _probabilities(self, node: onnx.NodeProto, _: object) -> int:
        x, shape = self.tensors[node.input[0]], self.writer.shape(self.tensors[node.input[0]])
        if self._ranges is not None:
            x = self.writer.tensor(f"{node.input[0]}_float", shape)
            integers = self.tensors[node.input[0]]
            self.writer.operator("DEQUANTIZE", [integers], x, schema.DequantizeOptionsT(), version=2)
        y = self.writer.tensor(node.output[0], shape)
        self.writer.operator("SOFTMAX", [x], y, schema.SoftmaxOptionsT(beta=1.0))
        return y

    def _layer(
        self, op: str, x: int, layer: _Layer, shape: tuple[int, ...], options: object, int8_version: int
    ) -> int:
        """Operator with weights and biases."""
        weights, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        scaling = self._scalings[x]
        if scaling is None:
            inputs = [x, self.writer.constant(weights, layer.weights), self.writer.constant(bias, layer.bias)]
        else:
            axes = (1, 2, 3) if op == "CONV_2D" else (0, 1)
            steps = np.abs(layer.weights).max(axes, keepdims=True).astype(np.float64) / 127
            whole = np.rint(layer.weights / steps).astype(np.int8)
            of_bias = steps.ravel() * scaling.scales[0]
            whole_bias = np.rint(layer.bias / of_bias).astype(np.int32)
            inputs = [
                x,
                self.writer.constant(weights, whole, Scaling(tuple(steps.ravel().tolist()))),
                self.writer.constant(bias, whole_bias, Scaling(tuple(of_bias.tolist()))),
            ]
        name, options.fusedActivationFunction = self._fused(layer.name)
        y = self._value(name, shape, self._scaling(name))
        self.writer.operator(op, inputs, y, options, version=self._version(int8_version))
        return y

    def _fused(self, name: str) -> tuple[str, int]:
        """Name and kind of the activation behind a node, else the node's own name."""
        activations = schema.ActivationFunctionType
        if name in self._activated:
            return self._activated[name], activations.RELU
        return name, activations.NONE

    def _value(self, name: str, shape: tuple[int, ...], scaling: Scaling | None) -> int:
        """Tensor of activations, integers where there is a scaling."""
        number = self.writer.tensor(name, shape, "float32" if scaling is None else "int8", scaling)
        self._scalings[number] = scaling
        return number

    def _scaling(self, name: str) -> Scaling | None:
        """Scaling that spreads the range of a tensor over the integers; None in a float model."""
        if self._ranges is None:
            return None
        low, high = self._ranges[name]
        step = (high - low) / 255
        return Scaling((step,), round(-128 - low / step))

    def _version(self, int8: int) -> int:
        return 1 if self._ranges is None else int8
