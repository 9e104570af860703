"""The demo road: a seeded drive as a forward camera on a vehicle sees it, 30 frames/s, 48 x 48 RGB.

Convention of seeds, kept by everything that uses the road: trips 0-999 train the demo model, 1000-1999
calibrate region maps, 2000 and up judge (tests, benchmarks). So nothing is judged on a road it was fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.sources.renderer import SIZE, Pixels, Renderer
from edge_monitor.sources.trip import CLASSES, FRAME_RATE_HZ, Trip
from edge_monitor.sources.world import WORLDS, World

__all__ = ["CLASSES", "FRAME_RATE_HZ", "SIZE", "WORLDS", "Image", "Road", "Scene", "read_out"]

Image = NDArray[np.uint8]

_BLACK_LEVEL = 0.012  # what the sensor answers in the dark, full scale = 1
_METER_TARGET = 0.38
_GAIN_RANGE = (0.25, 16.0)
_NORMAL = np.array([NormalDist().inv_cdf((k + 0.5) / 4096) for k in range(4096)], np.float32)


class Scene(msgspec.Struct, frozen=True, eq=False):
    """One frame of a drive.

    ``image`` (48, 48, 3) uint8 RGB; ``label`` index into `CLASSES`; ``speed_mps`` of the vehicle;
    ``exposure`` the camera's gain, 1 = a sunny day; ``t_capture_ns`` counts from 0 at the trip's start.
    """

    image: Image
    label: int
    speed_mps: float
    exposure: float
    index: int
    t_capture_ns: int


class Road:
    """Endless iterator of `Scene`, deterministic: same seed, same bytes.

    Parameters
    ----------
    seed : int
        Number of the trip; see the module's convention.
    world : int
        Index into `WORLDS`: which camera on which roads.

    Raises
    ------
    InputError
        The seed is negative, or there is no such world.
    """

    def __init__(self, seed: int, world: int = 0) -> None:
        if seed < 0:
            raise InputError("seed of the road", f"must be 0 or more, not {seed}")
        if not 0 <= world < len(WORLDS):
            raise InputError("world of the road", f"must be 0 ... {len(WORLDS) - 1}, not {world}")
        self._world = WORLDS[world]
        self._trip = Trip(seed, self._world)
        self._renderer = Renderer(seed, self._world)
        self._noise = self._world.rng(seed, 2)
        self._noise_again = self._world.rng(seed, 3)
        self._radiance = self._renderer.draw(self._trip)
        self._gain = _METER_TARGET / float(self._radiance.mean())
        self._metered = [_METER_TARGET, _METER_TARGET]
        self._index = -1

    def __iter__(self) -> Iterator[Scene]:
        return self

    def __next__(self) -> Scene:
        self._index += 1
        if self._index > 0:
            self._trip.step()
            self._radiance = self._renderer.draw(self._trip)
            self._adjust_exposure()
        return self._scene(self._noise)

    def render_again(self) -> Scene:
        """Give the last scene once more with fresh noise; the drive does not move on and does not notice."""
        return self._scene(self._noise_again)

    def _adjust_exposure(self) -> None:
        """Follow the metered level; the camera knows it two frames late, so it overshoots a little."""
        limit = self._world.exposure_step
        step = self._world.exposure_rate * log(_METER_TARGET / self._metered.pop(0))
        gain = self._gain * exp(min(limit, max(-limit, step)))
        self._gain = min(_GAIN_RANGE[1], max(_GAIN_RANGE[0], gain))
        seen = self._radiance[:, ::2, ::2] * self._gain
        np.minimum(seen, 1.0, out=seen)
        self._metered.append(float(np.add.reduce(seen, axis=None) / seen.size))

    def _scene(self, rng: np.random.Generator) -> Scene:
        trip, index = self._trip, self._index
        image = read_out(self._radiance * self._gain, self._gain, rng, self._world)
        t_ns = index * 1_000_000_000 // FRAME_RATE_HZ
        return Scene(image, trip.label, trip.speed_mps, self._gain, index, t_ns)


def read_out(signal: Pixels, gain: float, rng: np.random.Generator, camera: World = WORLDS[0]) -> Image:
    """Add the camera's shot and read noise and digitise.

    ``signal`` (3, H, W) float32 is light times ``gain``, full scale = 1; the answer is (H, W, 3) uint8.
    """
    draws = rng.bit_generator.random_raw(signal.size // 4).view(np.uint16) & (_NORMAL.size - 1)
    noise = _NORMAL.take(draws).reshape(signal.shape)
    noise *= np.sqrt(signal * (camera.shot_noise * gain) + camera.read_noise * camera.read_noise)
    noise += signal
    noise *= 255.0
    noise += 255.0 * _BLACK_LEVEL + 0.5
    levels = np.minimum(np.maximum(noise, 0.0, out=noise), 255.0, out=noise)
    return levels.transpose(1, 2, 0).astype(np.uint8, order="C")
