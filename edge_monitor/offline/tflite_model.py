"""TensorFlow Lite models run on a workstation: whole ones, and parts that were cut out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import EdgeMonitorError, InputError, ModelError, first_line
from edge_monitor.taps.litert import opener
from edge_monitor.taps.model_file import installed_runtime
from edge_monitor.taps.tflite_file import Graph, Tensor, read_model
from edge_monitor.taps.tflite_values import StoredTensor, find_observed_input, read_answer


def read_objects(data: bytes) -> tuple[Any, Any]:
    """Return the format's full schema, as ai-edge-litert brings it, and a model as objects of it.

    Raises
    ------
    ModelError
        The package is not installed, or the model's weights lie behind the flatbuffer.
    """
    try:
        schema = import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise ModelError(
            "model", "can only be broken and traced with ai-edge-litert: pip install '.[litert]'"
        ) from error
    model = schema.ModelT.InitFromPackedBuf(data)
    if any(buffer.offset for buffer in model.buffers):
        raise ModelError("model", "keeps its weights behind the flatbuffer; it cannot be edited or traced")
    return schema, model


class PartRunner:
    """Interpreter of a model or of a part of one; for one thread, one frame at a time.

    Raises
    ------
    ModelError
        The runtime refuses the model.
    InputError
        No runtime is installed.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._interpreter = opener(installed_runtime(), {"num_threads": 1})(data)
            self._interpreter.allocate_tensors()
        except EdgeMonitorError:
            raise
        except Exception as error:  # the runtimes' errors have no base of their own
            raise ModelError("model", f"cannot be run ({first_line(error)})") from error

    def run(self, feed: Mapping[int, NDArray[Any]], wanted: Sequence[int]) -> list[NDArray[Any]]:
        """Return the stored numbers of the ``wanted`` outputs, for those of the inputs, by tensor."""
        try:
            for index, stored in feed.items():
                self._interpreter.set_tensor(index, stored)
            self._interpreter.invoke()
        except Exception as error:  # as above
            raise ModelError("model", f"cannot be run ({first_line(error)})") from error
        return [self._interpreter.get_tensor(index) for index in wanted]


def only_input(graph: Graph) -> StoredTensor:
    """Return the input of a model that has one.

    Raises
    ------
    ModelError
        It has several, or one that cannot be observed.
    """
    if len(graph.inputs) != 1:
        names = ", ".join(graph.tensors[index].name for index in graph.inputs)
        count = f"has {len(graph.inputs)} inputs ({names})"
        raise ModelError("model", f"{count}; only models with one can be cut, broken and traced")
    return find_observed_input(graph, "model")


def encode_frames(tensor: StoredTensor, frames: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Turn frames into what an input stores, each by itself.

    Raises
    ------
    InputError
        No frames, or frames of another shape.
    """
    if frames.shape[1:] != tensor.shape or len(frames) == 0:
        raise InputError("frames", f"have shape {frames.shape}, the model takes (n, *{tensor.shape})")
    return [tensor.encode(frame) for frame in frames]


def read_values(tensor: Tensor, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Values (n, C, H, W) or (n, N) of stored numbers (n, H, W, C) or (n, N)."""
    values = stored.astype(np.float32)
    if tensor.scales:
        values -= np.array(tensor.zero_points, np.float32)
        values *= np.array(tensor.scales, np.float32)
    return np.ascontiguousarray(np.moveaxis(values, -1, 1))


def store_values(tensor: Tensor, values: NDArray[np.float32]) -> NDArray[Any]:
    """Turn finite values (n, C, H, W) or (n, N) into stored numbers: the inverse of `read_values`.

    Integers are rounded and clipped.
    """
    stored: NDArray[Any] = np.moveaxis(values, 1, -1)
    if tensor.scales:
        limits = np.iinfo(tensor.dtype)
        stored = stored / np.array(tensor.scales, np.float32)
        stored += np.array(tensor.zero_points, np.float32)
        stored = np.clip(np.rint(stored), limits.min, limits.max)
    return np.ascontiguousarray(stored, tensor.dtype)


def run_whole(
    data: bytes, label: str, frames: NDArray[np.float32]
) -> tuple[list[str], list[list[NDArray[Any]]]]:
    """Names of the outputs, and the answers to each frame (n, ...) as it is served.

    Raises
    ------
    ModelError
        The model cannot be run, or has several inputs.
    InputError
        The frames do not fit the model.
    """
    graph = read_model(data, label)
    outputs = [graph.tensors[index] for index in graph.outputs]
    entry, runner = only_input(graph), PartRunner(data)
    answers = [
        [
            read_answer(tensor, stored)
            for tensor, stored in zip(outputs, runner.run({entry.index: encoded}, graph.outputs), strict=True)
        ]
        for encoded in encode_frames(entry, frames)
    ]
    return [tensor.name for tensor in outputs], answers
