"""Cuts of TensorFlow Lite models, as `edge_monitor.offline.surgery` cuts ONNX models."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.offline.tflite_model import PartRunner, encode_frames, only_input, read_values, store_values
from edge_monitor.taps.tflite_edit import prefix, suffix
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import choose
from edge_monitor.taps.tflite_values import read_answer


class CutTfliteModel:
    """A TensorFlow Lite model in two halves, cut at one tap; frames run one by one.

    The suffix takes what the tap stores: activations of a quantised model are quantised with the tap's own
    scale and zero point. What passes the tap by is carried as it is stored. Both halves keep the model's
    own operators, so their answers are the model's to the bit
    (test_tflite_surgery.py::test_halves_answer_as_the_whole).

    Parameters
    ----------
    data : bytes
        A TensorFlow Lite model with one input.
    tap : str
        A post-activation tensor (`edge_monitor.taps.tflite_taps.find_candidates`).

    Raises
    ------
    ModelError
        The model cannot be read, has not exactly one input that can be observed, keeps state, ``tap`` is none
        of its taps, or influences no output.
    """

    carried: tuple[str, ...]

    def __init__(self, data: bytes, tap: str) -> None:
        graph = read_model(data)
        (candidate,) = choose(graph, [tap])
        self._input, self._tap = only_input(graph), candidate.tensor
        self._suffix = suffix(data, [self._tap.index])
        behind = read_model(self._suffix)
        self._computed, self._outputs = behind.outputs, graph.outputs
        self._crossing = behind.inputs[1:]
        passing = (index for index in graph.outputs if index not in behind.outputs)
        carried = tuple(dict.fromkeys([*self._crossing, *passing]))
        self.carried = tuple(f"{index} {graph.tensors[index].name}" for index in carried)
        self._carried = dict(zip(self.carried, carried, strict=True))
        self._read = [index for index in (self._tap.index, *carried) if index != self._input.index]
        self._before = PartRunner(prefix(data, self._read))
        self._answers = [graph.tensors[index] for index in graph.outputs]
        self._local = threading.local()

    def before(self, frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Run the prefix; see `edge_monitor.offline.backend.Halves`."""
        values: dict[int, list[NDArray[Any]]] = {index: [] for index in (self._input.index, *self._read)}
        for encoded in encode_frames(self._input, frames):
            values[self._input.index].append(encoded)
            tensors = self._before.run({self._input.index: encoded}, self._read)
            for index, stored in zip(self._read, tensors, strict=True):
                values[index].append(stored)
        activations = read_values(self._tap, np.concatenate(values[self._tap.index]))
        return activations, {name: np.stack(values[index]) for name, index in self._carried.items()}

    def after(
        self, activations: NDArray[np.float32], carried: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run the suffix; see `edge_monitor.offline.backend.Halves`."""
        answers: list[list[NDArray[Any]]] = []
        for place, stored in enumerate(store_values(self._tap, activations)):
            known = {index: carried[name][place] for name, index in self._carried.items()}
            feed = {index: known[index] for index in self._crossing}
            feed[self._tap.index] = stored[np.newaxis]
            known |= zip(self._computed, self._after().run(feed, self._computed), strict=True)
            answers.append([read_answer(tensor, known[tensor.index]) for tensor in self._answers])
        return [np.concatenate(column) for column in zip(*answers, strict=True)]

    def _after(self) -> PartRunner:
        """Return the calling thread's own suffix: an interpreter holds one frame."""
        if not hasattr(self._local, "suffix"):
            self._local.suffix = PartRunner(self._suffix)
        runner: PartRunner = self._local.suffix
        return runner
