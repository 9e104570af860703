"""The probe of TensorFlow Lite models: a drop-in for the ``Interpreter`` that watches while it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import EdgeMonitorError, ModelError, first_line
from edge_monitor.observer import Answer, Note, Observer, Setup
from edge_monitor.taps.litert import Open, TappedInterpreter, opener, run_frame
from edge_monitor.taps.model_file import TfliteRuntime
from edge_monitor.taps.reducer import Reduction
from edge_monitor.taps.tflite_file import read_model
from edge_monitor.taps.tflite_taps import find_candidates, suggest
from edge_monitor.taps.tflite_values import find_observed_input, read_answer

Result = TypeVar("Result")


class InterpreterProbe(Observer):
    """Drop-in for the ``Interpreter`` of ai-edge-litert and of tflite-runtime.

    Runs are observed, by `invoke` and by signature runners, while the observed input and the taps are one
    frame each. Any other run, and one that meets another under way, is as it would be without a probe and
    is counted in ``unobserved``. Everything else an interpreter offers is delegated to it; like it, the
    probe is to be used by one thread at a time.
    """

    def __init__(
        self,
        data: bytes,
        label: str,
        runtime: TfliteRuntime,
        options: Mapping[str, object],
        setup: Setup,
    ) -> None:
        self._interpreter: Any = None
        self._tapped: TappedInterpreter | None = None
        self._encoded_nonfinite = 0
        graph = read_model(data, label)
        self._graph = graph
        self._observed = find_observed_input(graph, label)
        super().__init__(
            runtime,
            tuple(graph.tensors[index].name for index in graph.inputs),
            self._observed.shape,
            setup,
        )
        names = setup.choose_taps(data, lambda: suggest(list(find_candidates(graph, label).values())))
        open_interpreter = opener(runtime, options)
        self._interpreter = _open_untapped(open_interpreter, data, label)
        try:
            self._attach(data, names, setup, open_interpreter)
        except EdgeMonitorError:
            raise
        except Exception as error:  # noqa: BLE001  # the model serves untapped, whatever failed
            self._detach(error)
        if self._tapped is None:
            self._interpreter = None  # the one that failed; see _attach: one is alive at a time
            # Golden frames are no past of the first real one.
            self._interpreter = _open_untapped(open_interpreter, data, label)

    def invoke(self) -> None:
        """Run the model as its interpreter does, and hand over a row when the run can be observed."""
        self._watch(self._interpreter.invoke)

    def feed(self, frame: NDArray[np.float32]) -> Answer:
        if len(self.input_names) != 1:
            raise ModelError("model", f"needs {', '.join(self.input_names)}; only one input can be fed")
        interpreter = self._interpreter
        interpreter.set_tensor(self._observed.index, self._observed.encode(frame[0]))
        if self._observed.dtype.kind != "f":  # integers cannot say of themselves that they were none
            self._encoded_nonfinite = frame.size - int(np.count_nonzero(np.isfinite(frame)))
        try:
            self.invoke()
        finally:
            self._encoded_nonfinite = 0
        return [interpreter.get_tensor(index) for index in self._graph.outputs]

    def tap_values(self) -> list[NDArray[Any]]:
        return self._tapped.values() if self.attached and self._tapped is not None else []

    def allocate_tensors(self) -> None:
        """Allocate as the interpreter does."""
        with self._reallocating():
            self._interpreter.allocate_tensors()

    def resize_tensor_input(self, *args: object, **kwargs: object) -> None:
        """Resize an input as the interpreter does; what is no single frame is served unobserved."""
        with self._reallocating():
            self._interpreter.resize_tensor_input(*args, **kwargs)

    def get_output_details(self) -> list[dict[str, Any]]:
        """Return the model's own outputs, without the taps."""
        return list(self._interpreter.get_output_details()[: len(self._graph.outputs)])

    def get_signature_runner(self, signature_key: str | None = None) -> SignatureRunner:
        """Return a runner of the signature whose calls are observed."""
        runner = self._interpreter.get_signature_runner(signature_key)
        signatures = [s for s in self._graph.signatures if signature_key in (None, s.key)]
        takes = next(
            (name for name, index in signatures[0].inputs.items() if index == self._observed.index), None
        )
        return SignatureRunner(runner, partial(self._call, runner, takes))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # as the interpreter's own
        if (
            name.startswith("__") or name == "_interpreter"
        ):  # not there yet: copy.copy asks before anything is
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._interpreter, name)

    def _attach(self, data: bytes, names: Sequence[str], setup: Setup, open_interpreter: Open) -> None:
        """Build the tapped interpreter, and attach when its answers are the model's own.

        One interpreter is alive at a time: a delegate among the options may serve no two.
        """
        golden = setup.golden
        frames = self._check_frames(golden, self._observed.span())
        if frames is None:
            return
        feeds = [self._observed.encode(frame) for frame in frames]
        self._interpreter.allocate_tensors()
        expected = [self._run(feed) for feed in feeds]
        self._interpreter = None
        tapped = TappedInterpreter(data, self._graph, names, self._observed, setup.specs, open_interpreter)
        tapped.allocate()
        self._interpreter = tapped.interpreter

        def observe(feed: NDArray[Any]) -> tuple[Answer, Reduction]:
            loaded, answer, reduction = tapped.load(feed), self._run(feed), tapped.reduce()
            if not loaded or reduction is None:
                raise ModelError("model", "the taps are no single frame each")
            return answer, reduction

        vetted = self._vet(feeds, expected, observe, golden)
        self._interpreter = None
        if vetted is not None:
            tapped.reopen()
            self._interpreter, self._tapped = tapped.interpreter, tapped
            self.readings = tapped.readings
            self._start(tapped.specs, vetted, golden)

    def _run(self, feed: NDArray[Any]) -> Answer:
        """Answer to a frame as it is stored; further inputs are zero."""
        return run_frame(self._interpreter, self._observed.index, feed, self._graph.outputs)

    def _call(self, runner: Callable[..., Result], takes: str | None, /, **inputs: object) -> Result:
        """Call a signature, which sets its inputs itself and may reallocate."""
        frame = None if takes is None else inputs.get(takes)

        def run() -> Result:
            with self._reallocating():
                return runner(**inputs)

        return self._watch(run, () if frame is None else frame)  # () is no frame

    def _watch(self, run: Callable[[], Result], frame: object = None) -> Result:
        """Run between taking the input and reading the taps."""
        note = self._take_note()
        if not self._lock.acquire(blocking=False):
            self._count_unobserved()
            return run()
        rows = self._rows
        try:
            loading_ns = time.monotonic_ns()
            loaded = self._load(frame)
            started_ns = time.monotonic_ns()
            result = run()
            ended_ns = time.monotonic_ns()
            if loaded:
                self._report(loading_ns, started_ns, ended_ns, note)
            return result
        finally:
            self._release(rows)

    def _load(self, frame: object) -> bool:
        """Take the input, from its tensor or from ``frame``; False when the run cannot be observed."""
        if not self.attached or self._tapped is None:
            return False
        try:
            return self._tapped.load(frame)
        except Exception as error:  # noqa: BLE001  # ours alone: the model has not even run
            self._detach(error)
            return False

    def _report(self, loading_ns: int, started_ns: int, ended_ns: int, note: Note) -> None:
        """Hand over the row of the run that just ended, if there is one."""
        assert self._tapped is not None  # or nothing was loaded
        try:
            self._govern(self._tapped, started_ns - loading_ns)
            reduction = self._tapped.reduce()
            if reduction is not None:
                reduction.nonfinite[0] += self._encoded_nonfinite
                output = self._graph.outputs[0]
                answer = read_answer(self._graph.tensors[output], self._interpreter.get_tensor(output))
                self._hand_over(reduction, answer, started_ns, ended_ns, note)
        except Exception as error:  # noqa: BLE001  # ours alone: the answer is in its tensor already
            self._detach(error)

    def _reallocating(self) -> AbstractContextManager[None]:
        return nullcontext() if self._tapped is None else self._tapped.reallocating()


def _open_untapped(open_interpreter: Open, data: bytes, label: str) -> Any:  # noqa: ANN401  # see Open
    try:
        return open_interpreter(data)
    except (TypeError, EdgeMonitorError):  # the caller's options; what is not installed
        raise
    except Exception as error:  # the runtimes' errors have no base of their own
        raise ModelError(label, f"cannot be run ({first_line(error)})") from error


class SignatureRunner:
    """Drop-in for a signature's runner, made by `InterpreterProbe.get_signature_runner`."""

    def __init__(self, runner: Any, call: Callable[..., dict[str, Any]]) -> None:  # noqa: ANN401
        self._runner, self._call = runner, call

    def __call__(self, /, **inputs: object) -> dict[str, Any]:
        return self._call(**inputs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # as the runner's own
        if name.startswith("__") or name == "_runner":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._runner, name)
