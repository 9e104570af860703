"""Causes of the flags in words: what is unusual, and where."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_monitor.findings import Findings
from edge_monitor.types import BANDS, TapSpec


def _always(text: str) -> Callable[[Findings], str]:
    """Return an explanation that needs no findings."""
    return lambda _: text


explain_shift = _always("the picture changes more than it does between scenes")
explain_stall = _always("the vehicle drives and the scene stands still")
explain_jump = _always("the whole scene was displaced from one frame to the next")
explain_fault = _always("all findings together are those of a fault")


def explain_line(f: Findings) -> str:
    if f.bands is None:
        return "a layer's level swings at one frequency"
    return f"the level of {f.taps[int(np.nanargmax(f.bands.line))].name} swings at one frequency"


def explain_input(f: Findings) -> str:
    if f.regions is None:
        return "the picture is unusual"
    z = f.regions.z[: f.taps[0].n_voxels]
    # The level is that of what the model sees: with a mean subtracted, black may lie far from 0.
    level = "lower" if np.nansum(z) < 0 else "higher"
    return f"the input's level is {level} than it ever was in calibration"


def explain_spatial(f: Findings) -> str:
    if f.regions is None or f.regions.worst is None:
        return "layer densities are unusual"
    tap, place = locate(f.taps, f.regions.worst)
    return f"density of {tap.name} {list(place)} is unusual"


def explain_temporal(f: Findings) -> str:
    if f.bands is None:
        return "band powers are unusual"
    z = np.nan_to_num(np.abs(f.bands.z), nan=-1.0)
    tap, band = divmod(int(z.argmax()), len(BANDS))
    return f"{BANDS[band]} power of {f.taps[tap].name} is unusual"


def explain_output(f: Findings) -> str:
    entropy = f.vitals.entropy if f.vitals else None
    return "the model is unsure" if entropy is None else f"the model is unsure, entropy {entropy:.2f} nats"


def explain_residual(f: Findings) -> str:
    if f.connectivity is None or f.connectivity.root is None:
        return "a layer does not follow from the one before it"
    tap, place = locate(f.taps, f.connectivity.root)
    under = int(f.connectivity.under.sum())
    others = f"; alarms of later layers under it: {under}" if under else ""
    picture = "; the picture is out of its range" if f.connectivity.residual[0] >= 1.0 else ""
    return f"{tap.name} {list(place)} does not follow from what drives it{others}{picture}"


def explain_tract(f: Findings) -> str:
    if f.connectivity is None or f.connectivity.weakest is None:
        return "a tract carries less than it should"
    (source, g), (target, h) = (locate(f.taps, voxel) for voxel in f.connectivity.weakest)
    return f"{source.name} {list(g)} is active and hardly drives {target.name} {list(h)}"


def likely(f: Findings) -> str:
    """Words about the likely fault, as far as there is a head that knows.

    No words while the picture repeats bit for bit: that is known, and all the head has seen of it is a
    change that ends.
    """
    guess = f.guess
    if guess is None or guess.score is None or (f.vitals is not None and f.vitals.repeated):
        return ""
    if guess.name is None or guess.score < 0.0:
        return "; fault unknown"
    return f"; looks like {guess.name} ({guess.confidence:.0%})"


def locate(taps: tuple[TapSpec, ...], voxel: int) -> tuple[TapSpec, tuple[int, int, int]]:
    """Tap of a voxel, and the voxel's (channel group, row, column) in that tap's grid."""
    for tap in taps:
        if voxel < tap.n_voxels:
            _, rows, columns = tap.grid
            return tap, (voxel // (rows * columns), voxel // columns % rows, voxel % columns)
        voxel -= tap.n_voxels
    raise IndexError(voxel)
