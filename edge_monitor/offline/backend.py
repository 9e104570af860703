"""What work on models offline asks of a runtime, and which runtime's tools a model file gets.

All differences between ONNX and TensorFlow Lite lie behind this table: what reads a `Backend` works on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_monitor.offline.surgery import CutModel, run_whole
from edge_monitor.offline.tflite_model import run_whole as run_whole_tflite
from edge_monitor.offline.tflite_surgery import CutTfliteModel
from edge_monitor.taps.model_file import is_tflite


class Halves(Protocol):
    """A model in two halves, cut at one tap; `after` may be called from several threads."""

    def before(self, frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Run the first half.

        Parameters
        ----------
        frames : (n, ...) float32
            Inputs of the model.

        Returns
        -------
        activations : (n, C, H, W) or (n, N) float32
            The tap.
        carried : dict of (n, ...) arrays
            What passes the tap by.

        Raises
        ------
        InputError
            No frames, or frames of another shape.
        """

    def after(
        self, activations: NDArray[np.float32], carried: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run the second half on changed activations, and return the model's outputs, (n, ...) each."""


class Backend(NamedTuple):
    """Tools of one runtime.

    ``run``: (model, label, frames (n, ...)) -> names of the outputs, and the whole model's answers to each
    frame. ``cut``: (model, tap) -> its halves. All raise `ModelError` for what the runtime refuses.
    """

    run: Callable[[bytes, str, NDArray[np.float32]], tuple[list[str], list[list[NDArray[Any]]]]]
    cut: Callable[[bytes, str], Halves]


_ONNX = Backend(run_whole, CutModel)
_TFLITE = Backend(run_whole_tflite, CutTfliteModel)


def backend_of(data: bytes) -> Backend:
    """Tools for a model, by its content."""
    return _TFLITE if is_tflite(data) else _ONNX
