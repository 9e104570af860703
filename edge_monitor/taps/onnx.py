"""ONNX Runtime: what can be tapped and what it costs, and sessions that hand taps over.

A tapped session is made from a model whose post-activation tensors were added to its outputs
(`edge_monitor.taps.onnx_graph`, which says why just those). The taps are bound to fixed buffers, as the
kernels keep them (`edge_monitor.taps.onnx_raw`), so that no frame allocates, copies or rearranges them.
Execution providers other than the CPU's hand them over as ordinary outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_monitor.errors import ModelError, first_line
from edge_monitor.taps.candidates import TapCandidate, default_taps
from edge_monitor.taps.model_file import load_model
from edge_monitor.taps.onnx_graph import (
    add_outputs,
    check_taps,
    find_candidates,
    find_quantised,
    read_graph,
)
from edge_monitor.taps.onnx_raw import CPU, Feed, Options, open_tapped
from edge_monitor.taps.reducer import Reduction, TapReducer, input_spec, match_specs, tap_spec
from edge_monitor.taps.tap_table import Layout, aligned_zeros
from edge_monitor.types import BoolArray, TapSpec

DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    **{
        f"tensor({name})": np.dtype(name)
        for name in [
            "float16",
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
        ]
    },
}
"""NumPy type of each numeric tensor type, by ONNX Runtime's name."""

FLOATS = ("float32", "float16")
"""Types that can be read; integers where the model says what they stand for."""


def open_session(
    data: bytes, taps: Sequence[str], session_options: Mapping[str, object]
) -> onnxruntime.InferenceSession:
    """Session of a model; taps come behind the model's own outputs.

    Raises
    ------
    ModelError
        See `add_outputs`. What the runtime raises passes through.
    """
    return onnxruntime.InferenceSession(add_outputs(data, taps) if taps else data, **session_options)


def quiet_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Session options for a model of our own: so many threads, errors told and warnings not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def list_taps(model: str | Path | bytes) -> list[TapCandidate]:
    """Candidates in order of execution, found by running the model once on zeros.

    The suggested set is the first, the middle and the last of those that the probe can read: float32 and
    float16 tensors of shape (1, C, H, W) or (1, N). ``bytes`` are those that are read at every frame: of a
    quantised model the integers.

    Raises
    ------
    ModelError
        The model cannot be read or run, or an input has no fixed shape.
    """
    data, label = load_model(model)
    graph = read_graph(data, label)
    found, quantised = find_candidates(graph), find_quantised(graph)
    if not found:
        return []
    options = quiet_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = open_session(data, list(found), {"sess_options": options})
        feed = {arg.name: np.zeros(*input_type(arg)) for arg in session.get_inputs()}
        tensors = dict(zip(found, session.run(list(found), feed), strict=True))
    except ModelError as error:
        raise ModelError(label, str(error)) from error
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ModelError(label, f"cannot be run ({first_line(error)})") from error
    # A model may hand over what is no array: a sequence, or nothing.
    arrays = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
    readable = [
        name for name, tensor in arrays.items() if _is_readable(tensor.shape, tensor.dtype, quantised=False)
    ]
    defaults = default_taps(readable)
    return [
        TapCandidate.of(
            name,
            found[name],
            tensor.shape[1:],
            tensor.size if name in quantised else tensor.nbytes,
            default=name in defaults,
        )
        for name, tensor in tensors.items()
    ]


def input_type(arg: onnxruntime.NodeArg) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape (a free batch axis is 1) and NumPy type of a session's input.

    Raises
    ------
    ModelError
        The input is no numeric tensor, or an axis behind the first one has no fixed length.
    """
    if arg.type not in DTYPES:
        raise ModelError(f"input {arg.name}", f"is a {arg.type}, only numeric tensors are supported")
    shape = [1 if axis == 0 and not isinstance(n, int) else n for axis, n in enumerate(arg.shape)]
    if not all(isinstance(n, int) for n in shape):
        raise ModelError(f"input {arg.name}", f"shape {arg.shape} is not fixed; export it with fixed sizes")
    return tuple(shape), DTYPES[arg.type]


def find_observed_input(session: onnxruntime.InferenceSession) -> str:
    """Name of the input that is tap 0: the first image (1, C, H, W), else the first vector (1, N).

    Raises
    ------
    ModelError
        No input is a float32 or float16 tensor of such a shape, or one has no fixed shape (`input_type`).
    """
    types: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    types = {arg.name: input_type(arg) for arg in session.get_inputs()}
    for n_axes in (4, 2):
        for name, (shape, dtype) in types.items():
            if dtype.name in FLOATS and len(shape) == n_axes and shape[0] == 1:
                return name
    found = ", ".join(f"{name} {dtype}{shape}" for name, (shape, dtype) in types.items())
    raise ModelError(
        "model", f"needs a float32 or float16 input of shape (1, C, H, W) or (1, N), has {found}"
    )


class TappedSession:
    """Session of a model with taps; every run leaves the tapped values in the same memory.

    Parameters
    ----------
    data : bytes
        The model without taps.
    names : sequence of str
        Tensors to tap.
    feeds : sequence of mapping
        Valid feeds; runs on them show the shapes of the taps, and how they lie in memory.
    observed : str
        The input that is tap 0.
    specs : tuple of TapSpec or None
        Specifications of input and taps when a map gives them, else they are made here.
    session_options : mapping
        Keyword arguments of ``onnxruntime.InferenceSession``.

    Raises
    ------
    ModelError
        A tap does not exist, or is neither of floats nor quantised, or not of shape (1, C, H, W) or (1, N).
    MapError
        ``specs`` do not fit the model.
    """

    def __init__(
        self,
        data: bytes,
        names: Sequence[str],
        feeds: Sequence[Feed],
        observed: str,
        specs: tuple[TapSpec, ...] | None,
        session_options: Options,
    ) -> None:
        graph = read_graph(data)
        check_taps(graph, names)
        quantised = find_quantised(graph)
        tensors = [quantised[name].tensor if name in quantised else name for name in names]
        self.session, sources = open_tapped(data, tensors, feeds, session_options)
        outputs = [output.name for output in self.session.get_outputs()]
        self._outputs = outputs[: len(outputs) - len(names)]  # the model's own come first
        for name, source in zip(names, sources, strict=True):
            if not _is_readable(source.shape, source.dtype, quantised=name in quantised):
                raise ModelError(
                    name,
                    f"is {source.dtype}{source.shape}, only {' or '.join(FLOATS)} (1, C, H, W) or (1, N)",
                )
        natural = (
            input_spec(observed, feeds[0][observed].shape[1:]),
            *(tap_spec(name, source.shape[1:]) for name, source in zip(names, sources, strict=True)),
        )
        self.specs = match_specs(natural, specs)
        layouts = []
        for name, source in zip(names, sources, strict=True):
            _, scale, zero_point = quantised.get(name, (name, 1.0, 0))
            layouts.append(Layout(source.dtype.name, source.block, scale, zero_point))
        self._blocks = [layout.block for layout in layouts]
        # Binding and reducer know addresses only; the memory is kept here.
        self._memory = [
            aligned_zeros(source.dtype.itemsize * prod(source.stored_shape))
            .view(source.dtype)
            .reshape(source.stored_shape)
            for source in sources
        ]
        self._reducer = TapReducer(self.specs, tuple(layouts))
        self._reducer.place([memory.ctypes.data for memory in self._memory])
        self._binding = self.session.io_binding() if self.session.get_providers() == CPU else None
        if self._binding is None:
            return
        for name in self._outputs:  # bound first, so that they come first in the answer
            self._binding.bind_output(name)
        for source, memory in zip(sources, self._memory, strict=True):
            self._binding.bind_output(
                source.output, "cpu", 0, source.dtype, source.stored_shape, memory.ctypes.data
            )

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        """Run, and return the model's own outputs in memory of their own."""
        binding = self._binding
        if binding is None:
            outputs: list[NDArray[Any]] = self.session.run(None, feed)
            for memory, tap in zip(self._memory, outputs[len(self._outputs) :], strict=True):
                np.copyto(memory, tap)
            return outputs[: len(self._outputs)]
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            # Bound anew for every run, or the runtime would write into the arrays handed out before
            # (test_probe.py::test_later_runs_leave_earlier_answers_alone).
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        values = binding.get_outputs_as_ortvaluevector()
        return [values[place].numpy() for place in range(len(self._outputs))]

    def choose(self, scan: BoolArray) -> None:
        """Choose the taps whose voxels are read, see `TapReducer.choose`."""
        self._reducer.choose(scan)

    def values(self) -> list[NDArray[Any]]:
        """Copy the taps of the last run as they are stored: (C, H, W), or (N, 1, 1) for a dense layer."""
        values = []
        for memory, spec, block in zip(self._memory, self.specs[1:], self._blocks, strict=True):
            channels, height, width = spec.shape
            blocked = memory.reshape(-1, height, width, block).transpose(0, 3, 1, 2)
            values.append(blocked.reshape(-1, height, width)[:channels].copy())
        return values

    def restart(self) -> None:
        """Forget the pictures so far."""
        self._reducer.restart()

    def reduce(self, frame: NDArray[Any]) -> Reduction:
        """Reduce the taps of the last run, whose observed input was ``frame``."""
        self._reducer.load_input(frame)
        return self._reducer.reduce()


def _is_readable(shape: tuple[int, ...], dtype: np.dtype[Any], *, quantised: bool) -> bool:
    """Whether the reducer can read a tensor: one frame, (1, C, H, W) or (1, N), of a type that it knows."""
    types = ("int8", "uint8") if quantised else FLOATS
    return dtype.name in types and len(shape) in (2, 4) and shape[0] == 1 and prod(shape) > 0
