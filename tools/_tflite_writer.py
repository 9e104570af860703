"""Writes TensorFlow Lite models, from tensors and operators one by one; needs ai-edge-litert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

ALIGNMENT = 16
"""Of weights, in bytes: kernels read them from the file where they lie."""
TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
}


class Scaling(NamedTuple):
    """What the integers of a tensor stand for: scale * (stored - zero point).

    ``scales`` has one entry, or one for each index along the first axis (weights alone).
    """

    scales: tuple[float, ...]
    zero_point: int = 0


class Writer:
    """A model in the making; tensors are known by number."""

    def __init__(self) -> None:
        self._buffers = [schema.BufferT()]  # the first is empty by definition
        self._tensors: list[schema.TensorT] = []
        self._operators: list[schema.OperatorT] = []
        self._codes: list[tuple[str, int]] = []

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str = "float32", scaling: Scaling | None = None
    ) -> int:
        """Add a tensor that a run fills."""
        table = schema.TensorT(shape=list(shape), type=TYPES[dtype], name=name)
        if scaling is not None:
            n = len(scaling.scales)
            table.quantization = schema.QuantizationParametersT(
                scale=list(scaling.scales), zeroPoint=[scaling.zero_point] * n
            )
        self._tensors.append(table)
        return len(self._tensors) - 1

    def constant(self, name: str, values: NDArray[np.generic], scaling: Scaling | None = None) -> int:
        """Add a tensor whose values the file holds."""
        number = self.tensor(name, values.shape, values.dtype.name, scaling)
        self._tensors[number].buffer = len(self._buffers)
        self._buffers.append(_Aligned(data=np.frombuffer(values.tobytes(), np.uint8)))
        return number

    def operator(
        self, op: str, inputs: Sequence[int], output: int, options: object = None, *, version: int = 1
    ) -> None:
        """Add an operator with its options, an object such as ``schema.Conv2DOptionsT``."""
        if (op, version) not in self._codes:
            self._codes.append((op, version))
        kind = type(options).__name__.removesuffix("T") if options is not None else "NONE"
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=self._codes.index((op, version)),
                inputs=list(inputs),
                outputs=[output],
                builtinOptionsType=getattr(schema.BuiltinOptions, kind),
                builtinOptions=options,
            )
        )

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self._tensors[tensor].shape)

    def to_bytes(self, image: int, answer: int, description: str) -> bytes:
        """Return the file of a model with one input and one output."""
        graph = schema.SubGraphT(
            tensors=self._tensors, inputs=[image], outputs=[answer], operators=self._operators, name="main"
        )
        model = schema.ModelT(
            version=3,
            operatorCodes=[_code(op, version) for op, version in self._codes],
            subgraphs=[graph],
            description=description,
            buffers=self._buffers,
        )
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


class _Aligned(schema.BufferT):
    """Buffer whose data starts at a multiple of `ALIGNMENT`, which the schema asks for and Python forgets."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802  # overrides
        builder.Prep(ALIGNMENT, len(self.data))
        return super().Pack(builder)


def _code(op: str, version: int) -> schema.OperatorCodeT:
    number = getattr(schema.BuiltinOperator, op)
    return schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=number, version=version)
