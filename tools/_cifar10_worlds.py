"""Where pictures come from: CIFAR-10 images under a moving camera, or the demo road when there are none.

Each world has two splits that share nothing. ``CALIBRATE`` teaches: baselines, impact, typical states of a
condition. ``JUDGE`` is only measured on. Everything in a split follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import _study_games as games
import numpy as np
from _cifar10_stream import CORRUPTIONS, FRAMES_PER_IMAGE, Picture, pan_and_zoom, sensor, stand_still
from numpy.typing import NDArray

from edge_monitor.sources.scenes import Road

CALIBRATE, JUDGE = 0, 1
STREAM = 0
"""Number of the long recording; the short clips of a split count from 1."""

# What a generator decides, the last word of its seed; 0 would be the same as no word at all.
_WHICH, _PATH, _FAULT, _SENSOR, _STILLS = 1, 2, 3, 4, 5

_TRIPS = (1000, 2000)
"""First trip of the road's splits (edge_monitor/sources/scenes.py)."""
MAX_SEEDS, _TRIPS_PER_SEED = 10, 100
_STILLS_TRIP, _STILLS_STRIDE = 99, 20
_MAX_WAIT = 300  # frames after which the vehicle of a still clip stops


class World(Protocol):
    """A model and a source of pictures for it."""

    name: str
    model: Path

    def moving(self, split: int, seed: int, clip: int, n_frames: int) -> Iterator[Picture]:
        """Pictures of a camera in motion."""

    def still(self, split: int, seed: int, clip: int, n_frames: int) -> Iterator[Picture]:
        """Pictures of a camera that stands."""

    def stills(self, split: int, seed: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Unrelated model inputs (n, 3, H, W) and their labels (n,)."""


class ImageWorld:
    """A camera over images.

    Parameters
    ----------
    name : str
    model : Path
    calibrate, judge : (images (n, 3, H, W) float32 in 0 ... 255, labels (n,) int64)
        The two splits.
    """

    def __init__(
        self,
        name: str,
        model: Path,
        calibrate: tuple[NDArray[np.float32], NDArray[np.int64]],
        judge: tuple[NDArray[np.float32], NDArray[np.int64]],
    ) -> None:
        self.name, self.model, self._splits = name, model, (calibrate, judge)

    def places(self, split: int, seed: int, clip: int, n: int) -> NDArray[np.int64]:
        """Which images of a split a clip shows, in their order; none twice as long as there are enough."""
        total = len(self._splits[split][0])
        order = np.random.default_rng([seed, split, clip, _WHICH]).permutation(total)
        return np.resize(order, n)

    def moving(self, split: int, seed: int, clip: int, n_frames: int) -> Iterator[Picture]:
        chosen = self.places(split, seed, clip, -(-n_frames // FRAMES_PER_IMAGE))
        rng = np.random.default_rng([seed, split, clip, _PATH])
        return islice(pan_and_zoom(self._splits[split][0][chosen], rng), n_frames)

    def still(self, split: int, seed: int, clip: int, n_frames: int) -> Iterator[Picture]:
        chosen = self.places(split, seed, clip, 1)[0]
        rng = np.random.default_rng([seed, split, clip, _PATH])
        return stand_still(self._splits[split][0][chosen], n_frames, rng)

    def stills(self, split: int, seed: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images, labels = self._splits[split]
        chosen = np.sort(np.random.default_rng([seed, split, STREAM, _STILLS]).permutation(len(images))[:n])
        return images[chosen], labels[chosen]


class RoadWorld:
    """The demo model on its road: a drive, and a vehicle that stopped somewhere on it."""

    name = "the demo model on the demo road"
    model = games.DEMO

    def moving(self, split: int, seed: int, clip: int, n_frames: int) -> Iterator[Picture]:
        for scene in islice(self._road(split, seed, clip), n_frames):
            yield scene.image.transpose(2, 0, 1).astype(np.float64)

    def still(self, split: int, seed: int, clip: int, n_frames: int) -> Iterator[Picture]:
        road = self._road(split, seed, clip)
        wait = np.random.default_rng([seed, split, clip, _PATH]).integers(_MAX_WAIT)
        for _ in range(wait + 1):
            next(road)
        for _ in range(n_frames):
            yield road.render_again().image.transpose(2, 0, 1).astype(np.float64)

    def stills(self, split: int, seed: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        road = self._road(split, seed, _STILLS_TRIP)
        scenes = list(islice(road, 0, n * _STILLS_STRIDE, _STILLS_STRIDE))
        images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes]).astype(np.float32)
        return images, np.array([scene.label for scene in scenes], np.int64)

    def _road(self, split: int, seed: int, clip: int) -> Road:
        return Road(_TRIPS[split] + seed * _TRIPS_PER_SEED + clip)


def find_world() -> World:
    """Return ResNet8 on CIFAR-10 if both are there, else the demo road."""
    if games.missing_data():
        return RoadWorld()
    calibrate, judge = games.cifar10(games.CALIBRATION), games.cifar10(games.TEST)
    return ImageWorld("ResNet8 on CIFAR-10", games.RESNET8, calibrate, judge)


def frames(
    world: World, condition: str, split: int, seed: int, clip: int, n_frames: int
) -> Iterator[NDArray[np.float32]]:
    """Model inputs of one clip in one condition.

    The active clip and its corruptions show the same pictures, so that only the corruption differs.
    """
    view = world.still if condition == "idle" else world.moving
    pictures = view(split, seed, clip, n_frames)
    if condition in CORRUPTIONS:
        pictures = CORRUPTIONS[condition](pictures, np.random.default_rng([seed, split, clip, _FAULT]))
    return sensor(pictures, np.random.default_rng([seed, split, clip, _SENSOR]))
