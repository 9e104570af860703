"""Put a fault into a stretch of clean driving and see what the probe would have seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.offline.backend import Tapped, backend_of
from edge_monitor.offline.delivery import delays, delivered, plan_of, seen_by_camera
from edge_monitor.offline.faults import EXTRAS, FAULTS, Stage
from edge_monitor.offline.model_faults import faulty_model
from edge_monitor.offline.picture_faults import picture_fault, rounded
from edge_monitor.offline.scene import BEFORE, Scene
from edge_monitor.offline.stream_faults import Delivery
from edge_monitor.pipeline import Monitor
from edge_monitor.types import StatRow, TapSpec

LEVELS = 255
"""Steps of a camera's numbers at most: what a fault leaves between two of them would give it away."""
_STAGES = {fault.name: fault.stage for fault in (*FAULTS, *EXTRAS)}


class Injection(msgspec.Struct, frozen=True):
    """One fault to put in: levels per frame from its onset on (0 ... 3), seed, variant of its injector."""

    fault: str
    levels: tuple[float, ...]
    seed: int
    variant: str = "drill"


class Range(msgspec.Struct, frozen=True, eq=False):
    """Full scale of a model's input, per channel: ``low`` and ``high`` of shape (C, 1, 1) or (N,).

    ``steps``, of the same shape: steps of the camera's numbers between them.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    steps: NDArray[np.float64]

    @classmethod
    def of(cls, frames: NDArray[np.float32]) -> Range:
        """Range of some frames (n, C, H, W) or (n, N)."""
        axes = (0, 2, 3) if frames.ndim == 4 else (0,)
        low, high = (f(frames, axis=axes, keepdims=True)[0].astype(np.float64) for f in (np.min, np.max))
        channels = frames.swapaxes(0, 1).reshape(frames.shape[1], -1)
        steps = np.array([_steps(channel) for channel in channels], np.float64).reshape(low.shape)
        return cls(low, np.maximum(high, low + 1e-6), steps)

    def to_unit(self, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale to 0 ... 1, always (C, H, W)."""
        unit = np.clip((frame - self.low) / (self.high - self.low), 0.0, 1.0).astype(np.float32)
        return unit if unit.ndim == 3 else unit[:, None, None]

    def digitise(self, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        """Clip to full scale and round to the camera's steps."""
        return self.from_unit(self.to_unit(frame), frame.shape)

    def from_unit(self, picture: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Scale back to the model's input, on the camera's steps."""
        share = np.rint(picture.reshape(shape) * self.steps) / self.steps
        return (self.low + share * (self.high - self.low)).astype(np.float32)


def _steps(values: NDArray[np.float32]) -> int:
    """Count the steps between the least and the largest value, `LEVELS` where the values do not tell."""
    distinct = np.unique(values)
    if not LEVELS // 4 <= distinct.size <= LEVELS + 1:  # too few to meet every step, or no steps at all
        return LEVELS
    return min(LEVELS, round(float((distinct[-1] - distinct[0]) / np.diff(distinct).min())))


class Injector:
    """Runs a model on scenes, with faults and without.

    Parameters
    ----------
    model : bytes
        ONNX or TensorFlow Lite model.
    taps : tuple of TapSpec
        The input and the tapped tensors.
    full_scale : Range
    rate_hz : float
    """

    def __init__(self, model: bytes, taps: tuple[TapSpec, ...], full_scale: Range, rate_hz: float) -> None:
        self._model, self._taps = model, taps
        self._tap = backend_of(model).tap
        self._range = full_scale
        self._clean: Tapped | None = None
        self.rate_hz = rate_hz

    def rows(self, scene: Scene, injections: Sequence[Injection]) -> list[StatRow]:
        """Rows of a scene from the onset on, with faults put in one after the other; none: clean.

        First comes what holds the scene that the camera sees, then what lens and sensor do to the picture,
        then what the queue does to the frames, and last the model.

        Raises
        ------
        InputError
            No such fault, levels for another number of frames, or a fault that the picture or the source
            cannot have.
        ModelError
            One that the model cannot have.
        """
        for injection in injections:
            if injection.fault not in _STAGES:
                raise InputError("fault", f"{injection.fault!r} is none of {', '.join(_STAGES)}")
            if len(injection.levels) != scene.length:
                n = len(injection.levels)
                raise InputError(injection.fault, f"has {n} levels, the scene has {scene.length} frames")
        streams = [i for i in injections if _STAGES[i.fault] is Stage.STREAM]
        plan = plan_of(streams, scene.length)
        if scene.again is None and any(delivery.again for delivery in plan):
            raise InputError(streams[0].fault, "needs a source that can show a scene again with fresh noise")
        frames = seen_by_camera(scene, plan, self._range.digitise)
        for injection in injections:
            if _STAGES[injection.fault] is Stage.PICTURE:
                frames = self._break_pictures(frames, injection)
        arriving, shown = delivered(plan)
        frames = frames[[*range(BEFORE), *(BEFORE + k for k in shown)]]
        broken = [i for i in injections if _STAGES[i.fault] is Stage.MODEL]
        rows = self._run(frames, arriving, broken, scene)
        late = delays(plan)
        return [self._placed(row, k, plan[k], late[k], scene) for k, row in zip(arriving, rows, strict=True)]

    def _break_pictures(self, frames: NDArray[np.float32], injection: Injection) -> NDArray[np.float32]:
        fault = picture_fault(injection.fault, injection.seed, injection.variant, rate_hz=self.rate_hz)
        broken = frames.copy()
        for i, frame in enumerate(frames):
            level = 0.0 if i < BEFORE else injection.levels[i - BEFORE]
            clean = self._range.to_unit(frame)
            unit = fault(clean, level)
            if level > 0.0:
                # What the fault leaves alone stays the same to the bit, though it is off the steps: a picture
                # that was merely scaled there and back is no fault. Beyond full scale nobody can tell.
                same = ((unit == clean) | (unit == rounded(clean))).reshape(frame.shape)
                same &= (frame >= self._range.low) & (frame <= self._range.high)
                broken[i] = np.where(same, frame, self._range.from_unit(unit, frame.shape))
        return broken

    def _run(
        self, frames: NDArray[np.float32], arriving: list[int], faults: list[Injection], scene: Scene
    ) -> list[StatRow]:
        """Rows behind `BEFORE`: each of the model with those faults that are on in its frame."""
        if self._clean is None:
            self._clean = self._tap(self._model, self._taps, frames[0])
        on = [tuple(fault.levels[k] > 0.0 for fault in faults) for k in arriving]
        rows: dict[tuple[bool, ...], list[StatRow]] = {}
        for which in dict.fromkeys(on):
            model = self._broken([f for f, is_on in zip(faults, which, strict=True) if is_on], scene)
            rows[which] = list(model.rows(frames))[BEFORE:]
        return [rows[which][i] for i, which in enumerate(on)]

    def _broken(self, faults: list[Injection], scene: Scene) -> Tapped:
        """Model with all of some faults."""
        if not faults:
            assert self._clean is not None
            return self._clean
        data = self._model
        for fault in faults:
            before = scene.frames[:BEFORE]
            data, _ = faulty_model(
                data, fault.fault, max(fault.levels), fault.seed, before, variant=fault.variant
            )
        return self._tap(data, self._taps, scene.frames[0])

    def _placed(self, row: StatRow, k: int, delivery: Delivery, late: float, scene: Scene) -> StatRow:
        """Give a row its times, which continue those before the onset, and its context."""
        start, period_ns = scene.rows[-1], 1e9 / self.rate_hz
        t_capture_ns = start.t_capture_ns
        if t_capture_ns is not None:
            t_capture_ns += int((1 + delivery.t_capture_frame) * period_ns)
        return msgspec.structs.replace(
            row,
            frame=start.frame + 1 + k,
            t_ns=start.t_ns + int((1 + k + late) * period_ns),
            t_capture_ns=t_capture_ns,
            latency_ns=start.latency_ns + int(delivery.extra_latency * period_ns),
            context=scene.contexts[BEFORE + k],
        )


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
