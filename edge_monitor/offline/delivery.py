"""What a faulty stream delivers: the plan of several stream faults, and the pictures that it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_monitor.offline.scene import BEFORE, Scene
from edge_monitor.offline.stream_faults import Delivery, deliveries

Digitise = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class StreamFault(Protocol):
    """A fault of the stream with its level per frame."""

    @property
    def fault(self) -> str: ...
    @property
    def levels(self) -> tuple[float, ...]: ...
    @property
    def seed(self) -> int: ...


def plan_of(faults: Sequence[StreamFault], n: int) -> list[Delivery]:
    """Say what arrives in each of ``n`` frames since the onset; each fault is fed by those before it.

    Raises
    ------
    InputError
        No such stream fault, or a level outside 0..3.
    """
    plan = [Delivery(k, again=False, t_capture_frame=k, delivered=True, extra_latency=0.0) for k in range(n)]
    for fault in faults:
        step = deliveries(fault.fault, max(fault.levels), fault.seed, n)
        plan = [
            _after(plan, k, delivery) if level > 0.0 else plan[k]
            for k, (delivery, level) in enumerate(zip(step, fault.levels, strict=True))
        ]
    return plan


def _after(plan: Sequence[Delivery], k: int, delivery: Delivery) -> Delivery:
    """Frame ``k`` of a second fault, whose queue is fed by ``plan``."""
    source = plan[delivery.index]
    return Delivery(
        source.index,
        again=source.again or delivery.again,
        t_capture_frame=plan[delivery.t_capture_frame].t_capture_frame,
        delivered=source.delivered and delivery.delivered,
        extra_latency=plan[k].extra_latency + delivery.extra_latency,
    )


def seen_by_camera(scene: Scene, plan: Sequence[Delivery], digitise: Digitise) -> NDArray[np.float32]:
    """Frames of a scene (BEFORE + n, ...) in which a held scene stands still under fresh noise.

    The scene of the onset was rendered again. Of a later one there is one picture, which gets the noise of
    those on top of its own: sqrt(2) of a clean picture's noise, though it changes from one held frame to the
    next as clean noise does. It has to be ``digitised`` like any other: pixels that never repeat would give
    it away.
    """
    if scene.again is None or not any(delivery.again for delivery in plan):
        return scene.frames
    frames = scene.frames.copy()
    noise = scene.again - scene.again.mean(axis=0)
    for k, delivery in enumerate(plan):
        if delivery.again:
            held = scene.frames[BEFORE + delivery.index]
            frames[BEFORE + k] = scene.again[k] if delivery.index == 0 else digitise(held + noise[k])
    return frames


def delivered(plan: Sequence[Delivery]) -> tuple[list[int], list[int]]:
    """Frames that arrive since the onset, and for each the frame of the camera that it shows."""
    arriving = [k for k, delivery in enumerate(plan) if delivery.delivered]
    return arriving, [k if plan[k].again else plan[k].index for k in arriving]


def delays(plan: Sequence[Delivery]) -> list[float]:
    """How late each frame is done, in frame periods: one that takes long holds up those behind it."""
    late, found = 0.0, []
    for delivery in plan:
        late = max(delivery.extra_latency, late - 1.0)
        found.append(late)
    return found
