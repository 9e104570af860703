"""Picture faults: what camera, lens, link or scene can do to a picture before the network sees it.

Pictures are planar (C, H, W) float32, 0..1 of the camera's full range; a vector of N values is (N, 1, 1).
Each fault has two variants, the drill's and another mechanism (`edge_monitor.offline.faults`); what each does
is said in ``picture_faults_sensor``, ``picture_faults_optics`` and ``picture_faults_colour``. Two faults at
once: one applied to the other's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.offline import picture_faults_colour as colour
from edge_monitor.offline import picture_faults_optics as optics
from edge_monitor.offline import picture_faults_sensor as sensor
from edge_monitor.offline.faults import VARIANTS, Amounts, amount_at, check_variant, make_rng
from edge_monitor.offline.picture_faults_sensor import Effect, Pixels, View

_SMALLEST = 4
"""Rows and columns that a fault with an extent in space needs."""


class _Kind(NamedTuple):
    """One variant: how much at which level, and what; ``holds``: it acts on the last good picture."""

    amounts: Amounts
    make: Callable[[View], Effect]
    holds: bool = False


_KINDS: dict[str, tuple[_Kind, _Kind]] = {
    "frozen exact": (
        _Kind((0.0, 1.0, 1.0, 1.0), sensor.hold, holds=True),
        _Kind((5.0, 15.0, 30.0, 60.0), sensor.renew_seldom),
    ),
    "frozen with noise": (
        _Kind((0.0, 0.006, 0.012, 0.024), sensor.hold_with_noise, holds=True),
        _Kind((0.0, 0.005, 0.012, 0.03), sensor.hold_with_uniform_noise, holds=True),
    ),
    "blackout": (
        _Kind((1.0, 0.15, 0.05, 0.0), sensor.blackout),
        _Kind((1.0, 0.2, 0.07, 0.01), sensor.light_leak),
    ),
    "flicker": (
        _Kind((0.0, 0.1, 0.25, 0.5), sensor.flicker),
        _Kind((0.0, 0.08, 0.2, 0.4), sensor.square_flicker),
    ),
    "exposure hunting": (
        _Kind((0.0, 0.2, 0.45, 0.9), sensor.hunting),
        _Kind((0.0, 0.2, 0.45, 0.8), sensor.hunting_by_ramps),
    ),
    "gaussian noise": (
        _Kind((0.0, 0.03, 0.07, 0.15), sensor.normal_noise),
        _Kind((0.0, 0.04, 0.08, 0.16), sensor.luminance_noise),
    ),
    "salt and pepper": (
        _Kind((0.0, 0.01, 0.04, 0.12), sensor.salt_and_pepper),
        _Kind((0.0, 0.015, 0.05, 0.15), sensor.random_impulses),
    ),
    "defocus": (
        _Kind((0.0, 0.01, 0.03, 0.07), optics.disc_blur),
        _Kind((0.0, 0.012, 0.024, 0.048), optics.gaussian_blur),
    ),
    "fog": (
        _Kind((0.0, 0.25, 0.5, 0.75), optics.even_veil),
        _Kind((0.0, 0.06, 0.16, 0.35), optics.depth_fog),
    ),
    "lens blob": (
        _Kind((0.0, 0.12, 0.2, 0.32), optics.dark_blob),
        _Kind((0.0, 0.15, 0.24, 0.38), optics.water_drop),
    ),
    "dead rows": (
        _Kind((0.0, 0.04, 0.12, 0.3), sensor.dead_rows),
        _Kind((0.0, 0.08, 0.18, 0.35), sensor.repeated_rows),
    ),
    "rolling band": (
        _Kind((0.0, 0.2, 0.4, 0.75), sensor.dark_band),
        _Kind((0.0, 0.04, 0.09, 0.18), sensor.wandering_stripes),
    ),
    "channel swap": (
        _Kind((0.0, 0.35, 0.65, 1.0), colour.channel_swap),
        _Kind((0.0, 0.35, 0.65, 1.0), colour.channel_rotation),
    ),
    "wrong normalisation": (
        _Kind((0.0, 0.25, 0.6, 1.2), colour.wrong_gain),
        _Kind((0.0, 0.25, 0.5, 0.9), colour.wrong_gain_by_channel),
    ),
    "camera shift": (
        _Kind((0.0, 0.04, 0.1, 0.2), optics.translation),
        _Kind((0.0, 4.0, 9.0, 18.0), optics.roll),
    ),
    "adversarial patch": (
        _Kind((0.0, 0.15, 0.25, 0.4), optics.random_patch),
        _Kind((0.0, 0.15, 0.25, 0.4), optics.checker_patch),
    ),
    "domain shift": (
        _Kind((0.0, 0.35, 0.65, 1.0), colour.night),
        _Kind((0.0, 0.3, 0.6, 1.0), colour.snow),
    ),
}

_EXTENDED = frozenset(
    {"defocus", "fog", "lens blob", "dead rows", "rolling band", "camera shift", "adversarial patch"}
)


class PictureFault:
    """One fault of one camera: call it with every picture in turn, those before the onset too (level 0).

    Made by `picture_fault`.
    """

    def __init__(self, name: str, kind: _Kind, rng: np.random.Generator, rate_hz: float) -> None:
        self._name, self._kind, self._rng, self._rate_hz = name, kind, rng, rate_hz
        self._shape: tuple[int, ...] = ()
        self._held: Pixels | None = None

    def __call__(self, picture: Pixels, level: float) -> Pixels:
        """Give the picture as it is with the fault.

        Parameters
        ----------
        picture : (C, H, W) float32
            0..1; it is not altered.
        level : float
            0 (no fault) to 3.

        Returns
        -------
        (C, H, W) float32
            At level 0 ``picture`` itself; else a new array in 0..1 on the camera's levels (`rounded`).

        Raises
        ------
        InputError
            The picture is not (C, H, W) float32, has another shape than the one before, or lacks what the
            fault needs: space, or several channels; or the level is outside 0..3.
        """
        if picture.shape != self._shape:
            self._start(picture)
        amount = amount_at(level, self._kind.amounts)
        if level == 0.0:
            if self._kind.holds:
                self._held = picture.copy()
            return picture
        seen = picture
        if self._kind.holds:
            if self._held is None:  # faulty from the start: the first picture is held
                self._held = picture.copy()
            seen = self._held
        out = self._effect(seen, amount)
        # What the effect left alone stays as it was, bit for bit, though no camera may have digitised it.
        return seen.copy() if out is seen else rounded(out)

    def _start(self, picture: Pixels) -> None:
        """Check the first picture and draw what stays the same."""
        if self._shape or picture.ndim != 3 or picture.dtype != np.float32:
            wanted = f"float32{self._shape}" if self._shape else "float32 (C, H, W)"
            self._refuse(f"pictures must be {wanted}, not {picture.dtype}{picture.shape}")
        channels, height, width = picture.shape
        if self._name in _EXTENDED and min(height, width) < _SMALLEST:
            self._refuse(f"needs {_SMALLEST} x {_SMALLEST} pixels or more, not shape {picture.shape}")
        if self._name == "channel swap" and channels < 2:
            self._refuse(f"needs two channels or more, not shape {picture.shape}")
        self._shape = picture.shape
        self._effect = self._kind.make(View(channels, height, width, self._rate_hz, self._rng))

    def _refuse(self, problem: str) -> None:
        raise InputError(f"picture fault {self._name!r}", problem)


def picture_fault(name: str, seed: int, variant: str = "drill", rate_hz: float = 30.0) -> PictureFault:
    """Make a picture fault; the same seed gives the same places, phases and noise.

    Parameters
    ----------
    name : str
        One of `edge_monitor.offline.faults.FAULTS` whose stage is the picture.
    seed : int
        0 or more.
    variant : {"drill", "other"}
        The mechanism.
    rate_hz : float
        Pictures per second; it gives periodic faults their frequency.

    Raises
    ------
    InputError
        No picture fault has this name, no such variant, a negative seed, or a rate that is not positive.
    """
    if name not in _KINDS:
        raise InputError("picture fault", f"{name!r} is none of {', '.join(_KINDS)}")
    check_variant(variant)
    if not 0.0 < rate_hz < np.inf:
        raise InputError("rate of the pictures", f"must be above 0 Hz, not {rate_hz}")
    return PictureFault(name, _KINDS[name][VARIANTS.index(variant)], make_rng(name, seed), rate_hz)


def rounded(picture: Pixels) -> Pixels:
    """Picture as a camera digitises it: clipped to 0..1, in steps of 1/255."""
    levels = np.clip(picture, 0.0, 1.0) * np.float32(255.0)
    return np.asarray(np.rint(levels) / 255.0, np.float32)
