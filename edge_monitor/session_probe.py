"""The probe of ONNX models: a drop-in for ONNX Runtime's session that watches while it serves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import EdgeMonitorError, ModelError, first_line
from edge_monitor.observer import Answer, Note, Observer, Setup
from edge_monitor.taps.onnx import (
    DTYPES,
    find_observed_input,
    input_type,
    list_taps,
    open_session,
)
from edge_monitor.taps.onnx_graph import read_graph
from edge_monitor.taps.onnx_raw import Feed
from edge_monitor.taps.onnx_session import TappedSession
from edge_monitor.taps.reducer import Reduction

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class SessionProbe(Observer):
    """Drop-in for an ``onnxruntime.InferenceSession``.

    A call of `run` is observed when it brings one frame: batch 1, the model's own input types, no run
    options. Any other call, and one that meets another thread's call under way, goes straight to the
    session and is counted in ``unobserved``. So are runs in the background, on the runtime's own values
    and on what the caller bound. Everything else a session offers is delegated to it.

    Of the execution providers the CPU's and OpenVINO's are tested; CUDA and TensorRT are not verified. Only
    on the CPU are taps read in place.
    """

    def __init__(
        self,
        session: InferenceSession,
        data: bytes,
        session_options: Mapping[str, object],
        setup: Setup,
        *,
        owned: bool,
    ) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._places = {name: place for place, name in enumerate(self._outputs)}
        self._inputs = {arg.name: input_type(arg) for arg in session.get_inputs()}
        self._hidden: set[str] = set()
        self._observed = find_observed_input(session)
        frame_shape = self._inputs[self._observed][0][1:]
        super().__init__("onnx", tuple(self._inputs), frame_shape, setup)
        for output in session.get_outputs():
            if output.type not in DTYPES:
                raise ModelError(f"output {output.name}", f"is {output.type}, only numeric tensors will do")
        names = setup.choose_taps(data, lambda: [tap.name for tap in list_taps(data) if tap.default])
        try:
            self._attach(data, names, setup, session_options)
        except EdgeMonitorError:
            raise
        except Exception as error:  # noqa: BLE001  # the model serves untapped, whatever failed
            self._detach(error)
        if owned and self.attached:
            # One session is enough: a second one would hold the weights twice.
            self._session = self._tapped.session
            self._hidden = {output.name for output in self._session.get_outputs()[len(self._outputs) :]}

    @classmethod
    def build(
        cls, data: bytes, label: str, session_options: Mapping[str, object], setup: Setup
    ) -> SessionProbe:
        """See `edge_monitor.probe.Probe.onnx`."""
        read_graph(data, label)
        try:
            session = open_session(data, (), session_options)
        except TypeError:  # the caller's session options
            raise
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise ModelError(label, f"cannot be run ({first_line(error)})") from error
        return cls(session, data, session_options, setup, owned=True)

    @classmethod
    def around(
        cls,
        session: InferenceSession,
        data: bytes,
        label: str,
        session_options: Mapping[str, object],
        setup: Setup,
    ) -> SessionProbe:
        """See `edge_monitor.probe.Probe.wrap`."""
        graph = read_graph(data, label)
        names = [output.name for output in session.get_outputs()]
        if names != list(graph.outputs):
            raise ModelError(label, f"has outputs {list(graph.outputs)}, the session has {names}")
        providers = session.get_provider_options()
        same = {
            "sess_options": session.get_session_options(),
            "providers": [(name, providers[name]) for name in session.get_providers()],
        }
        return cls(session, data, {**same, **session_options}, setup, owned=False)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: object = None,
    ) -> list[Any]:
        """Run the model as its session does, and hand over a row when the call can be observed."""
        note = self._take_note()
        failure: Exception | None = None
        if self._lock.acquire(blocking=False):
            rows = self._rows
            try:
                places = self._find_places(output_names, input_feed, run_options)
                if places is not None:
                    outputs = self._observe(input_feed, note)
                    return [outputs[place] for place in places]
            except Exception as error:  # noqa: BLE001  # the caller's fault or ours: the plain run tells
                failure = error
            finally:
                self._release(rows)
        else:
            self._count_unobserved()
        answer: list[Any] = self._session.run(self._names(output_names), input_feed, run_options)
        if failure is not None:
            self._detach(failure)
        return answer

    def run_async(self, output_names: Sequence[str] | None, *args: object, **kwargs: object) -> None:
        """Run in the background, unobserved."""
        self._pass_by()
        self._session.run_async(self._names(output_names), *args, **kwargs)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, *args: object, **kwargs: object
    ) -> list[Any]:
        """Run on the runtime's own values, unobserved."""
        self._pass_by()
        answer: list[Any] = self._session.run_with_ort_values(self._names(output_names), *args, **kwargs)
        return answer

    def run_with_iobinding(self, iobinding: object, run_options: object = None) -> None:
        """Run on what the caller bound, unobserved."""
        self._pass_by()
        self._session.run_with_iobinding(iobinding, run_options)

    def run_with_ortvaluevector(self, *args: object, **kwargs: object) -> None:
        """Run on the runtime's own vectors of values, unobserved."""
        self._pass_by()
        self._session.run_with_ortvaluevector(*args, **kwargs)

    def get_outputs(self) -> list[Any]:
        """Return the model's own outputs, without the taps."""
        return list(self._session.get_outputs()[: len(self._outputs)])

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # as the session's own
        if name.startswith("__") or name == "_session":  # not there yet: copy.copy asks before anything is
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._session, name)

    def feed(self, frame: NDArray[np.float32]) -> list[NDArray[Any]]:
        return self.run(None, {self._observed: frame.astype(self._inputs[self._observed][1], copy=False)})

    def tap_values(self) -> list[NDArray[Any]]:
        return self._tapped.values() if self.attached else []

    def _names(self, output_names: Sequence[str] | None) -> Sequence[str]:
        """Name the outputs to ask the session for: the model's own by default, and never a tap."""
        if not output_names:
            return self._outputs
        if not isinstance(output_names, (list, tuple)):
            return output_names
        # A tap has to be as unknown as it is to the untapped session. The NUL makes it so, and the
        # runtime's message, a C string, ends before it.
        return [f"{name}\0" if name in self._hidden else name for name in output_names]

    def _find_places(
        self, output_names: Sequence[str] | None, feed: Mapping[str, Any], run_options: object
    ) -> Sequence[int] | None:
        """Places of the wanted outputs, None when the call cannot be observed."""
        try:
            if not self.attached or run_options is not None or feed.keys() != self._inputs.keys():
                return None
            for name, (shape, dtype) in self._inputs.items():
                array = feed[name]
                if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                    return None
            return (
                [self._places[name] for name in output_names] if output_names else range(len(self._outputs))
            )
        except Exception:  # noqa: BLE001  # an unusual call: the session itself says what is wrong with it
            return None

    def _observe(self, feed: Mapping[str, NDArray[Any]], note: Note) -> list[NDArray[Any]]:
        """Run with taps and hand over the row; whatever it raises, the caller has no answer yet."""
        loading_ns = time.monotonic_ns()
        self._tapped.load(feed[self._observed])
        started_ns = time.monotonic_ns()
        outputs = self._tapped.run(feed)
        ended_ns = time.monotonic_ns()
        try:
            self._govern(self._tapped, started_ns - loading_ns)
            reduction = self._tapped.reduce()
            self._hand_over(reduction, outputs[0], started_ns, ended_ns, note)
        except Exception as error:  # noqa: BLE001  # ours alone: the answer is in hand already
            self._detach(error)
        return outputs

    def _attach(
        self,
        data: bytes,
        names: Sequence[str],
        setup: Setup,
        session_options: Mapping[str, object],
    ) -> None:
        """Build the tapped session, and attach when its answers are the model's own."""
        golden = setup.golden
        frames = self._check_frames(golden)
        if frames is None:
            return
        zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self._inputs.items()}
        dtype = self._inputs[self._observed][1]
        feeds = [zeros | {self._observed: frame[np.newaxis].astype(dtype)} for frame in frames]
        tapped = TappedSession(data, names, feeds, self._observed, setup.specs, session_options)
        self._require_providers(tapped, session_options)
        expected = [self._session.run(None, feed) for feed in feeds]

        def observe(feed: Feed) -> tuple[Answer, Reduction]:
            tapped.load(feed[self._observed])
            return tapped.run(feed), tapped.reduce()

        vetted = self._vet(feeds, expected, observe, golden)
        if vetted is not None:
            tapped.restart()  # golden frames are no past of the first real one
            self._tapped, self.readings = tapped, tapped.readings
            self._start(tapped.specs, vetted, golden)

    def _require_providers(self, tapped: TappedSession, session_options: Mapping[str, Any]) -> None:
        """Refuse a tapped session that fell back where the model's own session did not.

        The runtime goes on without an execution provider that fails; the answers may be right, and late.
        """
        asked = {
            entry if isinstance(entry, str) else entry[0] for entry in session_options.get("providers") or ()
        }
        lost = asked & set(self._session.get_providers()) - set(tapped.session.get_providers())
        if lost:
            raise RuntimeError(f"the tapped session does without {', '.join(sorted(lost))}")
