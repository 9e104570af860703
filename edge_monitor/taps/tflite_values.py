"""How a TensorFlow Lite tensor lies in memory, and what its numbers mean.

In memory a tensor is NHWC or (1, units), in quantised models of integers: value = scale * (stored - zero
point). Taps, maps and frames are planar (C, H, W) float32 everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import ModelError
from edge_monitor.kernels.quantised import dequantise, read_softmax
from edge_monitor.taps.tap_table import Layout
from edge_monitor.taps.tflite_file import Graph, Tensor
from edge_monitor.taps.tflite_taps import DTYPES, Candidate

SOFTMAX = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0)}
"""Scale and zero point of a quantised softmax (TensorFlow Lite 8-bit quantization specification)."""


class StoredTensor:
    """One tensor of a single frame.

    Attributes
    ----------
    index : int
    name : str
    stored_shape : tuple of int
        (1, H, W, C) or (1, N).
    dtype : numpy.dtype
        What is stored.
    shape : tuple of int
        (C, H, W) or (N,).
    layout : Layout or None
        How it is read in place; None where each channel has a scale of its own.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.index, self.name = tensor.index, name
        self.stored_shape = tensor.shape
        self.dtype = np.dtype(tensor.dtype)
        self.shape = (tensor.shape[-1], *tensor.shape[1:-1])
        self._scale, self._zero = (
            np.array(numbers or (neutral,), np.float32).reshape(-1, 1, 1)
            for numbers, neutral in ((tensor.scales, 1.0), (tensor.zero_points, 0.0))
        )
        self._integer = self.dtype.kind != "f"
        channels = self.shape[0]
        self.layout: Layout | None = Layout(self.dtype.name, channels)
        if self._integer:
            alone = self._scale.size == 1
            scale, zero_point = float(self._scale.flat[0]), int(self._zero.flat[0])
            self.layout = Layout(self.dtype.name, channels, scale, zero_point) if alone else None

    def fits(self, stored: NDArray[Any]) -> bool:
        """Whether an array holds one frame of this tensor."""
        return stored.shape == self.stored_shape and stored.dtype == self.dtype

    def planar(self, stored: NDArray[Any]) -> NDArray[Any]:
        """View of stored numbers as (C, H, W), a dense layer as (N, 1, 1)."""
        frame: NDArray[Any] = stored[0]
        return frame.transpose(2, 0, 1) if frame.ndim == 3 else frame[:, None, None]

    def read(self, planar: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write the values of stored numbers (C, H, W) to ``out``; what is not finite stays so."""
        np.copyto(out, planar)
        self.decode(out)

    def decode(self, values: NDArray[np.float32]) -> None:
        """Replace stored numbers, as contiguous floats (C, H, W), by their values."""
        if self.layout is None:
            np.subtract(values, self._zero, out=values)
            np.multiply(values, self._scale, out=values)
        elif self._integer:
            dequantise(self.layout.zero_point, self.layout.scale, values.reshape(-1))

    def encode(self, frame: NDArray[np.float32]) -> NDArray[Any]:
        """Numbers to store for a frame of `shape`, with a batch axis; integers are rounded and clipped.

        Integers cannot hold what is not finite: Inf becomes an end of `span`, and NaN becomes 0, so that a
        quantised model sees an ordinary number. Whoever encodes a frame counts them.
        """
        if not self._integer:
            planar = frame
        else:
            axes = (-1, *(1,) * (frame.ndim - 1))
            finite = np.clip(np.nan_to_num(frame), *self.span())  # far values would overflow in steps
            steps = finite / self._scale.reshape(axes) + self._zero.reshape(axes)
            limits = np.iinfo(self.dtype)
            planar = np.clip(np.rint(steps), limits.min, limits.max)
        stored = planar.transpose(1, 2, 0) if planar.ndim == 3 else planar
        return np.ascontiguousarray(stored[None].astype(self.dtype))

    def span(self) -> tuple[float, float]:
        """Least and largest value that integers can stand for; 0 and 1 where floats are stored."""
        if not self._integer:
            return 0.0, 1.0
        limits = np.iinfo(self.dtype)
        ends = self._scale * (np.array([limits.min, limits.max], np.float32) - self._zero)
        return float(ends.min()), float(ends.max())


def find_observed_input(graph: Graph, name: str) -> StoredTensor:
    """Input that is tap 0: the first image (1, H, W, C), else the first vector (1, N).

    Raises
    ------
    ModelError
        No input is of such a shape and of a type in `DTYPES`.
    """
    inputs = [graph.tensors[index] for index in graph.inputs]
    for n_axes in (4, 2):
        for tensor in inputs:
            candidate = Candidate(tensor.name, "", tensor)
            readable = candidate.readable or (tensor.dtype in ("int8", "uint8") and not tensor.scales)
            if len(tensor.shape) == n_axes and candidate.shape and readable:
                return StoredTensor(tensor, tensor.name)
    found = ", ".join(f"{tensor.name} {tensor.dtype}{tensor.shape}" for tensor in inputs)
    kinds = ", ".join(DTYPES)
    raise ModelError(name, f"needs an input of shape (1, H, W, C) or (1, N) of {kinds}, has {found}")


def read_answer(tensor: Tensor, stored: NDArray[Any]) -> NDArray[Any]:
    """Values of an output of any shape.

    The integers of a softmax, whose scale and zero point the runtime fixes (`SOFTMAX`), sum to 1 within a
    step each; they are scaled to sum to it, unless all of them are 0.
    """
    if tensor.dtype not in ("int8", "uint8") or len(tensor.scales) != 1:
        return stored
    scale, zero_point = tensor.scales[0], tensor.zero_points[0]
    values = stored.astype(np.float32, order="C")
    read = read_softmax if (scale, zero_point) == SOFTMAX[tensor.dtype] else dequantise
    read(zero_point, scale, values.reshape(-1))
    return values
