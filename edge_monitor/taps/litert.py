"""TensorFlow Lite models under ai-edge-litert or tflite-runtime: interpreters that hand taps over.

The taps are further outputs of the model (`edge_monitor.taps.tflite_edit`), so that their memory holds
them until the next run. It is read where it lies: asking the runtime for an array at each frame would cost
more than reading it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, ModelError
from edge_monitor.taps.model_file import TfliteRuntime
from edge_monitor.taps.reducer import Reduction, TapReducer, input_spec, match_specs, tap_spec
from edge_monitor.taps.tap_table import Layout
from edge_monitor.taps.tflite_edit import with_outputs
from edge_monitor.taps.tflite_file import Graph
from edge_monitor.taps.tflite_taps import choose
from edge_monitor.taps.tflite_values import StoredTensor
from edge_monitor.types import BoolArray, TapSpec

MODULES = {"litert": "ai_edge_litert.interpreter", "tflite": "tflite_runtime.interpreter"}

Open = Callable[[bytes], Any]
"""Makes an ``Interpreter`` of a model; neither package has types."""


def opener(runtime: TfliteRuntime, options: Mapping[str, object]) -> Open:
    """Return what makes interpreters of one package with the caller's options.

    Raises
    ------
    InputError
        The package is not installed, or does not work with this NumPy.
    """
    if runtime not in MODULES:
        raise InputError("runtime", f"is {runtime!r}, must be one of {', '.join(MODULES)}")
    extra = f"pip install '.[{runtime}]'"
    try:
        interpreter_class = import_module(MODULES[runtime]).Interpreter
    except ImportError as error:
        raise InputError(f"runtime {runtime}", f"{error}; install it: {extra}") from error
    if runtime == "tflite" and int(np.__version__.split(".")[0]) >= 2:
        # It can be imported; making an interpreter fails behind fifty lines that NumPy prints.
        raise InputError(
            "tflite-runtime", f"does not work with NumPy {np.__version__}: pip install 'numpy<2'"
        )
    return lambda data: interpreter_class(model_content=data, **options)


def run_frame(
    interpreter: Any,  # noqa: ANN401  # see Open
    observed: int,
    stored: NDArray[Any],
    outputs: Sequence[int],
) -> list[NDArray[Any]]:
    """Run a frame as the observed input stores it, further inputs zero, and return copies of outputs."""
    for detail in interpreter.get_input_details():
        index = detail["index"]
        feed = stored if index == observed else np.zeros(detail["shape"], detail["dtype"])
        interpreter.set_tensor(index, feed)
    interpreter.invoke()
    return [interpreter.get_tensor(index) for index in outputs]


class TappedInterpreter:
    """Interpreter of a model with taps, and the memory in which it leaves them.

    Parameters
    ----------
    data : bytes
        The model without taps.
    graph : Graph
        What `read_model` says of it.
    names : sequence of str
        Tensors to tap.
    observed : StoredTensor
        The input that is tap 0.
    specs : tuple of TapSpec or None
        Specifications of input and taps when a map gives them, else they are made here.
    open_interpreter : callable
        See `opener`.

    Raises
    ------
    ModelError
        A tap does not exist or cannot be read, or the input's shape is not fixed.
    MapError
        ``specs`` do not fit the model.
    """

    def __init__(
        self,
        data: bytes,
        graph: Graph,
        names: Sequence[str],
        observed: StoredTensor,
        specs: tuple[TapSpec, ...] | None,
        open_interpreter: Open,
    ) -> None:
        taps = [StoredTensor(candidate.tensor, candidate.name) for candidate in choose(graph, names)]
        natural = [tap_spec(tap.name, tap.shape) for tap in taps]
        self.specs = match_specs((input_spec(observed.name, observed.shape), *natural), specs)
        self._open = open_interpreter
        self._model = with_outputs(data, [tap.index for tap in taps])
        self.interpreter = open_interpreter(self._model)
        for detail in self.interpreter.get_input_details():
            sizes = detail["shape_signature"][1:]
            if detail["index"] == observed.index and (sizes < 0).any():
                raise ModelError(
                    f"input {observed.name}", f"shape {sizes} is not fixed; export it with fixed sizes"
                )
        self._observed, self._taps, self._outputs = observed, taps, graph.outputs
        self.readings = tuple("channels last" if tap.layout else "copied" for tap in taps)
        # What has a scale of each channel has no layout: its values are written here, at every frame.
        self._values = [
            None if tap.layout else np.zeros(spec.shape, np.float32)
            for tap, spec in zip(taps, self.specs[1:], strict=True)
        ]
        self._reducer = TapReducer(self.specs, tuple(tap.layout or Layout() for tap in taps))
        self._moving = False
        self._reading = Lock()
        self._input: NDArray[Any] | None = None
        self._scaled: list[tuple[StoredTensor, NDArray[Any], NDArray[np.float32]]] | None = None

    def allocate(self) -> None:
        """Allocate for the first time, and see whether runs will move what is allocated.

        Behind an operator whose sizes depend on values nothing has memory before it has run, and then even
        the input may lie elsewhere (test_litert.py::test_memory_that_moves_when_the_model_runs).
        """
        self.interpreter.allocate_tensors()
        results = (*(tap.index for tap in self._taps), *self._outputs)
        self._moving = any(self._view(index) is None for index in results)

    @contextmanager
    def reallocating(self) -> Iterator[None]:
        """Forget where the tensors lie, and let nobody read them, while something moves them."""
        with self._reading:
            self._forget()
            yield

    def load(self, frame: object = None) -> bool:
        """Take the input, before a run, from its tensor or from ``frame``; False when it is not one frame."""
        with self._reading:
            return self._load(frame)

    def _load(self, frame: object) -> bool:
        if frame is None:
            if self._moving or self._input is None:
                self._find()
            planar = self._input
        elif isinstance(frame, np.ndarray) and self._observed.fits(frame):
            planar = self._observed.planar(frame)
        else:
            planar = None
        if planar is None:
            return False
        self._reducer.load_input(planar)
        self._observed.decode(self._reducer.input)
        return True

    def choose(self, scan: BoolArray) -> None:
        """Choose the taps whose voxels are read, see `TapReducer.choose`."""
        self._reducer.choose(scan)

    def reduce(self) -> Reduction | None:
        """Reduce the taps of the last run; None when they are not one frame each."""
        with self._reading:
            return self._reduce()

    def _reduce(self) -> Reduction | None:
        if self._moving or self._scaled is None:
            self._find()
        if self._scaled is None:
            return None
        for tap, stored, values in self._scaled:
            tap.read(stored, values)
        return self._reducer.reduce()

    def values(self) -> list[NDArray[Any]]:
        """Copy the taps of the last run as they are stored: (C, H, W), or (N, 1, 1) for a dense layer."""
        views = [self._view(tap.index) for tap in self._taps]
        return [
            tap.planar(view).copy() for tap, view in zip(self._taps, views, strict=True) if view is not None
        ]

    def reopen(self) -> None:
        """Begin anew, with an interpreter that has never run and no picture so far."""
        self._forget()
        self._reducer.restart()
        self.interpreter = None
        self.interpreter = self._open(self._model)

    def _forget(self) -> None:
        self._input = self._scaled = None

    def _find(self) -> None:
        """Find out where the tensors lie; taps stay unknown where they are not one frame each."""
        self._forget()
        frame = self._view(self._observed.index)
        if frame is None or not self._observed.fits(frame):
            return
        self._input = self._observed.planar(frame)
        addresses, scaled = [], []
        for tap, values in zip(self._taps, self._values, strict=True):
            stored = self._view(tap.index)
            if stored is None or not tap.fits(stored):
                return
            if values is not None:
                scaled.append((tap, tap.planar(stored), values))
            addresses.append((stored if values is None else values).ctypes.data)
        self._reducer.place(addresses)
        self._scaled = scaled

    def _view(self, index: int) -> NDArray[Any] | None:
        """Array over a tensor's memory, None when it has none.

        The runtime refuses to run while one of its own arrays is alive. This one does not hold the memory,
        and must not be used after it has moved.
        """
        try:
            array = np.asarray(self.interpreter.tensor(index)())  # a lone number comes as a scalar
        except ValueError:
            return None
        memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
        return np.ndarray(array.shape, array.dtype, memoryview(memory))
