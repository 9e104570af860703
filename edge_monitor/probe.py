"""What the perception process uses: drop-ins for a model's session or interpreter (design section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_monitor.errors import about
from edge_monitor.observer import Observer, Setup
from edge_monitor.region_map import RegionMap
from edge_monitor.taps.model_file import TfliteRuntime, installed_runtime, is_tflite, load_model
from edge_monitor.types import ProbeEvent, StatRow

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edge_monitor.interpreter_probe import InterpreterProbe
    from edge_monitor.session_probe import SessionProbe

# Each way imports its own runtime alone: they take a third of a second and some 40 MB each
# (test_interpreter_probe.py::test_no_runtime_is_imported_that_is_not_asked_for).
# ruff: noqa: PLC0415


class Probe:
    """Makes drop-ins that serve a model and watch it.

    All ways take, besides the model:

    region_map : RegionMap, optional
        Names the taps, and holds the golden frames for certificate and self-test.
    taps : sequence of str, optional
        Taps when there is no map; default: the suggested set (``edge-monitor taps MODEL``).
    on_row, on_event : callable
        Take the row of every observed frame, and what happens to the probe itself. They are called in the
        thread that runs the model, before it returns.

    and raise `ModelError` when the model cannot be read, or is of a kind that cannot be observed, or a tap
    does not exist, and `MapError` when the map belongs to another model.
    """

    @staticmethod
    def onnx(
        model: str | Path | bytes,
        *,
        region_map: RegionMap | None = None,
        taps: Sequence[str] | None = None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None = None,
        **session_options: object,
    ) -> SessionProbe:
        """Build the session of an ONNX model and observe it.

        ``session_options`` are what ``onnxruntime.InferenceSession`` takes: ``sess_options``,
        ``providers``, ...
        """
        from edge_monitor.session_probe import SessionProbe

        data, label = load_model(model)
        with about(label):
            return SessionProbe.build(data, label, session_options, Setup(region_map, taps, on_row, on_event))

    @staticmethod
    def wrap(
        session: InferenceSession,
        *,
        model: str | Path | bytes,
        region_map: RegionMap | None = None,
        taps: Sequence[str] | None = None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None = None,
        **session_options: object,
    ) -> SessionProbe:
        """Observe a session that exists already; it stays as it is and serves whenever the probe does not.

        ``model`` is what the session was made from; the tapped session is a second one with the same
        options (unless given here), and holds the weights again.
        """
        from edge_monitor.session_probe import SessionProbe

        data, label = load_model(model)
        with about(label):
            setup = Setup(region_map, taps, on_row, on_event)
            return SessionProbe.around(session, data, label, session_options, setup)

    @staticmethod
    def litert(
        model: str | Path | bytes,
        runtime: TfliteRuntime = "litert",
        *,
        region_map: RegionMap | None = None,
        taps: Sequence[str] | None = None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None = None,
        **interpreter_options: object,
    ) -> InterpreterProbe:
        """Build the interpreter of a TensorFlow Lite model and observe it.

        ``runtime`` is ``litert`` (ai-edge-litert) or ``tflite`` (tflite-runtime), ``interpreter_options``
        are what its ``Interpreter`` takes: ``num_threads``, ``experimental_delegates``, ...

        Raises
        ------
        InputError
            The runtime's package is not installed, or does not work with this NumPy.
        """
        from edge_monitor.interpreter_probe import InterpreterProbe

        data, label = load_model(model)
        with about(label):
            setup = Setup(region_map, taps, on_row, on_event)
            return InterpreterProbe(data, label, runtime, interpreter_options, setup)

    @staticmethod
    def open(
        model: str | Path | bytes,
        *,
        threads: int = 1,
        region_map: RegionMap | None = None,
        taps: Sequence[str] | None = None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None = None,
    ) -> Observer:
        """Observe a model of our own on the CPU, on the runtime for its file, ready for `Observer.feed`."""
        data, label = load_model(model)
        setup = Setup(region_map, taps, on_row, on_event)
        if is_tflite(data, label):
            from edge_monitor.interpreter_probe import InterpreterProbe

            probe = InterpreterProbe(data, label, installed_runtime(), {"num_threads": threads}, setup)
            probe.allocate_tensors()
            return probe
        from edge_monitor.session_probe import SessionProbe
        from edge_monitor.taps.onnx import CPU, quiet_options

        options = {"sess_options": quiet_options(threads), "providers": CPU}
        return SessionProbe.build(data, label, options, setup)
