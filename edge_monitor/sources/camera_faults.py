"""Faults of a camera: small transformers of its images, composed by calling one on the other's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.sources.scenes import Image, read_out


class CameraFault(Protocol):
    """Call it with every image (H, W, 3) uint8, so it knows the past; it alters them while ``active``."""

    def __call__(self, image: Image, active: bool) -> Image: ...


class Freeze:
    """Repeats the last good image bit for bit; a camera frozen from the start holds its first image."""

    def __init__(self) -> None:
        self._held: Image | None = None

    def __call__(self, image: Image, active: bool) -> Image:
        if self._held is None or not active:
            self._held = image.copy()
        return self._held.copy()


class Blackout:
    """No light reaches the sensor, which still has its read noise: black, but no two frames are the same."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, image: Image, active: bool) -> Image:
        if not active:
            return image
        height, width, colours = image.shape
        return read_out(np.zeros((colours, height, width), np.float32), 1.0, self._rng)


_FAULTS: dict[str, Callable[[int], CameraFault]] = {"freeze": lambda _seed: Freeze(), "blackout": Blackout}
CAMERA_FAULTS = tuple(_FAULTS)
"""Names that `camera_fault` knows."""


def camera_fault(name: str, seed: int = 0) -> CameraFault:
    """Make a fault by name; the same seed gives the same noise.

    Raises
    ------
    InputError
        No fault has this name.
    """
    if name not in _FAULTS:
        raise InputError("camera fault", f"{name!r} is none of {', '.join(CAMERA_FAULTS)}")
    return _FAULTS[name](seed)
