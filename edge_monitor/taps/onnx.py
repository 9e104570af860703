"""ONNX Runtime: what can be tapped and what it costs, and sessions that hand taps over.

A tapped session is made from a model whose post-activation tensors were added to its outputs
(`edge_monitor.taps.onnx_graph`, which says why just those). The taps are bound to fixed buffers, so
that no frame allocates or copies them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import ModelError, first_line
from edge_monitor.taps.candidates import TapCandidate, default_taps
from edge_monitor.taps.model_file import load_model
from edge_monitor.taps.onnx_graph import add_outputs, find_candidates, read_graph
from edge_monitor.taps.reducer import Reduction, TapReducer, input_spec, match_specs, tap_spec
from edge_monitor.taps.tap_table import Layout, aligned_zeros
from edge_monitor.types import BoolArray, TapSpec

# Read once, when onnxruntime is imported: without it the runtime writes an identifier to the disk.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

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

    The probe can read float32 tensors of shape (1, C, H, W) or (1, N); of these is the suggested set.

    Raises
    ------
    ModelError
        The model cannot be read or run, or an input has no fixed shape.
    """
    data, label = load_model(model)
    found = find_candidates(read_graph(data, label))
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
    defaults = default_taps([name for name, tensor in tensors.items() if _is_readable(tensor)])
    return [
        TapCandidate.of(name, found[name], tensor.shape[1:], tensor.nbytes, default=name in defaults)
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
        No input is a float32 tensor of such a shape, or one has no fixed shape (`input_type`).
    """
    types: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    types = {arg.name: input_type(arg) for arg in session.get_inputs()}
    for n_axes in (4, 2):
        for name, (shape, dtype) in types.items():
            if dtype == np.float32 and len(shape) == n_axes and shape[0] == 1:
                return name
    found = ", ".join(f"{name} {dtype}{shape}" for name, (shape, dtype) in types.items())
    raise ModelError("model", f"needs a float32 input of shape (1, C, H, W) or (1, N), has {found}")


class TappedSession:
    """Session of a model with taps; every run leaves the tapped values in the same memory.

    Parameters
    ----------
    data : bytes
        The model without taps.
    names : sequence of str
        Tensors to tap.
    feed : mapping
        A valid feed; one run on it shows the shapes of the taps.
    observed : str
        The input that is tap 0.
    specs : tuple of TapSpec or None
        Specifications of input and taps when a map gives them, else they are made here.
    session_options : mapping
        Keyword arguments of ``onnxruntime.InferenceSession``.

    Raises
    ------
    ModelError
        A tap does not exist or is no float32 tensor of shape (1, C, H, W) or (1, N).
    MapError
        ``specs`` do not fit the model.
    """

    def __init__(
        self,
        data: bytes,
        names: Sequence[str],
        feed: Mapping[str, NDArray[Any]],
        observed: str,
        specs: tuple[TapSpec, ...] | None,
        session_options: Mapping[str, object],
    ) -> None:
        self.session = open_session(data, names, session_options)
        outputs = [output.name for output in self.session.get_outputs()]
        self._outputs = outputs[: len(outputs) - len(names)]  # the model's own come first
        tensors = dict(zip(names, self.session.run(names, feed), strict=True))
        for name, tensor in tensors.items():
            if not _is_readable(tensor):
                raise ModelError(
                    name, f"is {tensor.dtype}{tensor.shape}, only float32 (1, C, H, W) or (1, N)"
                )
        shapes = [feed[observed].shape, *(tensor.shape for tensor in tensors.values())]
        natural = (
            input_spec(observed, shapes[0][1:]),
            *(tap_spec(name, shape[1:]) for name, shape in zip(names, shapes[1:], strict=True)),
        )
        self.specs = match_specs(natural, specs)
        self._reducer = TapReducer(self.specs, (Layout(),) * len(names))
        self._binding = self.session.io_binding()
        for name in self._outputs:  # bound first, so that they come first in the answer
            self._binding.bind_output(name)
        # Binding and reducer know addresses only; the memory is kept here.
        self._memory = [aligned_zeros(tensor.nbytes) for tensor in tensors.values()]
        addresses = [memory.ctypes.data for memory in self._memory]
        for name, shape, address in zip(names, shapes[1:], addresses, strict=True):
            self._binding.bind_output(name, "cpu", 0, np.float32, shape, address)
        self._reducer.place(addresses)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run, and return the model's own outputs in memory of their own."""
        binding = self._binding
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
        """Copy the taps of the last run: (C, H, W), or (N, 1, 1) for a dense layer."""
        return [
            memory.view(np.float32)[: spec.size].reshape(spec.shape).copy()
            for memory, spec in zip(self._memory, self.specs[1:], strict=True)
        ]

    def restart(self) -> None:
        """Forget the pictures so far."""
        self._reducer.restart()

    def reduce(self, frame: NDArray[Any]) -> Reduction:
        """Reduce the taps of the last run, whose observed input was ``frame``."""
        self._reducer.load_input(frame)
        return self._reducer.reduce()


def _is_readable(tensor: object) -> bool:
    """Whether the reducer can read a tensor: one frame, float32, (1, C, H, W) or (1, N)."""
    return (
        isinstance(tensor, np.ndarray)
        and tensor.dtype == np.float32
        and tensor.ndim in (2, 4)
        and tensor.shape[0] == 1
        and tensor.size > 0
    )
