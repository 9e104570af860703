"""TensorFlow Lite models as they are, without taps: what a tapped one is compared with (design section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.taps.litert import opener, run_frame
from edge_monitor.taps.model_file import TfliteRuntime
from edge_monitor.taps.tflite_edit import prefix
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import choose
from edge_monitor.taps.tflite_values import find_observed_input


class UntappedTflite:
    """Makes interpreters of a model, whole or cut at a tensor, and runs frames through any of them.

    Parameters
    ----------
    data : bytes
        The model.
    label : str
        What messages call it.
    runtime : str
        ``litert`` or ``tflite``.
    options : mapping
        Keyword arguments of the ``Interpreter``.

    Attributes
    ----------
    span : (float, float)
        Least and largest value of a seeded random frame.
    """

    def __init__(
        self, data: bytes, label: str, runtime: TfliteRuntime, options: Mapping[str, object]
    ) -> None:
        self._data, self._delegates = data, options.get("experimental_delegates")
        self._graph = read_model(data, label)
        self._observed = find_observed_input(self._graph, label)
        self._open = opener(runtime, options)
        self.span = self._observed.span()

    def open(self, tap: str | None = None) -> Any:  # noqa: ANN401  # neither package has types
        """Interpreter of the model, or of the model that ends with a tap.

        Raises
        ------
        ModelError
            The model cannot be cut there, for it keeps state. What the runtime raises passes through.
        """
        if tap is None:
            return self._open(self._data)
        (candidate,) = choose(self._graph, [tap])
        return self._open(prefix(self._data, [candidate.tensor.index]))

    def answers(self, interpreter: Any, frames: NDArray[np.float32]) -> Iterator[list[NDArray[Any]]]:  # noqa: ANN401
        """Yield the answers of an interpreter, or of a probe in its place, to frames (n, ...).

        Further inputs are zero.
        """
        interpreter.allocate_tensors()
        outputs = [detail["index"] for detail in interpreter.get_output_details()]
        for frame in frames:
            yield run_frame(interpreter, self._observed.index, self._observed.encode(frame), outputs)

    def values(self, answer: list[NDArray[Any]]) -> NDArray[Any]:
        """Tensor of a cut model's answer as it is stored, planar as `TapSpec` has it."""
        return np.moveaxis(answer[0], -1, 1)

    def provider(self, interpreter: Any) -> str:  # noqa: ANN401
        """Say what an interpreter hands operators over to."""
        interpreter.allocate_tensors()
        # Only a private method tells; the public ones list the model's own operators.
        details = interpreter._get_ops_details()  # noqa: SLF001
        if all(detail["op_name"] != "DELEGATE" for detail in details):
            return "no delegate"
        return "the caller's delegate" if self._delegates else "XNNPACK"
