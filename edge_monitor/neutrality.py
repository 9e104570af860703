"""Neutrality certificate: does the tapped model answer as before, and do its taps read true (section 4).

The whole probe is certified, as it serves: what its taps read is compared with models of the same runtime
that end at the tap. Sessions and interpreters live one after the other, for a delegate may serve no two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import ModelError, first_line
from edge_monitor.observer import Answer, Observer, Setup
from edge_monitor.region_map import Neutrality, RegionMap, Runtime, TapNeutrality
from edge_monitor.taps.certificate import certify, compare_tap, golden_frames
from edge_monitor.taps.model_file import TfliteRuntime, installed_runtime, is_tflite, load_model
from edge_monitor.types import ProbeEvent, StatRow

# As in `edge_monitor.probe`: no runtime is imported that is not asked for.
# ruff: noqa: PLC0415

Frames = NDArray[np.float32]
"""(n, ...) inputs of a model, planar, without batch axis."""


class Untapped(Protocol):
    """A model without taps on one runtime: `UntappedOnnx` or `UntappedTflite`."""

    span: tuple[float, float]

    def open(self, tap: str | None = None) -> Any: ...  # noqa: ANN401

    def answers(self, session: Any, frames: Frames) -> Iterable[Answer]: ...  # noqa: ANN401

    def values(self, answer: Answer) -> NDArray[Any]: ...

    def provider(self, session: Any) -> str: ...  # noqa: ANN401


class Seen(NamedTuple):
    """What a probe made of the frames: answers, then the tensors of all taps, one entry a frame."""

    answers: list[Answer]
    values: list[list[NDArray[Any]]]


def certify_neutrality(
    model: str | Path | bytes,
    *,
    runtime: TfliteRuntime | None = None,
    options: Mapping[str, Any] | None = None,
    region_map: RegionMap | None = None,
    taps: Sequence[str] | None = None,
    choose_frames: Callable[[tuple[int, ...]], Frames] | None = None,
) -> Neutrality:
    """Run a model untapped, tapped, and cut at each of its taps, and compare.

    Parameters
    ----------
    model : str, Path or bytes
        ONNX or TensorFlow Lite model.
    runtime : str, optional
        ``litert`` or ``tflite``; default: the one that is installed. ONNX models have but one.
    options : mapping, optional
        What the session or interpreter takes: providers, delegates, threads. Default: one thread on the CPU.
    region_map : RegionMap, optional
        Names the taps; its self-test is made as well.
    taps : sequence of str, optional
        Taps when there is no map; default: the suggested set.
    choose_frames : callable, optional
        Gives the frames to compare on when told the shape of one, (C, H, W) or (N,). Default: the map's
        golden frames, else seeded noise.

    Returns
    -------
    Neutrality
        Whatever fails once the model can be read is among its problems.

    Raises
    ------
    ModelError
        The model cannot be read or run, or is of a kind that cannot be observed, or a tap does not exist.
    MapError
        The map belongs to another model.
    InputError
        The runtime is not installed; whatever ``choose_frames`` raises.
    """
    rows: list[StatRow] = []
    events: list[ProbeEvent] = []
    name, untapped, probe = _open(
        model, runtime, options, Setup(region_map, taps, rows.append, events.append)
    )
    specs, readings, certificate = probe.taps[1:], probe.readings, probe.certificate
    try:
        provider = untapped.provider(probe)
    except Exception:  # noqa: BLE001  # one of the runtimes tells it by a private method alone
        provider = "unknown"
    golden = None if region_map is None else region_map.golden
    problems: list[str] = []
    checks: list[TapNeutrality] = []
    if probe.attached:
        if choose_frames is None:
            frames = golden_frames(probe.frame_shape, golden, untapped.span)
        else:
            frames = choose_frames(probe.frame_shape)
        try:
            seen = _watch(probe, untapped, frames)
            del probe
            certificate = certify(_run(untapped, None, frames), seen.answers, golden)
            if not certificate.passed:
                problems.append(
                    f"answers differ by {certificate.max_difference:.3g}, "
                    f"tolerated are {certificate.tolerance:.3g}"
                )
            signatures = np.mean([row.signals[1:] for row in rows], axis=0)
            for place, (spec, reading) in enumerate(zip(specs, readings, strict=True)):
                found = [values[place] for values in seen.values]
                signature = float(signatures[place])
                checks.append(_check_tap(untapped, spec.name, found, frames, signature, reading))
        except Exception as error:  # noqa: BLE001  # the runtimes' errors have no base of their own
            problems.append(f"the frames could not be compared: {first_line(error)}")
    problems += [check.problem for check in checks if check.problem]
    return Neutrality(
        runtime=Runtime.here(name).runtime,
        provider=provider,
        frames=0 if certificate is None else certificate.frames,
        max_difference=None if certificate is None else certificate.max_difference,
        tolerance=0.0 if certificate is None else certificate.tolerance,
        taps=tuple(checks),
        problems=(*(f"{event.code}: {event.detail}" for event in events), *problems),
    )


def _check_tap(
    untapped: Untapped, name: str, found: list[NDArray[Any]], frames: Frames, signature: float, reading: str
) -> TapNeutrality:
    """Compare a tap with the model that ends there; a model that keeps state cannot be cut."""
    try:
        expected = [untapped.values(answer) for answer in _run(untapped, name, frames)]
        return compare_tap(name, found, expected, signature, reading)
    except Exception as error:  # noqa: BLE001  # as above; the other taps are compared all the same
        return TapNeutrality(name, "", None, 0.0, signature, first_line(error), reading)


def _open(
    model: str | Path | bytes, runtime: TfliteRuntime | None, options: Mapping[str, Any] | None, setup: Setup
) -> tuple[str, Untapped, Observer]:
    """Runtime of a model, the model without taps, and a probe of it."""
    data, label = load_model(model)
    if is_tflite(data, label):
        from edge_monitor.interpreter_probe import InterpreterProbe
        from edge_monitor.taps.untapped_tflite import UntappedTflite

        name = runtime or installed_runtime()
        given = {"num_threads": 1} if options is None else options
        untapped = UntappedTflite(data, label, name, given)
        return name, untapped, InterpreterProbe(data, label, name, given, setup)
    from edge_monitor.session_probe import SessionProbe
    from edge_monitor.taps.onnx import CPU, quiet_options
    from edge_monitor.taps.untapped_onnx import UntappedOnnx

    given = {"sess_options": quiet_options(), "providers": CPU}
    if options is not None:
        given = dict(options)
    return "onnx", UntappedOnnx(data, label, given), SessionProbe.build(data, label, given, setup)


def _run(untapped: Untapped, tap: str | None, frames: Frames) -> list[Answer]:
    """Answers of the whole model, or of the model that ends with a tap."""
    return list(untapped.answers(untapped.open(tap), frames))


def _watch(probe: Observer, untapped: Untapped, frames: Frames) -> Seen:
    """Serve the frames.

    Raises
    ------
    ModelError
        The probe stood aside, or did not observe a frame.
    """
    seen = Seen([], [])
    for answer in untapped.answers(probe, frames):
        if not probe.attached or probe.unobserved:
            raise ModelError("probe", f"did not observe frame {len(seen.answers)}")
        seen.answers.append(answer)
        seen.values.append(probe.tap_values())
    return seen
