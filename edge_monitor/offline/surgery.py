"""Cuts: a model in two halves at one tap, so that what follows the tap runs on changed activations.

A tap is rarely the only road through a network: skip branches pass it by. So the second half, the
*suffix*, takes the tap **and** every other tensor it reads from outside (the frontier), and the first
half, the *prefix*, hands them all over. That splits every model at every tap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.model_graph import data_tensors, free_batch, open_model, reads, submodel
from edge_monitor.taps.onnx import input_type
from edge_monitor.taps.onnx_graph import add_outputs

TOLERANCE = 1e-5
"""The halves may differ from the whole model by this, relative to its largest output."""

CHUNK = 32
"""Frames a run: larger batches gain nothing and cost memory."""


class _Suffix(NamedTuple):
    """Where the tap's values enter, the nodes behind it, what they read besides, all that is not behind."""

    entry: str
    nodes: list[onnx.NodeProto]
    crossing: tuple[str, ...]
    upstream: frozenset[str]


class CutModel:
    """A model in two halves, cut at one tap.

    The halves are compared with the whole model once, on noise: run in batches, or, where the model
    does not allow that, frame by frame.

    Parameters
    ----------
    data : bytes
        An ONNX model with one float32 input; its batch axis may be fixed to 1.
    tap : str
        A post-activation tensor (`find_candidates`).

    Attributes
    ----------
    carried : tuple of str
        What passes the tap by: tensors the suffix reads besides it (the model's input may be one of
        them), and outputs of the model that do not depend on the tap.
    prefix, suffix : bytes
        The two ONNX models.

    Raises
    ------
    ModelError
        The model cannot be read, has not exactly one float32 input of fixed shape, ``tap`` is none of
        its taps or influences no output, or the halves do not give the whole model's answer.
    """

    carried: tuple[str, ...]
    prefix: bytes
    suffix: bytes

    def __init__(self, data: bytes, tap: str) -> None:
        add_outputs(data, [tap])  # refuses what is no tap, naming the nearest
        self.tap = tap
        whole = open_model(data)
        arguments = whole.get_inputs()
        if len(arguments) != 1:
            names = ", ".join(argument.name for argument in arguments)
            raise ModelError(
                "model", f"has {len(arguments)} inputs ({names}); only models with one can be cut"
            )
        shape, dtype = input_type(arguments[0])
        if dtype != np.float32 or shape[0] != 1:
            raise ModelError(f"input {arguments[0].name}", f"is {dtype}{shape}, only float32 (1, ...)")
        self._input, self._frame_shape = arguments[0].name, shape[1:]
        self._outputs = [output.name for output in whole.get_outputs()]
        # Noise of several strengths: one of them is within the range the model was made for.
        noise = np.random.default_rng(0).standard_normal((3, *shape[1:]), np.float32)
        noise *= np.array([1, 16, 128], np.float32).reshape(-1, *[1] * len(shape[1:]))
        expected = _run(whole, self._outputs, {self._input: noise}, 1)
        try:
            batched = self._split(free_batch(data), noise, expected, CHUNK)
        except Exception:  # noqa: BLE001 - the runtime's errors have no base: a graph made for one frame
            batched = False
        if not batched and not self._split(data, noise, expected, 1):
            raise ModelError(tap, "the model cut here does not give the whole model's answer")

    @property
    def batched(self) -> bool:
        """Whether frames run in batches; else one by one, because the model mixes or refuses them."""
        return self._chunk > 1

    def before(self, frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Run the prefix.

        Parameters
        ----------
        frames : (n, ...) float32
            Inputs of the model.

        Returns
        -------
        activations : (n, ...) float32
            The tap.
        carried : dict of (n, ...) arrays
            The tensors named by ``carried``.

        Raises
        ------
        InputError
            No frames, or frames of another shape.
        """
        if frames.shape[1:] != self._frame_shape or len(frames) == 0:
            raise InputError(
                "frames", f"have shape {frames.shape}, the model takes (n, *{self._frame_shape})"
            )
        feed = {self._input: np.asarray(frames, np.float32)}
        tensors = _run(self._before, self._read, feed, self._chunk)
        values = feed | dict(zip(self._read, tensors, strict=True))
        return values[self.tap], {name: values[name] for name in self.carried}

    def after(
        self, activations: NDArray[np.float32], carried: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run the suffix.

        Parameters
        ----------
        activations : (n, ...) float32
            Values of the tap.
        carried : mapping of (n, ...) arrays
            As `before` returns them, one entry for each of the activations.

        Returns
        -------
        list of (n, ...) arrays
            The model's outputs, in its order.
        """
        feed = {self._entry: activations} | {name: carried[name] for name in self._crossing}
        tensors = _run(self._after, self._computed, feed, self._chunk)
        values = dict(carried) | dict(zip(self._computed, tensors, strict=True))
        return [values[name] for name in self._outputs]

    def _split(
        self, data: bytes, noise: NDArray[np.float32], expected: list[NDArray[Any]], chunk: int
    ) -> bool:
        """Cut ``data`` and say whether the halves give the expected outputs."""
        model = onnx.load_from_string(data)
        self._chunk = chunk
        cut = _find_suffix(model, self.tap)
        passing = [name for name in self._outputs if name in cut.upstream]
        self._entry, self._crossing = cut.entry, cut.crossing
        self.carried = tuple(dict.fromkeys([*cut.crossing, *passing]))
        self._computed = [name for name in self._outputs if name not in passing]
        if not self._computed:
            raise ModelError(self.tap, "no output of the model depends on it")
        self._read = [name for name in dict.fromkeys([self.tap, *self.carried]) if name != self._input]
        inputs = [value for value in model.graph.input if value.name == self._input]
        self.prefix = submodel(model, model.graph.node, inputs, self._read)
        self._before = open_model(self.prefix)
        activations, carried = self.before(noise)
        values = {self._entry: activations} | {name: carried[name] for name in self._crossing}
        inputs = [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(value.dtype),
                ["batch" if chunk > 1 else 1, *value.shape[1:]],
            )
            for name, value in values.items()
        ]
        self.suffix = submodel(model, cut.nodes, inputs, self._computed)
        self._after = open_model(self.suffix)
        return all(map(_agree, self.after(activations, carried), expected))


def _find_suffix(model: onnx.ModelProto, tap: str) -> _Suffix:
    """Everything behind the tap that an output needs, and what it reads from outside.

    Behind a dequantised tap the activations are quantised again, as in the model: the runtime then
    uses the same integer kernels, and branches that dequantise apart are cut with it.
    """
    graph = model.graph
    entry, cut, head = tap, tap, []
    maker = next(node for node in graph.node if tap in node.output)
    if maker.op_type == "DequantizeLinear":
        entry, cut = f"{tap}_entry", maker.input[0]
        head = [helper.make_node("QuantizeLinear", [entry, *maker.input[1:]], [cut])]
        head[0].attribute.extend(maker.attribute)
    behind = {cut}
    for node in graph.node:
        if not behind.isdisjoint(reads(node)):
            behind.update(node.output)
    upstream = [name for name in data_tensors(graph) if name not in behind]
    # Constants and sizes are neither: they have no batch axis, so the suffix computes them again.
    outside = {cut, *upstream}
    needed = {output.name for output in graph.output}.difference(upstream).union(*map(reads, head))
    nodes = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output) and outside.isdisjoint(node.output):
            nodes.append(node)
            needed.update(reads(node))
    crossing = tuple(name for name in upstream if name in needed)
    return _Suffix(entry, head + nodes[::-1], crossing, frozenset(upstream))


def _run(
    session: onnxruntime.InferenceSession, names: Sequence[str], feed: Mapping[str, NDArray[Any]], chunk: int
) -> list[NDArray[Any]]:
    """Run so many frames at a time."""
    n = len(next(iter(feed.values())))
    parts = [
        session.run(names, {name: values[start : start + chunk] for name, values in feed.items()})
        for start in range(0, n, chunk)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    if found.shape != expected.shape:
        return False
    wide = expected.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
    return np.allclose(found, wide, rtol=0.0, atol=TOLERANCE * largest, equal_nan=True)
