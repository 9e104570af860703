"""Single numbers among a model file's weights: the scales and zero points of quantised tensors."""

from __future__ import annotations

import struct
from math import prod
from typing import NamedTuple

from edge_monitor.taps.onnx_schema import TENSOR_DIMS, TENSOR_FLOATS, TENSOR_INTEGERS, TENSOR_RAW, TENSOR_TYPE
from edge_monitor.taps.protobuf import read_fields, read_varints

# By TensorProto.DataType: name, and how ``struct`` reads it.
_FORMATS = {1: ("float32", "<f"), 2: ("uint8", "B"), 3: ("int8", "b"), 10: ("float16", "<e")}


class Scalar(NamedTuple):
    """A tensor of one element."""

    dtype: str
    value: float


def read_scalar(tensor: memoryview) -> Scalar | None:
    """Read a TensorProto; None when it has not just one element, or one of another type.

    Raises
    ------
    ValueError
        The bytes are no message, or too few for the element.
    """
    kind, shape, raw, value = 0, list[int](), None, 0
    for field, content in read_fields(tensor):
        if field == TENSOR_DIMS:
            shape += read_varints(content)
        elif field == TENSOR_TYPE and isinstance(content, int):
            kind = content
        elif field in (TENSOR_RAW, TENSOR_FLOATS):
            raw = content
        elif field == TENSOR_INTEGERS:
            value = (read_varints(content) or [0])[-1]
    if kind not in _FORMATS or prod(shape) != 1:
        return None
    dtype, layout = _FORMATS[kind]
    if isinstance(raw, memoryview):
        if len(raw) != struct.calcsize(layout):
            raise ValueError(f"{len(raw)} bytes of a {dtype}")
        return Scalar(dtype, float(struct.unpack(layout, raw)[0]))
    if dtype == "float16":  # its bits, as an integer
        return Scalar(dtype, float(struct.unpack(layout, struct.pack("<H", value & 0xFFFF))[0]))
    return Scalar(dtype, float(value - (1 << 64) if value >> 63 else value))
