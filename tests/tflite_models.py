"""TensorFlow Lite models made by hand: a small flatbuffer writer and networks of random weights."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from edge_monitor.taps import tflite_schema as schema

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # of weights


class Number:
    """A number within a table, by its ``struct`` letter."""

    def __init__(self, code: str, value: float) -> None:
        self.bytes = struct.pack(f"<{code}", value)


class Vector:
    """A vector of numbers."""

    def __init__(self, code: str, values: Sequence[float]) -> None:
        self.length, self.bytes = len(values), struct.pack(f"<{len(values)}{code}", *values)
        self.alignment = struct.calcsize(f"<{code}")


def write(root: dict) -> bytes:
    """Flatbuffer of a table: a dict by field number of `Number`, `Vector`, str, bytes, dict, list of dict."""
    out = bytearray(4) + IDENTIFIER
    waiting = [(0, root)]
    while waiting:
        place, value = waiting.pop(0)
        position = _WRITERS[type(value)](out, value, waiting)
        struct.pack_into("<I", out, place, position - place)
    return bytes(out)


def _align(out: bytearray, alignment: int, ahead: int = 0) -> None:
    """Pad so that what comes ``ahead`` bytes later is aligned."""
    out.extend(bytes(-(len(out) + ahead) % alignment))


def _write_table(out: bytearray, table: dict, waiting: list) -> int:
    fields = {
        number: value.bytes if isinstance(value, Number) else bytes(4) for number, value in table.items()
    }
    places, size = {}, 4
    for number in sorted(fields, key=lambda number: -len(fields[number])):
        places[number] = size
        size += len(fields[number])
    n_slots = max(table, default=-1) + 1
    vtable = [4 + 2 * n_slots, size, *(places.get(number, 0) for number in range(n_slots))]
    _align(out, 4, ahead=2 * len(vtable))
    out.extend(struct.pack(f"<{len(vtable)}H", *vtable))
    start = len(out)
    out.extend(struct.pack("<i", 2 * len(vtable)))
    out.extend(b"".join(fields[number] for number in places))
    waiting += [(start + places[n], value) for n, value in table.items() if not isinstance(value, Number)]
    return start


def _write_vector(out: bytearray, vector: Vector, waiting: list) -> int:
    _align(out, 4)
    _align(out, vector.alignment, ahead=4)
    out.extend(struct.pack("<I", vector.length) + vector.bytes)
    return len(out) - len(vector.bytes) - 4


def _write_tables(out: bytearray, tables: list, waiting: list) -> int:
    _align(out, 4)
    start = len(out)
    out.extend(struct.pack("<I", len(tables)) + bytes(4 * len(tables)))
    waiting += [(start + 4 * place, table) for place, table in enumerate(tables, 1)]
    return start


def _write_text(out: bytearray, text: str, waiting: list) -> int:
    _align(out, 4)
    start = len(out)
    out.extend(struct.pack("<I", len(text.encode())) + text.encode() + b"\0")
    return start


def _write_bytes(out: bytearray, data: bytes, waiting: list) -> int:
    _align(out, ALIGNMENT, ahead=4)
    out.extend(struct.pack("<I", len(data)) + data)
    return len(out) - len(data) - 4


_WRITERS = {
    dict: _write_table,
    list: _write_tables,
    Vector: _write_vector,
    str: _write_text,
    bytes: _write_bytes,
}

OPTIONS = {  # number of the kind of options; operators that are not here have none
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "AVERAGE_POOL_2D": 5,
    "MAX_POOL_2D": 5,
    "CONCATENATION": 10,
    "LEAKY_RELU": 75,
    "PAD": 22,
    "SUB": 28,
    "DIV": 29,
    "FULLY_CONNECTED": 8,
    "SOFTMAX": 9,
    "ADD": 11,
    "MUL": 21,
    "MEAN": 27,
    "SHAPE": 55,
    "RESHAPE": 17,
    "DEQUANTIZE": 38,
    "QUANTIZE": 89,
    "SPLIT": 35,
    "IF": 92,
}
VERSIONS = {("CONV_2D", "int8"): 3, ("ADD", "int8"): 2, ("FULLY_CONNECTED", "int8"): 4}
VERSIONS |= {("MEAN", "int8"): 2, ("LOGISTIC", "int8"): 2, ("MUL", "int8"): 2, ("SOFTMAX", "int8"): 2}


class Net:
    """Collects tensors and operators of a graph; tensors are known by number.

    ``outer``: the main graph, for a graph of control flow.
    """

    def __init__(self, *, dtype: str = "float32", seed: int = 0, outer: Net | None = None) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        self.tensors: list[dict] = []
        self.operators: list[dict] = []
        self.buffers: list[dict] = outer.buffers if outer else [{}]
        self.codes: list[tuple[str, int]] = outer.codes if outer else []
        self.scales: dict[int, float] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str | None = None,
        values: np.ndarray | None = None,
        scale: float | Sequence[float] = 0.0,
        zero_point: int = 0,
        axis: int = 0,
    ) -> int:
        number, dtype = len(self.tensors), dtype or self.dtype
        table: dict = {
            schema.TENSOR_SHAPE: Vector("i", shape),
            schema.TENSOR_TYPE: Number("b", schema.DTYPES.index(dtype)),
            schema.TENSOR_NAME: name,
        }
        if values is not None:
            table[schema.TENSOR_BUFFER] = Number("I", len(self.buffers))
            self.buffers.append({schema.BUFFER_DATA: np.ascontiguousarray(values).tobytes()})
        if np.any(scale):
            scales = np.atleast_1d(np.float32(scale)).tolist()
            table[schema.TENSOR_QUANTISATION] = {
                schema.QUANTISATION_SCALES: Vector("f", scales),
                schema.QUANTISATION_ZERO_POINTS: Vector("q", [zero_point] * len(scales)),
                schema.QUANTISATION_AXIS: Number("i", axis),
            }
        self.tensors.append(table)
        self.shapes[number] = tuple(shape)
        return number

    def value(self, name: str, shape: Sequence[int], scale: float = 0.05, zero_point: int = -7) -> int:
        """Tensor of activations, with a scale in an int8 net."""
        if self.dtype != "int8":
            return self.tensor(name, shape)
        number = self.tensor(name, shape, scale=scale, zero_point=zero_point)
        self.scales[number] = scale
        return number

    def operator(
        self, op: str, inputs: Sequence[int], outputs: Sequence[int], options: dict | None = None
    ) -> None:
        code = (op, VERSIONS.get((op, self.dtype), 1))
        if code not in self.codes:
            self.codes.append(code)
        table: dict = {
            schema.OPERATOR_CODE: Number("I", self.codes.index(code)),
            schema.OPERATOR_INPUTS: Vector("i", inputs),
            schema.OPERATOR_OUTPUTS: Vector("i", outputs),
        }
        if op in OPTIONS:
            table |= {3: Number("B", OPTIONS[op]), schema.OPERATOR_OPTIONS: options or {}}
        self.operators.append(table)

    def _layer(self, op: str, x: int, name: str, kernel: tuple[int, ...], shape: tuple, options: dict) -> int:
        """Operator with weights, one scale for each of their output channels, and a bias."""
        n_out, n_in = kernel[0], int(np.prod(kernel[1:]))
        weights = self.rng.normal(0, (2 / n_in) ** 0.5, kernel).astype(np.float32)
        bias = self.rng.normal(0, 0.1, n_out).astype(np.float32)
        if self.dtype == "int8":
            scales = np.abs(weights).reshape(n_out, -1).max(1) / 127
            if op == "FULLY_CONNECTED":
                scales = np.full(1, scales.max())
            stored = np.round(weights / scales.reshape(-1, *[1] * (len(kernel) - 1))).astype(np.int8)
            w = self.tensor(f"{name}/weights", kernel, values=stored, scale=scales)
            scales = scales * self.scales[x]
            b = self.tensor(
                f"{name}/bias", [n_out], "int32", np.round(bias / scales).astype(np.int32), scales
            )
        else:
            w = self.tensor(f"{name}/weights", kernel, values=weights)
            b = self.tensor(f"{name}/bias", [n_out], values=bias)
        y = self.value(name, shape)
        self.operator(op, [x, w, b], [y], options)
        return y

    def conv(self, x: int, name: str, n_out: int, *, fused: str = "NONE", kernel: int = 3) -> int:
        _, height, width, n_in = self.shapes[x]
        strides = {1: Number("i", 1), 2: Number("i", 1)}
        options = strides | {3: Number("b", schema.FUSED.index(fused))}
        return self._layer(
            "CONV_2D", x, name, (n_out, kernel, kernel, n_in), (1, height, width, n_out), options
        )

    def dense(self, x: int, name: str, n_out: int, *, fused: str = "NONE") -> int:
        options = {0: Number("b", schema.FUSED.index(fused))}
        return self._layer("FULLY_CONNECTED", x, name, (n_out, self.shapes[x][1]), (1, n_out), options)

    def join(self, op: str, x: int, y: int, name: str, *, fused: str = "NONE") -> int:
        z = self.value(name, self.shapes[x], scale=0.1)
        self.operator(op, [x, y], [z], {0: Number("b", schema.FUSED.index(fused))})
        return z

    def unary(self, op: str, x: int, name: str) -> int:
        if op in {"LOGISTIC", "SOFTMAX"}:
            y = self.value(name, self.shapes[x], scale=1 / 256, zero_point=-128)
        else:
            y = self.value(name, self.shapes[x], *([self.scales[x]] if x in self.scales else []))
        self.operator(op, [x], [y], {0: Number("f", 1.0)} if op == "SOFTMAX" else None)
        return y

    def mean(self, x: int, name: str) -> int:
        axes = self.tensor(f"{name}/axes", [2], "int32", np.array([1, 2], np.int32))
        y = self.value(name, (1, self.shapes[x][3]))
        self.operator("MEAN", [x, axes], [y], {})
        return y

    def model(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        signatures: Sequence[tuple] = (),
        others: Sequence[dict] = (),
    ) -> bytes:
        """The file; ``signatures``: (key, subgraph, inputs, outputs) each; ``others``: more subgraphs."""
        calls = [
            {
                schema.SIGNATURE_INPUTS: [_named(f"in{i}", tensor) for i, tensor in enumerate(takes)],
                schema.SIGNATURE_OUTPUTS: [_named(f"out{i}", tensor) for i, tensor in enumerate(gives)],
                schema.SIGNATURE_KEY: key,
                schema.SIGNATURE_SUBGRAPH: Number("I", subgraph),
            }
            for key, subgraph, takes, gives in signatures
        ]
        codes = [(schema.OPERATORS.index(op), version) for op, version in self.codes]
        return write(
            {
                0: Number("I", 3),
                schema.MODEL_CODES: [
                    {
                        schema.CODE_BYTE: Number("b", min(code, 127)),
                        schema.CODE_INT: Number("i", code),
                        2: Number("i", version),
                    }
                    for code, version in codes
                ],
                schema.MODEL_SUBGRAPHS: [self.subgraph(inputs, outputs), *others],
                schema.MODEL_BUFFERS: self.buffers,
            }
            | ({schema.MODEL_SIGNATURES: calls} if calls else {})
        )

    def subgraph(self, inputs: Sequence[int], outputs: Sequence[int]) -> dict:
        return {
            schema.SUBGRAPH_TENSORS: self.tensors,
            schema.SUBGRAPH_INPUTS: Vector("i", inputs),
            schema.SUBGRAPH_OUTPUTS: Vector("i", outputs),
            schema.SUBGRAPH_OPERATORS: self.operators,
        }


def _named(name: str, tensor: int) -> dict:
    return {schema.MAP_NAME: name, schema.MAP_TENSOR: Number("I", tensor)}


def residual_cnn(*, dtype: str = "float32", signature: str = "", seed: int = 0) -> bytes:
    """Two residual joins, one with a fused activation and one with none, SiLU and a gate.

    Taps: relu1, join1, relu2, join2, silu.
    """
    net = Net(dtype=dtype, seed=seed)
    image = net.value("image", (1, 8, 6, 3))
    x = net.conv(image, "relu1;bias", 8, fused="RELU")
    y = net.conv(x, "conv2", 8)
    x = net.join("ADD", x, y, "join1", fused="RELU")
    y = net.unary("RELU", net.conv(x, "conv3", 8), "relu2")
    x = net.join("ADD", x, net.conv(y, "conv4", 8), "join2")
    y = net.conv(x, "conv5", 5)
    x = net.join("MUL", y, net.unary("LOGISTIC", y, "sigmoid"), "silu")
    y = net.dense(net.mean(x, "mean"), "dense", 4)
    z = net.unary("SOFTMAX", y, "probabilities")
    return net.model([image], [z], signatures=[(signature, 0, [image], [z])] if signature else ())


def branches(*, signature: str = "") -> bytes:
    """An If between two convolutions, whose branches are graphs of their own. Taps: relu1, relu2.

    ``signature``: key of one that runs the first branch alone.
    """
    net = Net()
    image, flag = net.value("image", (1, 6, 5, 3)), net.tensor("flag", [], "bool")
    x = net.conv(image, "relu1", 4, fused="RELU")
    y = net.value("chosen", net.shapes[x])
    net.operator("IF", [flag, x], [y], {0: Number("i", 1), 1: Number("i", 2)})
    x = net.conv(y, "relu2", 4, fused="RELU")
    z = net.mean(x, "mean")
    others = []
    for op in ("TANH", "RELU"):
        inner = Net(outer=net)
        x = inner.value("x", net.shapes[y])
        others.append(inner.subgraph([x], [inner.unary(op, x, "y")]))
    signatures = [(signature, 1, [0], [1])] if signature else ()
    return net.model([image, flag], [z], signatures=signatures, others=others)


def moving() -> bytes:
    """Net that repeats its picture as a second input says: what comes behind has sizes only when it runs.

    Taps: relu1, relu2.
    """
    net = Net()
    image, more = net.value("image", (1, 4, 6, 3)), net.tensor("more", [4], "int32")
    x = net.conv(image, "relu1", 4, fused="RELU")
    once = net.tensor("once", [4], "int32", np.ones(4, np.int32))
    times = net.tensor("times", [4], "int32")
    y = net.value("tiled", (1, 4, 6, 4))
    net.operator("ADD", [once, more], [times], {})
    net.operator("TILE", [x, times], [y])
    z = net.unary("RELU", net.conv(y, "conv2", 5), "relu2")
    return net.model([image, more], [net.mean(z, "mean")])


def two_heads() -> bytes:
    """An early answer that needs relu1 alone, and a late one that is quantised on the way out.

    The bias is stored in half precision. The size of relu1 is read by an operator behind relu2.
    Taps: relu1, relu2.
    """
    net = Net()
    image = net.value("image", (1, 4, 6, 3))
    relu1 = net.conv(image, "relu1", 4, fused="RELU")
    half = net.tensor("half", [4], "float16", np.arange(4, dtype=np.float16))
    bias = net.value("bias", [4])
    net.operator("DEQUANTIZE", [half], [bias])
    relu2 = net.unary("RELU", net.join("ADD", relu1, bias, "biased"), "relu2")
    sizes, flat = net.tensor("sizes", [4], "int32"), net.value("flat", net.shapes[relu1])
    net.operator("SHAPE", [relu1], [sizes], {0: Number("b", schema.DTYPES.index("int32"))})
    net.operator("RESHAPE", [relu2, sizes], [flat])
    sigmoid = net.unary("LOGISTIC", flat, "sigmoid")
    late = net.tensor("late", net.shapes[flat], "int8", scale=1 / 256, zero_point=-128)
    net.operator("QUANTIZE", [sigmoid], [late])
    return net.model([image], [net.mean(relu1, "early"), late])
