"""Picture faults of lens, mount and view: each function makes one effect for pictures of one shape.

What an effect is, `edge_monitor.offline.picture_faults_sensor` says. Noise arises in the sensor, behind the
lens: where an effect takes away noise with the light, fresh noise comes in its place, because a picture
without noise would give the injector away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edge_monitor.offline.picture_faults_sensor import Effect, Pixels, View

_NOISE = 0.01
"""Standard deviation of an ordinary camera's noise."""


def disc_blur(view: View) -> Effect:
    """Spread every pixel by ``amount`` x the shorter side to a disc: the circle of confusion."""
    side = min(view.height, view.width)

    def effect(picture: Pixels, amount: float) -> Pixels:
        radius = 0.5 + amount * side  # a sharp point fills a pixel
        reach = int(np.ceil(radius))
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disc = np.clip(radius + 0.5 - np.hypot(y, x), 0.0, 1.0)
        disc /= disc.sum()
        blurred = _each_channel(ndimage.convolve, picture, weights=disc, mode="nearest")
        return _with_noise(view, blurred, float(np.linalg.norm(disc)))

    return effect


def gaussian_blur(view: View) -> Effect:
    """Blur by a Gaussian bell of ``amount`` x the shorter side, each colour a little differently."""
    stretch = view.rng.uniform(0.7, 1.4, view.channels) * min(view.height, view.width)

    def effect(picture: Pixels, amount: float) -> Pixels:
        sigmas = np.maximum(amount * stretch, 1e-6)
        channels = zip(picture, sigmas, strict=True)
        blurred = np.stack([ndimage.gaussian_filter(channel, sigma) for channel, sigma in channels])
        # Root of the bell's integrated square, as `disc_blur` has it of its disc.
        kept = np.minimum(1.0, 1.0 / (2.0 * np.sqrt(np.pi) * sigmas))
        return _with_noise(view, blurred, kept[:, None, None])

    return effect


def even_veil(view: View) -> Effect:
    """Mix in the share ``amount`` of one grey: condensation on the lens, or dense fog close by."""
    grey = view.rng.uniform(0.65, 0.85)

    def effect(picture: Pixels, amount: float) -> Pixels:
        return _with_noise(view, (1.0 - amount) * picture + np.float32(amount * grey), 1.0 - amount)

    return effect


def depth_fog(view: View) -> Effect:
    """Fog by distance: clear at the lower edge, densest at the horizon and above it.

    Transmission is exp(-``amount`` x distance) [Koschmieder 1924], distance on a plane running as
    1 / (rows below the horizon).
    """
    horizon = view.rng.uniform(0.35, 0.5)
    below = np.maximum((np.arange(view.height) + 0.5) / view.height - horizon, 0.04)
    distance = (0.25 / below)[:, None]
    light = view.rng.uniform(0.7, 0.95, (view.channels, 1, 1)) * 0.3 + 0.6

    def effect(picture: Pixels, amount: float) -> Pixels:
        passed = np.exp(-amount * distance)
        return _with_noise(view, passed * picture + (1.0 - passed) * light, passed)

    return effect


def dark_blob(view: View) -> Effect:
    """Darken a soft disc of radius ``amount`` x the shorter side: mud on the lens."""
    far, _ = _around_spot(view)

    def effect(picture: Pixels, amount: float) -> Pixels:
        passed = 1.0 - 0.9 * _soft_inside(far, amount)
        return _with_noise(view, passed * picture, passed)

    return effect


def water_drop(view: View) -> Effect:
    """Smear and brighten an irregular spot of mean radius ``amount`` x the shorter side: a drop of water."""
    far, angle = _around_spot(view)
    for waves in (2, 3, 5):
        far *= 1.0 + view.rng.uniform(0.05, 0.2) * np.sin(waves * angle + view.rng.uniform(0.0, 2.0 * np.pi))
    smear = max(3, min(view.height, view.width) // 4)

    def effect(picture: Pixels, amount: float) -> Pixels:
        share = 0.8 * _soft_inside(far, amount)
        inside = _each_channel(ndimage.uniform_filter, picture[:, ::-1], size=smear, mode="nearest")
        return _with_noise(view, (1.0 - share) * picture + share * (0.75 * inside + 0.25), 1.0 - share)

    return effect


def translation(view: View) -> Effect:
    """Move the picture by ``amount`` x its width, in whole pixels: halves would blur. Edges are mirrored."""
    angle = view.rng.uniform(0.0, 2.0 * np.pi)
    way = np.array([np.sin(angle), np.cos(angle)]) * view.width

    def effect(picture: Pixels, amount: float) -> Pixels:
        return _each_channel(ndimage.shift, picture, shift=np.rint(amount * way), order=0, mode="mirror")

    return effect


def roll(view: View) -> Effect:
    """Turn the picture by ``amount`` degrees about a point near its lower edge; edges are mirrored."""
    sign = view.rng.choice([-1.0, 1.0])
    centre = np.array([0.9 * view.height, view.rng.uniform(0.3, 0.7) * view.width])

    def effect(picture: Pixels, amount: float) -> Pixels:
        angle = np.deg2rad(sign * amount)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        offset = centre - turn @ centre
        return _each_channel(
            ndimage.affine_transform, picture, matrix=turn, offset=offset, order=0, mode="mirror"
        )

    return effect


def random_patch(view: View) -> Effect:
    """Put a square of random cells, each colour black or full, into the picture; side ``amount``."""
    cells = view.rng.integers(0, 2, (view.channels, 12, 12)).astype(np.float32)
    return _patch(view, cells)


def checker_patch(view: View) -> Effect:
    """Put a checker of two saturated colours into the picture; side ``amount`` x the shorter side."""
    board = np.indices((6, 6)).sum(axis=0) % 2 == 0
    colour = view.rng.uniform(0.0, 0.25, (view.channels, 1, 1))
    colour[view.rng.integers(view.channels)] = 1.0
    return _patch(view, np.where(board, colour, 1.0 - colour).astype(np.float32))


def _each_channel(function: Callable[..., Any], picture: Pixels, **options: object) -> Pixels:
    """Apply a function of `scipy.ndimage` to every channel."""
    return np.stack([function(channel, **options) for channel in picture])


def _with_noise(view: View, picture: NDArray[Any], kept: float | NDArray[Any]) -> Pixels:
    """Picture of which the sensor's noise was scaled by ``kept``, with noise as strong as before."""
    lost = _NOISE * np.sqrt(np.maximum(1.0 - np.square(kept), 0.0))
    return np.asarray(picture + lost * view.noise(view.channels), np.float32)


def _around_spot(view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance, in units of the shorter side, and direction (H, W) of every pixel from a random spot."""
    y = np.arange(view.height)[:, None] - view.rng.uniform(0.25, 0.75) * view.height
    x = np.arange(view.width) - view.rng.uniform(0.25, 0.75) * view.width
    return np.asarray(np.hypot(y, x)) / min(view.height, view.width), np.arctan2(y, x)


def _soft_inside(far: NDArray[np.float64], radius: float) -> Pixels:
    """1 inside, 0 outside, over an edge a third of the radius wide."""
    edge = radius / 3.0
    return np.clip((radius + 0.5 * edge - far) / max(edge, 1e-6), 0.0, 1.0).astype(np.float32)


def _patch(view: View, cells: Pixels) -> Effect:
    """Show the cells as a square of side ``amount`` x the shorter side around a random spot."""
    spot = view.rng.uniform(0.3, 0.7, 2)

    def effect(picture: Pixels, amount: float) -> Pixels:
        side = round(amount * min(view.height, view.width))
        grid = np.arange(side) * cells.shape[1] // max(side, 1)
        top = min(max(round(spot[0] * view.height - side / 2), 0), view.height - side)
        left = min(max(round(spot[1] * view.width - side / 2), 0), view.width - side)
        out = picture.copy()
        out[:, top : top + side, left : left + side] = cells[:, grid][:, :, grid]
        return out

    return effect
