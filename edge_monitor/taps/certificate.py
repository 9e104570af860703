"""Start-up checks of a tapped model: does it answer as before, do its taps read as recorded (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.region_map import Golden
from edge_monitor.types import FloatArray, TapSpec

RELATIVE_TOLERANCE = 1e-5
"""Difference of answers that is tolerated when no map says it, relative to the largest answer above 1."""

SELF_TEST_TOLERANCE = 1e-3
"""Difference to the recording that is tolerated, relative to a tap's mean signal or the largest answer."""

_RANDOM_FRAMES, _RANDOM_SEED = 4, 0


class Certificate(msgspec.Struct, frozen=True):
    """Whether the tapped model answers as the untapped one does.

    ``max_difference``: largest absolute difference over all outputs of ``frames`` frames; infinite
    where one answer is a number and the other is not. ``passed``: it is at most ``tolerance``.
    """

    max_difference: float
    tolerance: float
    frames: int
    passed: bool


def golden_frames(
    shape: tuple[int, ...], golden: Golden | None, span: tuple[float, float] = (0.0, 1.0)
) -> NDArray[np.float32]:
    """Frames to check on, (n, ...): the map's, or four seeded random ones.

    Parameters
    ----------
    shape : tuple of int
        Of the model's input, without the batch axis.
    golden : Golden or None
        The map's.
    span : (float, float)
        Least and largest value of a random frame.

    Raises
    ------
    MapError
        The golden frames do not have the shape of the model's input.
    """
    if golden is None:
        generator = np.random.default_rng(_RANDOM_SEED)
        low, high = (np.float32(end) for end in span)
        frames: NDArray[np.float32] = generator.random((_RANDOM_FRAMES, *shape), dtype=np.float32)
        frames = low + (high - low) * frames
    else:
        frames = golden.frames.astype(np.float32)
    if len(frames) == 0 or frames.shape[1:] != shape:
        raise MapError("golden.frames", f"shape is {frames.shape}, the model's input is {shape}")
    return frames


def certify(
    untapped: Sequence[Sequence[NDArray[Any]]],
    tapped: Sequence[Sequence[NDArray[Any]]],
    golden: Golden | None,
) -> Certificate:
    """Compare the tapped model's answers, frame by frame, with the untapped one's."""
    expected = np.array([_flatten(answer) for answer in untapped])
    difference = _difference(expected, np.array([_flatten(answer) for answer in tapped]))
    if golden is None:
        finite = np.abs(expected[np.isfinite(expected)])
        tolerance = RELATIVE_TOLERANCE * float(finite.max(initial=1.0))
    else:
        tolerance = golden.tolerance
    return Certificate(difference, tolerance, len(untapped), passed=difference <= tolerance)


def self_test(
    taps: Sequence[TapSpec], signals: FloatArray, answers: Sequence[Sequence[NDArray[Any]]], golden: Golden
) -> str | None:
    """Compare signals (n, n_taps) and answers to the golden frames with the recorded ones.

    Wider than the certificate: another processor or runtime version may round otherwise, while a
    changed weight, delegate or buffer shows in the first digits. What is wrong, or None.
    """
    allowed = SELF_TEST_TOLERANCE * np.abs(golden.signals).mean(axis=0)
    found = np.abs(signals - golden.signals).max(axis=0)
    for tap, difference, limit in zip(taps, found, allowed, strict=True):
        if not difference <= limit:  # NaN fails too
            return f"signal of tap {tap.name} is off by {difference:.3g}, tolerated are {limit:.3g}"
    difference = _difference(np.array([_flatten(answer) for answer in answers]), golden.outputs)
    limit = SELF_TEST_TOLERANCE * float(np.abs(golden.outputs).max(initial=1.0))
    if not difference <= limit:
        return f"an answer is off by {difference:.3g}, tolerated are {limit:.3g}"
    return None


def _flatten(outputs: Sequence[NDArray[Any]]) -> FloatArray:
    return np.concatenate([output.ravel().astype(np.float64) for output in outputs])


def _difference(a: FloatArray, b: FloatArray) -> float:
    """Largest absolute difference; infinite where just one is a number, or when shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.abs(np.subtract(a, b, where=~same, out=np.zeros_like(a)))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max())
