"""Put a fault into a stretch of clean driving and see what the probe would have seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.offline.faults import EXTRAS, FAULTS, Stage
from edge_monitor.offline.model_faults import faulty_model
from edge_monitor.offline.picture_faults import picture_fault
from edge_monitor.offline.scene import BEFORE, Scene
from edge_monitor.offline.stream_faults import deliveries
from edge_monitor.pipeline import Monitor
from edge_monitor.probe import Probe
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.types import StatRow, TapSpec

LEVELS = 255
"""Steps of a camera's numbers: what a fault leaves between two of them would give it away."""


Run = Callable[[NDArray[np.float32], Scene], list[StatRow]]
"""Frames and their scene in, rows from the onset on out."""


class Injection(msgspec.Struct, frozen=True):
    """One fault to put in: levels per frame from its onset on (0 ... 3), seed, and the variant of its injector."""

    fault: str
    levels: tuple[float, ...]
    seed: int
    variant: str = "drill"


class Range(msgspec.Struct, frozen=True, eq=False):
    """Full scale of a model's input, per channel: ``low`` and ``high`` of shape (C, 1, 1) or (N,)."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, frames: NDArray[np.float32]) -> Range:
        """Range of some frames (n, C, H, W) or (n, N)."""
        axes = (0, 2, 3) if frames.ndim == 4 else (0,)
        low, high = (f(frames, axis=axes, keepdims=True)[0].astype(np.float64) for f in (np.min, np.max))
        return cls(low, np.maximum(high, low + 1e-6))

    def to_unit(self, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale to 0 ... 1, always (C, H, W)."""
        unit = np.clip((frame - self.low) / (self.high - self.low), 0.0, 1.0).astype(np.float32)
        return unit if unit.ndim == 3 else unit[:, None, None]

    def from_unit(self, picture: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Scale back to the model's input, on the camera's steps."""
        steps = np.rint(picture.astype(np.float64) * LEVELS).reshape(shape)
        return (self.low + steps * ((self.high - self.low) / LEVELS)).astype(np.float32)


class Injector:
    """Runs a model on scenes, with faults and without.

    Parameters
    ----------
    model : bytes
        ONNX model.
    taps : tuple of TapSpec
        The input and the tapped tensors.
    full_scale : Range
    rate_hz : float
    """

    def __init__(self, model: bytes, taps: tuple[TapSpec, ...], full_scale: Range, rate_hz: float) -> None:
        self._proto = onnx.load_model_from_string(model)
        self._taps = [tap.name for tap in taps[1:]]
        self._range = full_scale
        self.rate_hz = rate_hz
        self._clean = self._open(model)

    def rows(self, scene: Scene, injections: Sequence[Injection]) -> list[StatRow]:
        """Rows of a scene from the onset on, with faults put in one after the other; none: clean.

        Faults of the stream come last: they deliver what the others made.

        Raises
        ------
        InputError
            No such fault, or one that the picture or the source cannot have.
        ModelError
            One that the model cannot have.
        """
        stages = {fault.name: fault.stage for fault in (*FAULTS, *EXTRAS)}
        for injection in injections:
            if injection.fault not in stages:
                raise InputError("fault", f"{injection.fault!r} is none of {', '.join(stages)}")
        frames = scene.frames
        held = scene.again
        for injection in injections:
            if stages[injection.fault] is Stage.PICTURE:
                frames = self._break_pictures(frames, injection)
        run = self._clean
        for injection in injections:
            if stages[injection.fault] is Stage.MODEL:
                run = self._broken(injection, scene)
        streams = [i for i in injections if stages[i.fault] is Stage.STREAM]
        if not streams:
            return run(frames, scene)
        return self._deliver(run, frames, held, scene, streams[0])

    def _break_pictures(self, frames: NDArray[np.float32], injection: Injection) -> NDArray[np.float32]:
        fault = picture_fault(injection.fault, injection.seed, injection.variant, rate_hz=self.rate_hz)
        broken = frames.copy()
        for i, frame in enumerate(frames):
            level = 0.0 if i < BEFORE else injection.levels[i - BEFORE]
            unit = fault(self._range.to_unit(frame), level)
            if level > 0.0:
                broken[i] = self._range.from_unit(unit, frame.shape)
        return broken

    def _broken(self, injection: Injection, scene: Scene) -> Run:
        level = max(injection.levels)
        data, _ = faulty_model(
            self._proto,
            injection.fault,
            level,
            injection.seed,
            scene.frames[:BEFORE],
            variant=injection.variant,
        )
        broken, clean = self._open(data), self._clean

        def run(frames: NDArray[np.float32], scene: Scene) -> list[StatRow]:
            return broken(frames, scene) if level > 0.0 else clean(frames, scene)

        return run

    def _deliver(
        self,
        run: Run,
        frames: NDArray[np.float32],
        again: NDArray[np.float32] | None,
        scene: Scene,
        injection: Injection,
    ) -> list[StatRow]:
        """Deliver frames late, twice, in another order or not at all."""
        plan = deliveries(injection.fault, max(injection.levels), injection.seed, scene.length)
        if any(d.again for d in plan) and again is None:
            raise InputError(injection.fault, "needs a source that can show a scene again with fresh noise")
        shown = [*range(BEFORE)]
        pictures = [*frames[:BEFORE]]
        for n, delivery in enumerate(plan):
            if not delivery.delivered:
                continue
            shown.append(BEFORE + n)
            if delivery.again and again is not None:
                pictures.append(again[n])
            else:
                pictures.append(frames[BEFORE + delivery.index])
        rows = run(np.stack(pictures), scene)
        period_ns = 1e9 / self.rate_hz
        start = scene.rows[-1]
        late = 0.0
        moved = []
        for place, row in zip(shown[BEFORE:], rows, strict=True):
            delivery = plan[place - BEFORE]
            late = max(delivery.extra_latency, late - 1.0)  # a late frame holds up those behind it
            moved.append(
                msgspec.structs.replace(
                    row,
                    frame=start.frame + 1 + place - BEFORE,
                    t_ns=start.t_ns + int((1 + place - BEFORE + late) * period_ns),
                    t_capture_ns=_capture_ns(start, delivery.t_capture_frame, period_ns),
                    latency_ns=row.latency_ns + int(delivery.extra_latency * period_ns),
                    context=scene.contexts[place],
                )
            )
        return moved

    def _open(self, model: bytes) -> Run:
        """Return what runs frames through a tapped model and gives the rows behind `BEFORE`."""
        seen: list[StatRow] = []
        probe = Probe.onnx(model, taps=self._taps, on_row=seen.append, sess_options=quiet_options())
        if not probe.attached:
            raise InputError("fault", f"the probe does not attach to the broken model: {probe.detach_reason}")
        name = probe.get_inputs()[0].name
        period_ns = 1e9 / self.rate_hz

        def run(frames: NDArray[np.float32], scene: Scene) -> list[StatRow]:
            seen.clear()
            for frame in frames:
                probe.run(None, {name: frame[None]})
            start = scene.rows[-1]
            return [
                msgspec.structs.replace(
                    row,
                    frame=start.frame + 1 + i,
                    t_ns=start.t_ns + int((1 + i) * period_ns),
                    t_capture_ns=_capture_ns(start, i, period_ns),
                    latency_ns=start.latency_ns,
                    context=scene.contexts[min(BEFORE + i, len(scene.contexts) - 1)],
                )
                for i, row in enumerate(seen[BEFORE:])
            ]

        return run


def _capture_ns(start: StatRow, frame: int, period_ns: float) -> int | None:
    """Capture time of the frame so many behind the onset, on the clock of the row before it."""
    return None if start.t_capture_ns is None else start.t_capture_ns + int((1 + frame) * period_ns)


def warm(monitor: Monitor, scene: Scene) -> None:
    """Feed a monitor, from nothing, with what the scene has before the onset."""
    monitor.reset()
    for row in scene.rows:
        monitor.step(row)


def fork(monitor: Monitor) -> Monitor:
    """Copy a monitor with all that it remembers; the map is shared."""
    return copy.deepcopy(monitor, {id(monitor.region_map): monitor.region_map})


def levels_of(level: float, n: int) -> tuple[float, ...]:
    """Full strength from the onset on."""
    return (level,) * n


def ramp(level: float, rising: int, n: int) -> tuple[float, ...]:
    """Strength that rises over so many frames."""
    return tuple(np.minimum(1.0, np.arange(1, n + 1) / rising).astype(float) * level)


def decisions(rows: list[StatRow]) -> NDArray[np.int64]:
    """Winners of the rows, (n,), -1 where there is none."""
    return np.array([-1 if row.output is None else row.output.top1 for row in rows], np.int64)
