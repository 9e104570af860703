"""The models that tools/soak_probe serves, and what is right for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import onnxruntime
import tflite_models
from ai_edge_litert.interpreter import Interpreter

from edge_monitor.observer import Observer
from edge_monitor.probe import Probe
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.types import ProbeEvent, StatRow

N_FRAMES = 8
HOW = {"sess_options": quiet_options(), "providers": ["CPUExecutionProvider"]}
LITERT: dict[str, Any] = {"num_threads": 1}

Answer = list[np.ndarray]


class Kind:
    """A model, how it is run, and what is right for each of its frames."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.plain = self.open_plain()
        self.frames = self.make_frames(np.random.default_rng(0))
        self.answers = [self.run(self.plain, frame) for frame in self.frames]
        rows: list[StatRow] = []
        probe = self.open(rows.append)
        for frame, answer in zip(self.frames, self.answers, strict=True):
            same(self.run(probe, frame), answer)
        self.signals = [row.signals for row in rows]

    def open_plain(self) -> Any:  # noqa: ANN401 - neither runtime has types
        raise NotImplementedError

    def open(self, on_row: Callable[[StatRow], object]) -> Observer:
        raise NotImplementedError

    def make_frames(self, rng: np.random.Generator) -> list[np.ndarray]:
        raise NotImplementedError

    def run(self, model: Any, frame: np.ndarray) -> Answer:  # noqa: ANN401
        raise NotImplementedError

    def allocate(self, model: Any, batch: int) -> None:  # noqa: ANN401
        """Let the runtime find new memory."""


class Onnx(Kind):
    def open_plain(self) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self.data, **HOW)

    def open(self, on_row: Callable[[StatRow], object]) -> Observer:
        return Probe.onnx(self.data, on_row=on_row, on_event=refuse, **HOW)

    def make_frames(self, rng: np.random.Generator) -> list[np.ndarray]:
        shape = [n if isinstance(n, int) else 1 for n in self.plain.get_inputs()[0].shape]
        return [rng.standard_normal(shape, np.float32) for _ in range(N_FRAMES)]

    def run(self, model: Any, frame: np.ndarray) -> Answer:  # noqa: ANN401
        return model.run(None, {"input": frame})


class Litert(Kind):
    def open_plain(self) -> Interpreter:
        interpreter = Interpreter(model_content=self.data, **LITERT)
        interpreter.allocate_tensors()
        return interpreter

    def open(self, on_row: Callable[[StatRow], object]) -> Observer:
        probe = Probe.litert(self.data, on_row=on_row, on_event=refuse, **LITERT)
        probe.allocate_tensors()
        return probe

    def make_frames(self, rng: np.random.Generator) -> list[np.ndarray]:
        detail = self.plain.get_input_details()[0]
        low, high = (-128, 128) if detail["dtype"] == np.int8 else (-2, 2)
        return [rng.uniform(low, high, detail["shape"]).astype(detail["dtype"]) for _ in range(N_FRAMES)]

    def run(self, model: Any, frame: np.ndarray) -> Answer:  # noqa: ANN401
        model.set_tensor(model.get_input_details()[0]["index"], frame)
        model.invoke()
        return [model.get_tensor(detail["index"]) for detail in model.get_output_details()]

    def allocate(self, model: Any, batch: int) -> None:  # noqa: ANN401
        detail = model.get_input_details()[0]
        model.resize_tensor_input(detail["index"], (batch, *detail["shape"][1:]))
        model.allocate_tensors()


KINDS: dict[str, Callable[[], list[Kind]]] = {
    "onnx": lambda: [Onnx(models.cnn()), Onnx(models.residual_cnn()), Onnx(models.mobilenet())],
    "litert": lambda: [Litert(tflite_models.residual_cnn(dtype=dtype)) for dtype in ("float32", "int8")],
}


def same(answer: Answer, expected: Answer) -> None:
    for one, other in zip(answer, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def refuse(event: ProbeEvent) -> None:
    raise AssertionError(event)
