"""A model that was broken while it served: its taps as rows, without the probe's checks at start.

The probe compares answers when it attaches. A fault that comes later meets no such check, and a broken
model whose answers overflow may not pass it (test_injection.py::test_every_fault_can_be_put_in).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError, ModelError
from edge_monitor.taps.litert import TappedInterpreter, opener
from edge_monitor.taps.model_file import installed_runtime
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.taps.onnx_session import TappedSession
from edge_monitor.taps.output import OutputSummarizer
from edge_monitor.taps.reducer import Reduction
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_values import find_observed_input, read_answer
from edge_monitor.types import StatRow, TapSpec


class TappedModel:
    """Runs frames through an ONNX model and reduces its taps as the probe does.

    Parameters
    ----------
    model : bytes
    taps : tuple of TapSpec
        The input and the tapped tensors.
    frame : (C, H, W) or (N,) float32
        Any input.

    Raises
    ------
    MapError
        ``taps`` do not fit the model.
    """

    def __init__(self, model: bytes, taps: tuple[TapSpec, ...], frame: NDArray[np.float32]) -> None:
        self._input = taps[0].name
        options = {"sess_options": quiet_options()}
        names = [tap.name for tap in taps[1:]]
        self._session = TappedSession(model, names, [{self._input: frame[None]}], self._input, taps, options)
        self._summarizer = OutputSummarizer()

    def rows(self, frames: NDArray[np.float32]) -> Iterator[StatRow]:
        """Yield the rows of consecutive frames (n, ...), without times."""
        self._session.restart()
        for frame in frames:
            self._session.load(frame[None])
            outputs = self._session.run({self._input: frame[None]})
            yield _row(self._session.reduce(), outputs[0], self._summarizer)


class TappedTfliteModel:
    """Runs frames through a TensorFlow Lite model and reduces its taps as the probe does.

    Parameters and errors are those of `TappedModel`.
    """

    def __init__(self, model: bytes, taps: tuple[TapSpec, ...], frame: NDArray[np.float32]) -> None:
        graph = read_model(model)
        self._observed = find_observed_input(graph, "model")
        if frame.shape != self._observed.shape:
            raise MapError("frame", f"has shape {frame.shape}, the model takes {self._observed.shape}")
        self._answer = graph.tensors[graph.outputs[0]]
        names = [tap.name for tap in taps[1:]]
        open_interpreter = opener(installed_runtime(), {"num_threads": 1})
        self._tapped = TappedInterpreter(model, graph, names, self._observed, taps, open_interpreter)
        self._summarizer = OutputSummarizer()

    def rows(self, frames: NDArray[np.float32]) -> Iterator[StatRow]:
        """Yield the rows of consecutive frames (n, ...), without times."""
        tapped, entry = self._tapped, self._observed.index
        tapped.reopen()
        tapped.allocate()
        for frame in frames:
            stored = self._observed.encode(frame)
            tapped.interpreter.set_tensor(entry, stored)
            loaded = tapped.load(stored)
            tapped.interpreter.invoke()
            reduction = tapped.reduce() if loaded else None
            if reduction is None:
                raise ModelError("model", "the taps are no single frame each")
            answer = read_answer(self._answer, tapped.interpreter.get_tensor(self._answer.index))
            yield _row(reduction, answer, self._summarizer)


def _row(reduction: Reduction, answer: NDArray[Any], summarizer: OutputSummarizer) -> StatRow:
    """Row without times."""
    return StatRow(
        frame=0,
        t_ns=0,
        latency_ns=0,
        signals=reduction.signals,
        nonfinite=reduction.nonfinite,
        fingerprint=reduction.fingerprint,
        spatial=reduction.spatial,
        output=summarizer.summarize(answer),
        picture=reduction.picture,
    )
