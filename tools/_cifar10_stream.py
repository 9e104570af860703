"""A camera that pans and zooms over unrelated images, and what can be wrong with its pictures.

A picture is (3, H, W) float64 in 0 ... 255, before the sensor; what the model sees has the sensor's noise,
also when the camera stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Picture = NDArray[np.float64]

FRAME_RATE_HZ = 30.0
FRAMES_PER_IMAGE = 60
FADE_FRAMES = 15
"""The last frames of an image, over which the next one fades in."""
ZOOM = (1.0, 1.6)
PAN_PX = 4.0
"""The camera looks at most so far beside the middle; what lies beyond the image repeats its edge."""

SENSOR_NOISE = 2.0
CORRUPTION_NOISE = 40.0
BLACKOUT_CHANCE, BLACKOUT_FRAMES = 0.08, 4
HANG_FRAMES = (15, 45)


def camera_path(n_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth way through random poses, one for each image.

    Returns (n_frames, 3): shift down and right in pixels of the image, and zoom.
    """
    times = np.arange(-(-n_frames // FRAMES_PER_IMAGE) + 1) * FRAMES_PER_IMAGE
    shifts = rng.uniform(-PAN_PX, PAN_PX, (times.size, 2))
    zooms = rng.uniform(*ZOOM, (times.size, 1))
    return PchipInterpolator(times, np.hstack([shifts, zooms]))(np.arange(n_frames))


def look(image: Picture, pose: NDArray[np.float64]) -> Picture:
    """Crop of the image's own size around a shifted middle, bilinear between pixels, edges repeated."""
    down, right, zoom = pose
    rows, columns = (
        _between_pixels(size, shift, zoom) for size, shift in zip(image.shape[1:], (down, right), strict=True)
    )
    return rows @ image @ columns.T


def _between_pixels(size: int, shift: float, zoom: float) -> NDArray[np.float64]:
    """Weights (size, size) of the source pixels: a hat of width one around where each pixel looks."""
    middle = (size - 1) / 2
    places = np.clip(middle + shift + (np.arange(size) - middle) / zoom, 0, size - 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(size)))


def pan_and_zoom(images: NDArray[np.float32], rng: np.random.Generator) -> Iterator[Picture]:
    """Yield `FRAMES_PER_IMAGE` pictures of each image (n, 3, H, W), one image fading into the next."""
    for t, pose in enumerate(camera_path(len(images) * FRAMES_PER_IMAGE, rng)):
        shown, frame = divmod(t, FRAMES_PER_IMAGE)
        share = max(0, frame - (FRAMES_PER_IMAGE - FADE_FRAMES) + 1) / (FADE_FRAMES + 1)
        following = images[min(shown + 1, len(images) - 1)]
        yield look((1 - share) * images[shown] + share * following, pose)


def stand_still(image: NDArray[np.float32], n_frames: int, rng: np.random.Generator) -> Iterator[Picture]:
    """Yield the same picture of one image, from a random pose."""
    picture = look(image.astype(np.float64), camera_path(1, rng)[0])
    for _ in range(n_frames):
        yield picture


def noisy(pictures: Iterator[Picture], rng: np.random.Generator) -> Iterator[Picture]:
    """Add strong Gaussian noise."""
    for picture in pictures:
        yield picture + rng.normal(0, CORRUPTION_NOISE, picture.shape)


def flickering(pictures: Iterator[Picture], rng: np.random.Generator) -> Iterator[Picture]:
    """Go black for one to `BLACKOUT_FRAMES` frames, again and again at random."""
    black = 0
    for picture in pictures:
        if black == 0 and rng.random() < BLACKOUT_CHANCE:
            black = int(rng.integers(1, BLACKOUT_FRAMES + 1))
        yield np.zeros_like(picture) if black else picture
        black = max(0, black - 1)


def hanging(pictures: Iterator[Picture], rng: np.random.Generator) -> Iterator[Picture]:
    """Freeze and go on in turns; each lasts `HANG_FRAMES`, and the picture jumps when it goes on."""
    frozen, left, held = True, 0, None
    for picture in pictures:
        if left == 0:
            frozen, left, held = not frozen, int(rng.integers(*HANG_FRAMES, endpoint=True)), picture
        left -= 1
        yield held if frozen else picture


CORRUPTIONS: dict[str, Callable[[Iterator[Picture], np.random.Generator], Iterator[Picture]]] = {
    "noise": noisy,
    "flicker": flickering,
    "hanging": hanging,
}
CONDITIONS = ("idle", "active", *CORRUPTIONS)
"""A still camera, a moving one, and the moving one with its pictures corrupted."""


def sensor(pictures: Iterator[Picture], rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Model inputs, (1, 3, H, W) float32 in 0 ... 255: pictures with the sensor's noise."""
    for picture in pictures:
        noise = rng.normal(0, SENSOR_NOISE, picture.shape)
        yield np.clip(picture + noise, 0, 255).astype(np.float32)[None]
