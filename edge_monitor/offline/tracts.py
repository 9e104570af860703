"""Exact tracts: how strongly the voxels of one tap drive those of the next (design D8).

``C(g->h) = sum over i in g, j in h of |W_ij| ReLU(a_i) sigmoid(u_j)``, carried through all layers
between two consecutive taps; `edge_monitor.offline.tract_graph` says how.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.model_graph import open_model, real_inputs, submodel
from edge_monitor.offline.tract_graph import SOURCE, TARGET, Path, TractGraph, build_tract, find_path
from edge_monitor.taps.onnx import input_type
from edge_monitor.taps.onnx_graph import add_outputs
from edge_monitor.types import FloatArray, IntArray, TapSpec


class Traceable(NamedTuple):
    """An ONNX model in which tracts can be traced: of the first ``n_taps`` taps, the input included.

    ``problem``: why not of the others. ``as_written``: whether to compute it as `open_model` says.
    """

    model: bytes
    n_taps: int
    problem: str
    as_written: bool


class TractTracer:
    """Exact structural tracts of a model between consecutive taps.

    Parameters
    ----------
    data : bytes
        An ONNX model with one input.
    taps : tuple of TapSpec
        The network's input, then the tapped tensors, as the probe gives them.
    as_written : bool
        Whether the forward pass is computed as `open_model` says.

    Attributes
    ----------
    problems : tuple of str
        One per transition: "", or why it cannot be traced. The others are traced all the same.

    Raises
    ------
    ModelError
        The model cannot be read or run, has other inputs, lacks a tap, or a tap has another shape.
    """

    problems: tuple[str, ...]

    def __init__(self, data: bytes, taps: tuple[TapSpec, ...], *, as_written: bool = False) -> None:
        self._as_written = as_written
        add_outputs(data, [tap.name for tap in taps[1:]])  # refuses what is no tap, naming the nearest
        model = onnx.load_from_string(data)
        arguments = open_model(data).get_inputs()
        if [argument.name for argument in arguments] != [taps[0].name]:
            names = ", ".join(argument.name for argument in arguments)
            raise ModelError("model", f"must have {taps[0].name} as its only input, has {names}")
        self._taps, self._input = taps, taps[0].name
        shape, self._dtype = input_type(arguments[0])
        self._frame_shape = shape[1:]
        paths = [find_path(model.graph, a.name, b.name) for a, b in pairwise(taps)]
        values = self._example(model, paths, np.zeros(shape, self._dtype))
        for tap in taps:
            found = _three_axes(values[tap.name].shape)
            strided = (found[0], -(-found[1] // tap.step[0]), -(-found[2] // tap.step[1]))
            if strided != tap.shape:
                raise ModelError(tap.name, f"has shape {found}, which is not {tap.shape} at step {tap.step}")
        self._tracts: list[tuple[TractGraph, onnxruntime.InferenceSession] | None] = []
        problems = [""] * len(paths)
        for index, ((a, b), path) in enumerate(zip(pairwise(taps), paths, strict=True)):
            try:
                tract = build_tract(model, path, a.name, b.name, a.n_voxels, values)
                self._tracts.append((tract, open_model(tract.model)))
            except ModelError as error:
                self._tracts.append(None)
                problems[index] = str(error)
        self.problems = tuple(problems)
        wanted = dict.fromkeys(tap.name for tap in taps)
        wanted |= dict.fromkeys(name for tract in self._tracts if tract for name in tract[0].forward)
        del wanted[self._input]
        self._wanted = list(wanted)
        self._forward = self._open_forward(model, self._wanted)

    def trace(self, frame: NDArray[np.float32]) -> list[FloatArray | None]:
        """Trace one frame.

        Parameters
        ----------
        frame : array
            Input of the model, without the batch axis.

        Returns
        -------
        list of (n_source_voxels, n_target_voxels) float64 arrays
            C of every transition, in units of the target tap's activations; None where there is a problem.

        Raises
        ------
        InputError
            The frame has another shape.
        """
        if frame.shape != self._frame_shape:
            raise InputError("frame", f"has shape {frame.shape}, the model takes {self._frame_shape}")
        values: dict[str, NDArray[Any]] = {self._input: frame[None].astype(self._dtype)}
        values |= zip(self._wanted, self._forward.run(self._wanted, values), strict=True)
        traced: list[FloatArray | None] = []
        for (a, b), tract in zip(pairwise(self._taps), self._tracts, strict=True):
            if tract is None:
                traced.append(None)
                continue
            graph, session = tract
            feed = {name: values[name].astype(np.float32, copy=False) for name in graph.forward}
            feed[SOURCE] = _split_by_voxel(a, values[a.name])
            traced.append(_sum_by_voxel(b, session.run([TARGET], feed)[0]))
        return traced

    def _example(
        self, model: onnx.ModelProto, paths: Iterable[Path], frame: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """Every tensor that the paths touch, for one frame: shapes, and the values of constants."""
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        values[self._input] = frame
        names = dict.fromkeys(tap.name for tap in self._taps)
        for path in paths:
            names |= dict.fromkeys(name for node in path.nodes for name in (*node.input, *node.output))
        wanted = [name for name in names if name and name not in values]
        session = self._open_forward(model, wanted)
        return values | dict(zip(wanted, session.run(wanted, {self._input: frame}), strict=True))

    def _open_forward(self, model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
        """Session that gives tensors of the model's forward pass."""
        part = submodel(model, model.graph.node, real_inputs(model.graph), names)
        return open_model(part, as_written=self._as_written)


def _three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape of a tensor with batch axis as a tap has it: a dense layer of N units is (N, 1, 1)."""
    channels, height, width = (*shape[1:], 1, 1)[:3]
    return channels, height, width


def _voxel_starts(tap: TapSpec) -> list[IntArray]:
    """First element of each cell along each axis of the full tensor, before any stride (design D3)."""
    steps = (1, *tap.step)
    axes = zip(tap.shape, tap.grid, steps, strict=True)
    return [np.arange(g) * n // g * step for n, g, step in axes]


def _split_by_voxel(tap: TapSpec, values: NDArray[Any]) -> NDArray[np.float32]:
    """ReLU(a) 1_g for every voxel g: (n_voxels, ...) float32 from (1, ...)."""
    shape = _three_axes(values.shape)
    axes = zip(shape, _voxel_starts(tap), strict=True)
    cells = [np.searchsorted(starts, np.arange(n), side="right") - 1 for n, starts in axes]
    voxel = np.ravel_multi_index(np.ix_(*cells), tap.grid)
    inside = voxel == np.arange(tap.n_voxels)[:, None, None, None]
    drive = np.where(inside, np.maximum(values, 0).reshape(shape), 0)
    return drive.astype(np.float32).reshape(tap.n_voxels, *values.shape[1:])


def _sum_by_voxel(tap: TapSpec, drive: NDArray[np.float32]) -> FloatArray:
    """Sum over the elements of each voxel: (n, n_voxels) float64 from (n, ...)."""
    sums = drive.astype(np.float64).reshape(len(drive), *_three_axes(drive.shape))
    for axis, starts in enumerate(_voxel_starts(tap), 1):
        sums = np.add.reduceat(sums, starts, axis=axis)
    return sums.reshape(len(drive), -1)
