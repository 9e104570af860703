"""Picture faults of colour and preprocessing, and a changed world: each function makes one effect.

What an effect is, `edge_monitor.offline.picture_faults_sensor` says.
"""

from __future__ import annotations

import numpy as np

from edge_monitor.offline.picture_faults_sensor import Effect, Pixels, View


def night(view: View) -> Effect:
    """Mix in the share ``amount`` of a night view: dark, steep, tinted, noisy."""
    tint = view.rng.uniform(0.3, 0.6, (view.channels, 1, 1)).astype(np.float32)

    def effect(picture: Pixels, amount: float) -> Pixels:
        dark = tint * picture ** np.float32(1.8) + 0.025 * view.noise(view.channels)
        return np.asarray((1.0 - amount) * picture + amount * dark, np.float32)

    return effect


def snow(view: View) -> Effect:
    """Whiten the ground by the share ``amount``, turn the hues of three-colour pictures, let flakes fall."""
    ground = np.linspace(0.5, 1.2, view.height, dtype=np.float32)[:, None]
    sign = view.rng.choice([-1.0, 1.0])

    def effect(picture: Pixels, amount: float) -> Pixels:
        turned = picture
        if view.channels == 3:
            turned = np.einsum("ij,jhw->ihw", _hue_rotation(sign * amount * 0.8), picture)
        share = np.minimum(0.75 * amount * ground, 1.0)
        white = 0.65 + 0.35 * picture.mean(axis=0, keepdims=True)
        out = (1.0 - share) * turned + share * white
        return np.where(view.rng.random(view.pixels()) < 0.03 * amount, np.float32(0.97), out)

    return effect


def channel_swap(_view: View) -> Effect:
    """Mix in the share ``amount`` of the picture with its channels in reverse: RGB read as BGR."""
    return lambda picture, amount: (1.0 - amount) * picture + amount * picture[::-1]


def channel_rotation(view: View) -> Effect:
    """Mix in the share ``amount`` of the picture with its channels moved on by one: a mosaic out of step."""
    step = view.rng.choice([-1, 1])
    return lambda picture, amount: (1.0 - amount) * picture + amount * np.roll(picture, step, axis=0)


def wrong_gain(view: View) -> Effect:
    """Multiply by 1 + ``amount`` or divide by it, and move: wrong mean and deviation."""
    raises, move = view.rng.random() < 0.5, view.rng.uniform(0.1, 0.2)

    def effect(picture: Pixels, amount: float) -> Pixels:
        if raises:
            return picture * np.float32(1.0 + amount) - np.float32(amount * move)
        return picture / np.float32(1.0 + amount) + np.float32(amount * move)

    return effect


def wrong_gain_by_channel(view: View) -> Effect:
    """Gain and offset wrong in each channel by itself: the constants of another data set."""
    gain = view.rng.uniform(0.3, 0.7, (view.channels, 1, 1)) * view.rng.choice(
        [-1.0, 1.0], (view.channels, 1, 1)
    )
    move = view.rng.uniform(-0.15, 0.15, (view.channels, 1, 1))

    def effect(picture: Pixels, amount: float) -> Pixels:
        return np.asarray(picture * np.exp(amount * gain) + amount * move, np.float32)

    return effect


def _hue_rotation(angle: float) -> Pixels:
    """Rotation (3, 3) of colours about the grey axis [Rodrigues' formula]."""
    c, s = np.cos(angle), np.sin(angle) / np.sqrt(3.0)
    cross = np.array([[0.0, -s, s], [s, 0.0, -s], [-s, s, 0.0]])
    return np.asarray(c * np.eye(3) + cross + (1.0 - c) / 3.0, np.float32)
