"""Picture faults of sensor, exposure and link: each function makes one effect for pictures of one shape.

An effect maps a picture (C, H, W) in 0..1 and an amount to another picture, which may leave 0..1. It has
drawn what stays the same for the whole fault (places, phases) when it is made; fresh noise it draws with
every picture.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Effect = Callable[[Pixels, float], Pixels]

_READ_NOISE = 0.006
_BLACK_LEVEL = 0.012


class View(NamedTuple):
    """What an effect is made for: shape of the pictures, their rate, and its random numbers."""

    channels: int
    height: int
    width: int
    rate_hz: float
    rng: np.random.Generator

    def noise(self, channels: int) -> Pixels:
        """Draw standard normal noise (channels, H, W)."""
        return self.rng.standard_normal((channels, self.height, self.width), np.float32)

    def pixels(self) -> tuple[int, int, int]:
        """Shape of what differs by pixel; of a vector, which has a single one, by component."""
        return (1, self.height, self.width) if self.height * self.width > 1 else (self.channels, 1, 1)


def hold(_view: View) -> Effect:
    """Show the held picture, bit for bit."""
    return lambda held, _amount: held


def renew_seldom(_view: View) -> Effect:
    """Grab a picture and repeat it bit for bit, ``amount`` frames long: the driver hands out one buffer."""
    held: list[Pixels] = []

    def effect(picture: Pixels, amount: float) -> Pixels:
        if len(held) == 0 or len(held) > round(amount):
            held[:] = [picture.copy()]
        else:
            held.append(held[0])
        return held[0]

    return effect


def hold_with_noise(view: View) -> Effect:
    """Held picture with fresh normal noise, standard deviation ``amount``."""
    return lambda held, amount: held + amount * view.noise(view.channels)


def hold_with_uniform_noise(view: View) -> Effect:
    """Held picture with fresh uniform noise of the same strength, equal in all channels of a pixel."""

    def effect(held: Pixels, amount: float) -> Pixels:
        reach = amount * np.sqrt(3.0)
        return held + view.rng.uniform(-reach, reach, view.pixels()).astype(np.float32)

    return effect


def blackout(view: View) -> Effect:
    """Leave the share ``amount`` of the light: a closed iris; black level and read noise stay."""

    def effect(picture: Pixels, amount: float) -> Pixels:
        dark = _BLACK_LEVEL + _READ_NOISE * view.noise(view.channels)
        return amount * picture + (1.0 - amount) * dark

    return effect


def light_leak(view: View) -> Effect:
    """Cover the lens: the share ``amount`` of the light leaks in at one side; hot pixels glow."""
    slope = np.linspace(0.3, 1.7, view.width, dtype=np.float32)[:: view.rng.choice([-1, 1])]
    hot = np.where(view.rng.random(view.pixels()) < 0.01, 0.15, 0.0).astype(np.float32)

    def effect(picture: Pixels, amount: float) -> Pixels:
        noise = view.rng.uniform(0.0, 0.03, picture.shape).astype(np.float32)
        leak = amount + (slope - 1.0) * min(amount, 1.0 - amount)
        return leak * picture + (1.0 - amount) * (hot + noise)

    return effect


def flicker(view: View) -> Effect:
    """Exposure swings as a sine of 4 to 12 Hz, by the share ``amount``: mains against the frame rate."""
    frequency, phase, clock = view.rng.uniform(4.0, 12.0), view.rng.uniform(0.0, 2.0 * np.pi), count()

    def effect(picture: Pixels, amount: float) -> Pixels:
        swing = np.sin(2.0 * np.pi * frequency * next(clock) / view.rate_hz + phase)
        return picture * np.float32(1.0 + amount * swing)

    return effect


def square_flicker(view: View) -> Effect:
    """Exposure jumps up and down at 3 to 9 Hz, by the share ``amount``: a lamp with a loose contact."""
    frequency, phase, clock = view.rng.uniform(3.0, 9.0), view.rng.random(), count()
    bright = view.rng.uniform(0.35, 0.65)

    def effect(picture: Pixels, amount: float) -> Pixels:
        turn = (frequency * next(clock) / view.rate_hz + phase) % 1.0
        return picture * np.float32(1.0 + amount if turn < bright else 1.0 - amount)

    return effect


def hunting(view: View) -> Effect:
    """Log gain swings as a sine of 0.3 to 2 Hz and height ``amount``: an exposure loop near instability."""
    frequency, phase, clock = view.rng.uniform(0.3, 2.0), view.rng.uniform(0.0, 2.0 * np.pi), count()

    def effect(picture: Pixels, amount: float) -> Pixels:
        swing = np.sin(2.0 * np.pi * frequency * next(clock) / view.rate_hz + phase)
        return picture * np.float32(np.exp(amount * swing))

    return effect


def hunting_by_ramps(view: View) -> Effect:
    """Gain climbs and falls steadily, 0.3 to 2 Hz, by the share ``amount``: a loop with a dead zone."""
    frequency, phase, clock = view.rng.uniform(0.3, 2.0), view.rng.random(), count()
    turning = view.rng.uniform(0.25, 0.75)

    def effect(picture: Pixels, amount: float) -> Pixels:
        turn = (frequency * next(clock) / view.rate_hz + phase) % 1.0
        climb = turn / turning if turn < turning else (1.0 - turn) / (1.0 - turning)
        return picture * np.float32(1.0 + amount * (2.0 * climb - 1.0))

    return effect


def normal_noise(view: View) -> Effect:
    """Add normal noise of standard deviation ``amount``, every channel apart: gain noise of a hot sensor."""
    return lambda picture, amount: picture + amount * view.noise(view.channels)


def luminance_noise(view: View) -> Effect:
    """Uniform noise, equal in all channels of a pixel, variance rising with the light: photon noise."""

    def effect(picture: Pixels, amount: float) -> Pixels:
        light = picture.mean(axis=0, keepdims=True)
        draws = view.rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), view.pixels()).astype(np.float32)
        return np.asarray(picture + amount * np.sqrt(0.3 + 1.4 * light) * draws, np.float32)

    return effect


def salt_and_pepper(view: View) -> Effect:
    """Turn a share ``amount`` of the pixels, anew in every picture, black or white: lost bits on the link."""

    def effect(picture: Pixels, amount: float) -> Pixels:
        draws = view.rng.random(view.pixels())
        return np.where(draws < amount, np.float32(draws < 0.5 * amount), picture)

    return effect


def random_impulses(view: View) -> Effect:
    """Replace a share ``amount`` of the colour values by random ones: lost bits before demosaicking."""

    def effect(picture: Pixels, amount: float) -> Pixels:
        hit = view.rng.random(picture.shape) < amount
        return np.where(hit, view.rng.random(picture.shape, np.float32), picture)

    return effect


def dead_rows(view: View) -> Effect:
    """Blacken a share ``amount`` of the rows, scattered: row drivers of the sensor that failed."""
    order = view.rng.permutation(view.height)

    def effect(picture: Pixels, amount: float) -> Pixels:
        out = picture.copy()
        out[:, order[: round(amount * view.height)]] = 0.0
        return out

    return effect


def repeated_rows(view: View) -> Effect:
    """Let a run of rows, a share ``amount`` of all, repeat one row or stick bright: a stuck row counter."""
    middle, bright = view.rng.uniform(0.3, 0.7) * view.height, view.rng.random() < 0.5

    def effect(picture: Pixels, amount: float) -> Pixels:
        n = round(amount * view.height)
        first = min(max(round(middle - n / 2), 0), view.height - n)
        out = picture.copy()
        out[:, first : first + n] = 0.95 if bright else picture[:, first : first + 1]
        return out

    return effect


def dark_band(view: View) -> Effect:
    """Darken a soft band by the share ``amount``; it wanders down: rolling shutter under pulsing light."""
    speed, start, clock = view.rng.uniform(0.2, 0.8), view.rng.random(), count()
    rows = (np.arange(view.height) + 0.5) / view.height

    def effect(picture: Pixels, amount: float) -> Pixels:
        far = (rows - start - speed * next(clock) / view.rate_hz + 0.5) % 1.0 - 0.5
        band = np.where(np.abs(far) < 0.2, 0.5 + 0.5 * np.cos(np.pi * far / 0.2), 0.0)
        return picture * (1.0 - amount * band).astype(np.float32)[:, None]

    return effect


def wandering_stripes(view: View) -> Effect:
    """Add 2 to 4 light and dark stripes that wander up, ``amount`` high: a hum in the sensor's supply."""
    stripes, speed = view.rng.uniform(2.0, 4.0), view.rng.uniform(0.3, 1.5)
    clock, rows = count(), (np.arange(view.height) + 0.5) / view.height

    def effect(picture: Pixels, amount: float) -> Pixels:
        turns = stripes * rows + speed * next(clock) / view.rate_hz
        return picture + (amount * np.sin(2.0 * np.pi * turns)).astype(np.float32)[:, None]

    return effect
