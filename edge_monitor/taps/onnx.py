"""ONNX Runtime: what can be tapped and what it costs, and what a session takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime

from edge_monitor.errors import ModelError, first_line
from edge_monitor.taps.candidates import TapCandidate, default_taps
from edge_monitor.taps.model_file import load_model
from edge_monitor.taps.onnx_graph import add_outputs, find_candidates, find_quantised, read_graph

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


CPU = ["CPUExecutionProvider"]
"""Execution providers of a session on whose taps the probe can look in place."""
OPENING = Lock()
"""Held while a session opens: `onnx_raw` changes options of the caller for that long, and no other session
that we open may take them for the caller's."""


def open_session(
    data: bytes, taps: Sequence[str], session_options: Mapping[str, object]
) -> onnxruntime.InferenceSession:
    """Session of a model; taps come behind the model's own outputs.

    Raises
    ------
    ModelError
        See `add_outputs`. What the runtime raises passes through.
    """
    model = add_outputs(data, taps) if taps else data
    with OPENING:
        return onnxruntime.InferenceSession(model, **session_options)


def quiet_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Session options for a model of our own: so many threads, errors told and warnings not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def list_taps(model: str | Path | bytes) -> list[TapCandidate]:
    """Candidates in order of execution, found by running the model once on zeros.

    Those that the probe can read are float32 and float16 tensors of shape (1, C, H, W) or (1, N); three of
    them are suggested (`default_taps`). ``bytes`` are those that are read at every frame: of a
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
    sizes = {name: tensor.size if name in quantised else tensor.nbytes for name, tensor in arrays.items()}
    readable = {
        name: sizes[name]
        for name, tensor in arrays.items()
        if is_readable(tensor.shape, tensor.dtype, quantised=False)
    }
    defaults = default_taps(readable)
    return [
        TapCandidate.of(
            name,
            found[name],
            tensor.shape[1:],
            sizes[name],
            default=name in defaults,
        )
        for name, tensor in arrays.items()
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


def is_readable(shape: tuple[int, ...], dtype: np.dtype[Any], *, quantised: bool) -> bool:
    """Whether the reducer can read a tensor: one frame, (1, C, H, W) or (1, N), of a type that it knows."""
    types = ("int8", "uint8") if quantised else FLOATS
    return dtype.name in types and len(shape) in (2, 4) and shape[0] == 1 and prod(shape) > 0
