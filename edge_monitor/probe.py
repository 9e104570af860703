"""The probe: a drop-in for the model's session that watches while it serves (design section 4).

The model comes first: whatever fails inside the probe detaches it, is counted and reported, and the
call returns what the model alone would have returned.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import EdgeMonitorError, InputError, ModelError
from edge_monitor.region_map import RegionMap
from edge_monitor.taps.certificate import Certificate, certify, golden_feeds, self_test
from edge_monitor.taps.onnx import (
    DTYPES,
    TappedSession,
    find_observed_input,
    input_type,
    list_taps,
    open_session,
)
from edge_monitor.taps.onnx_graph import load_model, read_graph
from edge_monitor.taps.output import OutputSummarizer
from edge_monitor.types import ProbeEvent, StatRow, TapSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class Probe:
    """Drop-in for an ``onnxruntime.InferenceSession``; made by `Probe.onnx` or `Probe.wrap`.

    A call of `run` is observed when it brings one frame: batch 1, the model's own input types, no run
    options. Any other call, and one that meets another thread's call under way, goes straight to the
    session and is counted in ``unobserved``. Everything else a session offers is delegated to it.

    Attributes
    ----------
    attached : bool
        Whether calls are observed.
    detach_reason : str or None
        Why not, in one line.
    errors : int
        Errors of the probe itself and of its callbacks.
    unobserved : int
        Calls of `run` that gave no row.
    taps : tuple of TapSpec
        The input and the tapped tensors; empty when the probe could not attach.
    certificate : Certificate or None
        Comparison with the untapped model at start; None when it could not be made.
    """

    def __init__(
        self,
        session: InferenceSession,
        data: bytes,
        session_options: Mapping[str, object],
        *,
        owned: bool,
        region_map: RegionMap | None,
        taps: Sequence[str] | None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None,
    ) -> None:
        self.attached = False
        self.detach_reason: str | None = None
        self.errors = 0
        self.unobserved = 0
        self.taps: tuple[TapSpec, ...] = ()
        self.certificate: Certificate | None = None
        self._session = session
        self._on_row = on_row
        self._on_event = on_event
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._rows = 0
        self._note: tuple[int | None, Mapping[str, float | None]] = (None, {})
        self._summarizer = OutputSummarizer()
        self._outputs = [output.name for output in session.get_outputs()]
        self._places = {name: place for place, name in enumerate(self._outputs)}
        self._inputs = {arg.name: input_type(arg) for arg in session.get_inputs()}
        self._observed = find_observed_input(session)
        for output in session.get_outputs():
            if output.type not in DTYPES:
                raise ModelError(f"output {output.name}", f"is {output.type}, only numeric tensors will do")
        names = _choose_taps(data, region_map, taps)
        try:
            self._attach(data, names, region_map, session_options)
        except EdgeMonitorError:
            raise
        except Exception as error:  # noqa: BLE001  # the model serves untapped, whatever failed
            self._detach(error)
        if owned and self.attached:
            # One session is enough: a second one would hold the weights twice.
            self._session = self._tapped.session

    @classmethod
    def onnx(
        cls,
        model: str | Path | bytes,
        *,
        region_map: RegionMap | None = None,
        taps: Sequence[str] | None = None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None = None,
        **session_options: object,
    ) -> Probe:
        """Build the session of a model and observe it.

        Parameters
        ----------
        model : path or bytes
            The ONNX model.
        region_map : RegionMap, optional
            Names the taps, and holds the golden frames for certificate and self-test.
        taps : sequence of str, optional
            Taps when there is no map; default: the suggested set of `edge_monitor.taps.onnx.list_taps`.
        on_row, on_event : callable
            Take the row of every observed frame, and what happens to the probe itself. They are called
            in the thread that calls `run`, before it returns.
        **session_options
            What ``onnxruntime.InferenceSession`` takes: ``sess_options``, ``providers``, ...

        Raises
        ------
        ModelError
            The model cannot be read, or is of a kind that cannot be observed; a tap does not exist.
        MapError
            The map belongs to another model.
        """
        data, label = load_model(model)
        read_graph(data, label)
        try:
            session = open_session(data, (), session_options)
        except TypeError:  # the caller's session options
            raise
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise ModelError(label, f"cannot be run ({str(error).splitlines()[0]})") from error
        return cls(
            session,
            data,
            session_options,
            owned=True,
            region_map=region_map,
            taps=taps,
            on_row=on_row,
            on_event=on_event,
        )

    @classmethod
    def wrap(
        cls,
        session: InferenceSession,
        *,
        model: str | Path | bytes,
        region_map: RegionMap | None = None,
        taps: Sequence[str] | None = None,
        on_row: Callable[[StatRow], object],
        on_event: Callable[[ProbeEvent], object] | None = None,
        **session_options: object,
    ) -> Probe:
        """Observe a session that exists already; it stays as it is and serves whenever the probe does not.

        ``model`` is what the session was made from; the tapped session is a second one with the same
        options (unless given here), and holds the weights again. Otherwise as `Probe.onnx`.
        """
        data, label = load_model(model)
        graph = read_graph(data, label)
        names = [output.name for output in session.get_outputs()]
        if names != list(graph.outputs):
            raise ModelError(label, f"has outputs {list(graph.outputs)}, the session has {names}")
        providers = session.get_provider_options()
        same = {
            "sess_options": session.get_session_options(),
            "providers": [(name, providers[name]) for name in session.get_providers()],
        }
        return cls(
            session,
            data,
            same | session_options,
            owned=False,
            region_map=region_map,
            taps=taps,
            on_row=on_row,
            on_event=on_event,
        )

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: object = None,
    ) -> list[Any]:
        """Run the model as its session does, and hand over a row when the call can be observed."""
        note, self._note = self._note, (None, {})
        failure: Exception | None = None
        if self._lock.acquire(blocking=False):
            try:
                places = self._find_places(output_names, input_feed, run_options)
                if places is not None:
                    outputs = self._observe(input_feed, note)
                    return [outputs[place] for place in places]
            except Exception as error:  # noqa: BLE001  # the caller's fault or ours: the plain run tells
                failure = error
            finally:
                self._lock.release()
        with self._count_lock:
            self.unobserved += 1
        answer: list[Any] = self._session.run(self._names(output_names), input_feed, run_options)
        if failure is not None:
            self._detach(failure)
        return answer

    def run_async(self, output_names: Sequence[str] | None, *args: object, **kwargs: object) -> None:
        """Run in the background, unobserved."""
        self._session.run_async(self._names(output_names), *args, **kwargs)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, *args: object, **kwargs: object
    ) -> list[Any]:
        """Run on the runtime's own values, unobserved."""
        answer: list[Any] = self._session.run_with_ort_values(self._names(output_names), *args, **kwargs)
        return answer

    def get_outputs(self) -> list[Any]:
        """Return the model's own outputs, without the taps."""
        return list(self._session.get_outputs()[: len(self._outputs)])

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # as the session's own
        return getattr(self._session, name)

    def note(self, t_capture_ns: int | None = None, **context: float | None) -> None:
        """Say what belongs to the next frame: its capture time, and named numbers (None: not known)."""
        self._note = (t_capture_ns, context)

    def _names(self, output_names: Sequence[str] | None) -> Sequence[str]:
        """Name the outputs to ask the session for: the model's own by default, and never a tap."""
        if not output_names:
            return self._outputs
        taps = [tap.name for tap in self.taps[1:]]
        if not isinstance(output_names, (list, tuple)):
            return output_names
        # A tap has to be as unknown as it is to the untapped session. The NUL makes it so, and the
        # runtime's message, a C string, ends before it.
        return [f"{name}\0" if name in taps else name for name in output_names]

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

    def _observe(
        self, feed: Mapping[str, NDArray[Any]], note: tuple[int | None, Mapping[str, float | None]]
    ) -> list[NDArray[Any]]:
        """Run with taps and hand over the row; what it raises comes from the run."""
        started_ns = time.monotonic_ns()
        outputs = self._tapped.run(feed)
        ended_ns = time.monotonic_ns()
        try:
            reduction = self._tapped.reduce(feed[self._observed])
            t_capture_ns, context = note
            row = StatRow(
                frame=self._rows + self.unobserved,
                t_ns=ended_ns,
                latency_ns=ended_ns - started_ns,
                signals=reduction.signals,
                nonfinite=reduction.nonfinite,
                fingerprint=reduction.fingerprint,
                t_capture_ns=t_capture_ns,
                spatial=reduction.spatial,
                output=self._summarizer.summarize(outputs[0]),
                context={key: float(value) for key, value in context.items() if value is not None},
                picture=reduction.picture,
            )
            self._rows += 1
            self._on_row(row)
        except Exception as error:  # noqa: BLE001  # ours alone: the answer is in hand already
            self._detach(error)
        return outputs

    def _attach(
        self,
        data: bytes,
        names: Sequence[str],
        region_map: RegionMap | None,
        session_options: Mapping[str, object],
    ) -> None:
        """Build the tapped session, and attach when its answers are the model's own."""
        golden = region_map.golden if region_map else None
        feeds = golden_feeds(self._inputs, self._observed, golden)
        specs = region_map.taps if region_map else None
        tapped = TappedSession(data, names, feeds[0], self._observed, specs, session_options)
        session = self._session
        self.certificate = certify(lambda feed: session.run(None, feed), tapped.run, feeds, golden)
        if not self.certificate.passed:
            self.detach_reason = (
                f"answers to {len(feeds)} frames differ by {self.certificate.max_difference:.3g}, "
                f"tolerated are {self.certificate.tolerance:.3g}"
            )
            self._emit("ANSWER_CHANGED", self.detach_reason)
            return
        answers, signals = [], []
        for feed in feeds:
            answers.append(tapped.run(feed))
            signals.append(tapped.reduce(feed[self._observed]).signals)
        tapped.restart()  # golden frames are no past of the first real one
        self._tapped = tapped
        self.taps = tapped.specs
        self.attached = True
        if golden is not None:
            failure = self_test(self.taps, np.array(signals), answers, golden)
            if failure is not None:
                self._emit("SELF_TEST_FAILED", failure)

    def _detach(self, error: Exception) -> None:
        """Stop observing because of an error of our own, and say so."""
        self.attached = False
        self.errors += 1
        self.detach_reason = traceback.format_exception_only(error)[-1].splitlines()[0]
        self._emit("PROBE_DETACHED", self.detach_reason)

    def _emit(self, code: str, detail: str) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(ProbeEvent(time.monotonic_ns(), code, detail))
        except Exception as error:  # noqa: BLE001  # a callback is part of the probe
            if self.attached:
                self._detach(error)
            else:
                self.errors += 1


def _choose_taps(data: bytes, region_map: RegionMap | None, taps: Sequence[str] | None) -> list[str]:
    """Names of the tensors to tap: the map's, the caller's, or the suggested set."""
    if region_map is None:
        names = list(taps) if taps is not None else [tap.name for tap in list_taps(data) if tap.default]
        if not names:
            raise ModelError("model", "has no post-activation tensor that can be tapped")
        return names
    if taps is not None:
        raise InputError("taps", "come from the region map, give one of the two")
    region_map.require_model(data, "this one")
    return [tap.name for tap in region_map.taps[1:]]
