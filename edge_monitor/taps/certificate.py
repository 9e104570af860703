"""Start-up checks of a tapped model: does it answer as before, do its taps read as recorded (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.region_map import Golden
from edge_monitor.types import FloatArray, TapSpec

Feed = Mapping[str, NDArray[Any]]

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


def golden_feeds(
    inputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], observed: str, golden: Golden | None
) -> list[dict[str, NDArray[Any]]]:
    """Make the feeds to check on: golden frames, or four seeded random ones; further inputs are zero.

    Parameters
    ----------
    inputs : mapping
        Name -> shape with batch axis, type of every input of the model.
    observed : str
        The input that the frames go to.
    golden : Golden or None
        The map's.

    Raises
    ------
    MapError
        The golden frames do not have the shape of the model's input.
    """
    shape = inputs[observed][0][1:]
    if golden is None:
        generator = np.random.default_rng(_RANDOM_SEED)
        frames = generator.random((_RANDOM_FRAMES, *shape), dtype=np.float32)
    else:
        frames = golden.frames.astype(np.float32)
    if len(frames) == 0 or frames.shape[1:] != shape:
        raise MapError("golden.frames", f"shape is {frames.shape}, the model's input is {shape}")
    zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in inputs.items()}
    return [zeros | {observed: frame[np.newaxis]} for frame in frames]


def certify(
    untapped: Callable[[Feed], Sequence[NDArray[Any]]],
    tapped: Callable[[Feed], Sequence[NDArray[Any]]],
    feeds: Sequence[Feed],
    golden: Golden | None,
) -> Certificate:
    """Compare the tapped model's answers with the untapped one's on every feed."""
    expected = np.array([_flatten(untapped(feed)) for feed in feeds])
    difference = _difference(expected, np.array([_flatten(tapped(feed)) for feed in feeds]))
    if golden is None:
        finite = np.abs(expected[np.isfinite(expected)])
        tolerance = RELATIVE_TOLERANCE * float(finite.max(initial=1.0))
    else:
        tolerance = golden.tolerance
    return Certificate(difference, tolerance, len(feeds), passed=difference <= tolerance)


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
