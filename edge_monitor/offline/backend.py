"""What work on models offline asks of a runtime, and which runtime's tools a model file gets.

All differences between ONNX and TensorFlow Lite lie behind this table: what reads a `Backend` works on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_monitor.offline.model_edits import EditedOnnxModel, Layer
from edge_monitor.offline.model_graph import run_whole
from edge_monitor.offline.surgery import CutModel
from edge_monitor.offline.tapped_model import TappedModel, TappedTfliteModel
from edge_monitor.offline.tflite_edits import EditedTfliteModel
from edge_monitor.offline.tflite_model import run_whole as run_whole_tflite
from edge_monitor.offline.tflite_surgery import CutTfliteModel
from edge_monitor.offline.tflite_traceable import transcribe
from edge_monitor.offline.tracts import Traceable
from edge_monitor.taps.model_file import is_tflite
from edge_monitor.types import StatRow, TapSpec


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


class Editable(Protocol):
    """A model that can be altered; constants are known by name and read as they are stored."""

    def to_bytes(self) -> bytes:
        """Serialize the model as it is now."""

    def layers(self) -> Sequence[Layer]:
        """Layers with weights of their own, in order of execution."""

    def weights(self) -> Mapping[str, NDArray[Any]]:
        """Matrices of weights; they must not be written to."""

    def read(self, name: str) -> NDArray[Any]:
        """Return a constant; it must not be written to."""

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other numbers, of the same type and shape."""

    def scale(self, layer: Layer, factor: float) -> None:
        """Multiply a layer's weights; of integers their scale."""

    def taps(self) -> Sequence[str]:
        """Names of the activations that can be made faulty, in order of execution."""

    def tap_values(self, tap: str, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (n, C, H, W) or (n, N) of a tap on frames (n, ...)."""

    def alter(
        self,
        tap: str,
        gain: NDArray[np.float32],
        bias: NDArray[np.float32],
        ceiling: float | None = None,
    ) -> None:
        """Let a tap be its value x ``gain`` + ``bias`` (C), at most ``ceiling``; it can still be tapped."""


class Tapped(Protocol):
    """A model with taps, without the probe's checks at start."""

    def rows(self, frames: NDArray[np.float32]) -> Iterator[StatRow]:
        """Yield the rows of consecutive frames (n, ...), without times."""


class Backend(NamedTuple):
    """Tools of one runtime.

    ``run``: (model, label, frames (n, ...)) -> names of the outputs, and the whole model's answers to each
    frame. ``cut``: (model, tap) -> its halves. ``edit``: model -> a copy that can be altered. ``tap``:
    (model, taps, any frame) -> the model with taps. ``traceable``: (model, taps, any frame) -> the network
    in the form in which tracts are traced. All raise `ModelError` for what the runtime refuses.
    """

    run: Callable[[bytes, str, NDArray[np.float32]], tuple[list[str], list[list[NDArray[Any]]]]]
    cut: Callable[[bytes, str], Halves]
    edit: Callable[[bytes], Editable]
    tap: Callable[[bytes, tuple[TapSpec, ...], NDArray[np.float32]], Tapped]
    traceable: Callable[[bytes, tuple[TapSpec, ...], NDArray[np.float32]], Traceable]


_ONNX = Backend(
    run_whole,
    CutModel,
    EditedOnnxModel,
    TappedModel,
    lambda data, taps, _: Traceable(data, len(taps), "", as_written=False),
)
_TFLITE = Backend(run_whole_tflite, CutTfliteModel, EditedTfliteModel, TappedTfliteModel, transcribe)


def backend_of(data: bytes) -> Backend:
    """Tools for a model, by its content."""
    return _TFLITE if is_tflite(data) else _ONNX
