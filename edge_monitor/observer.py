"""What a probe does on any runtime: rows, events, checks at start, standing aside (design section 4).

The model comes first: whatever fails inside a probe detaches it, is counted and reported, and the call
returns what the model alone would have returned.
"""

from __future__ import annotations

import operator
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, MapError, ModelError
from edge_monitor.region_map import Golden, RegionMap, Runtime
from edge_monitor.taps.certificate import Certificate, certify, golden_frames, self_test
from edge_monitor.taps.governor import Governor
from edge_monitor.taps.output import OutputSummarizer
from edge_monitor.taps.reducer import Reduction
from edge_monitor.types import BoolArray, FloatArray, ProbeEvent, StatRow, TapSpec

Note = tuple[int | None, dict[str, float]]
Answer = list[NDArray[Any]]
Feed = TypeVar("Feed")


class Setup(NamedTuple):
    """What the caller wants of a probe, see `edge_monitor.probe.Probe`."""

    region_map: RegionMap | None
    taps: Sequence[str] | None
    on_row: Callable[[StatRow], object]
    on_event: Callable[[ProbeEvent], object] | None

    @property
    def golden(self) -> Golden | None:
        return None if self.region_map is None else self.region_map.golden

    @property
    def period_ns(self) -> float | None:
        """Frame period; known of calibrated streams alone."""
        return None if self.region_map is None else 1e9 / self.region_map.provenance.frame_rate_hz

    @property
    def specs(self) -> tuple[TapSpec, ...] | None:
        return None if self.region_map is None else self.region_map.taps

    def choose_taps(self, data: bytes, suggest: Callable[[], list[str]]) -> list[str]:
        """Names of the tensors to tap: the map's, the caller's, or those that ``suggest`` returns.

        Raises
        ------
        ModelError
            There is none.
        InputError
            Map and caller both name some, or the caller's are no names.
        MapError
            The map belongs to another model.
        """
        if self.region_map is None and self.taps is not None:
            if not isinstance(self.taps, (list, tuple)) or not all(
                isinstance(name, str) for name in self.taps
            ):
                raise InputError("taps", f"are {self.taps!r}, not a list of names")
            if not self.taps:
                raise InputError("taps", "is an empty list; leave it out for the suggested ones")
            return list(self.taps)
        if self.region_map is None:
            names = suggest()
            if not names:
                raise ModelError("model", "has no post-activation tensor that can be tapped")
            return names
        if self.taps is not None:
            raise InputError("taps", "come from the region map, give one of the two")
        self.region_map.require_model(data, "this one")
        return [tap.name for tap in self.region_map.taps[1:]]


class Scannable(Protocol):
    """A tapped model of which some taps' voxels can be left out."""

    def choose(self, scan: BoolArray) -> None: ...


class Vetted(NamedTuple):
    """What a tapped model made of the frames it was checked on."""

    answers: tuple[Answer, ...]
    signals: FloatArray


class Observer:
    """Base of the drop-ins; `edge_monitor.probe.Probe` makes them.

    Attributes
    ----------
    attached : bool
        Whether calls are observed.
    detach_reason : str or None
        Why not, in one line.
    errors : int
        Errors of the probe itself and of its callbacks.
    unobserved : int
        Calls that gave no row.
    taps : tuple of TapSpec
        The input and the tapped tensors; empty when the probe could not attach.
    readings : tuple of str
        How each tapped tensor is read: in place where the runtime keeps it, its channels ``blocked`` or
        ``channels last``; ``plain``, as an ordinary output of the runtime; or ``copied``.
    certificate : Certificate or None
        Comparison with the untapped model at start; None when it could not be made.
    runtime : str
        Which runtime serves: a key of `edge_monitor.region_map.PACKAGES`.
    input_names : tuple of str
        The model's inputs.
    frame_shape : tuple of int
        Shape of the observed input as `feed` takes it, (C, H, W) or (N,).
    governor : Governor or None
        What keeps the probe within its budget of time; None until attached, and without a map: calibration
        needs all there is.
    """

    def __init__(
        self,
        runtime: str,
        input_names: tuple[str, ...],
        frame_shape: tuple[int, ...],
        setup: Setup,
    ) -> None:
        self.attached = False
        self.detach_reason: str | None = None
        self.errors = 0
        self.unobserved = 0
        self.taps: tuple[TapSpec, ...] = ()
        self.readings: tuple[str, ...] = ()
        self.certificate: Certificate | None = None
        self.runtime, self.input_names, self.frame_shape = runtime, input_names, frame_shape
        self.governor: Governor | None = None
        self._began_ns = 0
        if not isinstance(setup.region_map, RegionMap | None):
            kind = type(setup.region_map).__name__  # type: ignore[unreachable]  # callers have no types
            raise InputError("region_map", f"is a {kind}, not what load_region_map returns")
        for name, callback in (("on_row", setup.on_row), ("on_event", setup.on_event)):
            if not callable(callback) and (name == "on_row" or callback is not None):
                raise InputError(name, f"is {callback!r}, which cannot be called")
        self._period_ns = setup.period_ns
        self._on_row = setup.on_row
        self._on_event = setup.on_event
        self._recorded_on = None if setup.region_map is None else setup.region_map.neutrality.runtime
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._rows = 0
        self._note: Note = (None, {})
        self._summarizer = OutputSummarizer()

    def note(self, t_capture_ns: int | None = None, **context: float | None) -> None:
        """Say what belongs to the next frame: its capture time, and named numbers (None: not known).

        What is no number is left out, and counted in ``errors``: it must not end the watch, nor the caller.
        """
        numbers = {}
        for name, value in context.items():
            try:
                if value is not None:
                    numbers[name] = float(value)
            except Exception:  # noqa: BLE001  # conversions are the caller's, and may raise anything
                self.errors += 1
        captured = None
        try:
            if t_capture_ns is not None:
                captured = int(np.int64(operator.index(t_capture_ns)))
        except Exception:  # noqa: BLE001  # as above, or not of 64 bits, as rows and recordings keep it
            self.errors += 1
        self._note = (captured, numbers)

    def feed(self, frame: NDArray[np.float32]) -> Answer:
        """Run one frame, of `frame_shape` behind a batch axis of 1, through a model of one input."""
        raise NotImplementedError

    def tap_values(self) -> list[NDArray[Any]]:
        """Copy the tapped tensors as the last observed run left them: planar, in the stored type."""
        raise NotImplementedError

    def _take_note(self) -> Note:
        note, self._note = self._note, (None, {})
        return note

    def _pass_by(self) -> None:
        """Count a call that is not observed, whose note goes with it."""
        self._take_note()
        self._count_unobserved()

    def _count_unobserved(self) -> None:
        with self._count_lock:
            self.unobserved += 1

    def _release(self, rows: int) -> None:
        """Give the lock back behind a call; it was unobserved if there are still so many ``rows``."""
        if self._rows == rows:
            self._count_unobserved()
        self._lock.release()

    def _hand_over(
        self, reduction: Reduction, answer: NDArray[Any] | None, started_ns: int, ended_ns: int, note: Note
    ) -> None:
        """Make the row of a frame and hand it over; ``answer``: the model's first output."""
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
            output=None if answer is None else self._summarizer.summarize(answer),
            context=context,
            picture=reduction.picture,
        )
        self._rows += 1
        self._on_row(row)
        if self.governor is not None:
            self.governor.spent(time.thread_time_ns() - self._began_ns)

    def _govern(self, tapped: Scannable, sampling_ns: int) -> None:
        """Say what is read of the frame that was just run; ``sampling_ns``: what its picture took before."""
        if self.governor is not None:
            # A CPU budget: on a busy machine others run in between, and reading less would not change that
            # (test_probe.py::test_a_machine_under_full_load_loses_no_frame_and_no_scan).
            self._began_ns = time.thread_time_ns() - sampling_ns
            tapped.choose(self.governor.scan())

    def _check_frames(
        self, golden: Golden | None, span: tuple[float, float] = (0.0, 1.0)
    ) -> NDArray[np.float32] | None:
        """Frames to check on, see `golden_frames`; None when the map's are none of this model's."""
        try:
            return golden_frames(self.frame_shape, golden, span)
        except MapError as error:
            self.detach_reason = str(error)
            self._emit("SELF_TEST_FAILED", self.detach_reason)
            return None

    def _vet(
        self,
        feeds: Sequence[Feed],
        expected: Sequence[Answer],
        observe: Callable[[Feed], tuple[Answer, Reduction]],
        golden: Golden | None,
    ) -> Vetted | None:
        """Compare the tapped model's answers with the ``expected`` ones; None when it must not serve."""
        answers, reductions = zip(*map(observe, feeds), strict=True)
        self.certificate = certify(expected, answers, golden)
        if self.certificate.passed:
            return Vetted(answers, np.array([reduction.signals for reduction in reductions]))
        self.detach_reason = (
            f"answers to {len(feeds)} frames differ by {self.certificate.max_difference:.3g}, "
            f"tolerated are {self.certificate.tolerance:.3g}"
        )
        self._emit("ANSWER_CHANGED", self.detach_reason)
        return None

    def _start(self, taps: tuple[TapSpec, ...], vetted: Vetted, golden: Golden | None) -> None:
        """Observe from now on; say so when what was seen on golden frames is not what the map records."""
        self.taps = taps
        self.attached = True
        if self._period_ns is not None:
            self.governor = Governor(len(taps), self._period_ns)
        if golden is not None:
            failure = self_test(taps, vetted.signals, vetted.answers, golden)
            if failure is not None:
                here = Runtime.here(self.runtime).runtime
                if here != self._recorded_on:
                    failure += f"; the map was recorded on {self._recorded_on}, this is {here}"
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
