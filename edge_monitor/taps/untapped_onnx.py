"""ONNX models as they are, without taps: what a tapped one is compared with (design section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.taps.onnx import find_observed_input, input_type, open_session
from edge_monitor.taps.onnx_graph import find_quantised, read_graph
from edge_monitor.taps.onnx_prefix import prefix


class UntappedOnnx:
    """Makes sessions of a model, whole or cut at a tensor, and runs frames through any session of it.

    Parameters
    ----------
    data : bytes
        The model.
    label : str
        What messages call it.
    options : mapping
        Keyword arguments of ``onnxruntime.InferenceSession``.

    Attributes
    ----------
    span : (float, float)
        Least and largest value of a seeded random frame.
    """

    span = 0.0, 1.0

    def __init__(self, data: bytes, label: str, options: Mapping[str, object]) -> None:
        self._data, self._options = data, options
        self._quantised = find_quantised(read_graph(data, label))

    def open(self, tap: str | None = None) -> Any:  # noqa: ANN401  # onnxruntime has no types
        """Session of the model, or of the model that ends with a tap.

        Raises
        ------
        ModelError
            The model cannot be cut there. What the runtime raises passes through.
        """
        if tap is None:
            return open_session(self._data, (), self._options)
        # What a probe reads of a quantised model are its integers.
        tensor = self._quantised[tap].tensor if tap in self._quantised else tap
        return open_session(prefix(self._data, tensor), (), self._options)

    def answers(self, session: Any, frames: NDArray[np.float32]) -> Iterator[list[NDArray[Any]]]:  # noqa: ANN401
        """Yield the answers of a session, or of a probe in its place, to frames (n, ...).

        Further inputs are zero.
        """
        feed = {arg.name: np.zeros(*input_type(arg)) for arg in session.get_inputs()}
        observed = find_observed_input(session)
        for frame in frames:
            yield session.run(None, feed | {observed: frame[np.newaxis].astype(feed[observed].dtype)})

    def values(self, answer: list[NDArray[Any]]) -> NDArray[Any]:
        """Tensor of a cut model's answer, planar as `TapSpec` has it."""
        return answer[0]

    def provider(self, session: Any) -> str:  # noqa: ANN401
        """First execution provider of a session; those behind it run what it cannot."""
        return str(session.get_providers()[0])
