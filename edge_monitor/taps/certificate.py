"""Start-up checks of a tapped model: does it answer as before, do its taps read as recorded (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.region_map import Golden, TapNeutrality
from edge_monitor.types import FloatArray, TapSpec

RELATIVE_TOLERANCE = 1e-5
"""Difference of answers that is tolerated when no map says it, relative to the largest answer above 1."""

SELF_TEST_TOLERANCE = 1e-3
"""Difference to the recording that is tolerated, relative to a tap's mean signal or the largest answer."""

_RANDOM_FRAMES, _RANDOM_SEED, _PIXELS = 4, 0, 255.0


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
        Least and largest value of a random frame; from 0 to 1 every other frame goes up to 255.

    Raises
    ------
    MapError
        The golden frames do not have the shape of the model's input, or are no real numbers.
    """
    if golden is None:
        generator = np.random.default_rng(_RANDOM_SEED)
        low, high = (np.float32(end) for end in span)
        frames: NDArray[np.float32] = generator.random((_RANDOM_FRAMES, *shape), dtype=np.float32)
        frames = low + (high - low) * frames
        if span == (0.0, 1.0):  # of floats nobody knows the range: on one scale a wrong model may look right
            frames[::2] *= _PIXELS
        return frames
    kept = golden.frames
    if kept.dtype.kind not in "buif":
        raise MapError("golden.frames", f"hold {kept.dtype}, not real numbers")
    if kept.shape[1:] != shape or len(kept) == 0:
        raise MapError("golden.frames", f"shape is {kept.shape}, the model's input is {shape}")
    return kept.astype(np.float32)


def certify(
    untapped: Sequence[Sequence[NDArray[Any]]],
    tapped: Sequence[Sequence[NDArray[Any]]],
    golden: Golden | None,
) -> Certificate:
    """Compare the tapped model's answers, frame by frame, with the untapped one's.

    Frame by frame, for there are models whose answers are of another length for each
    (test_probe.py::test_answers_of_changing_length).
    """
    expected = [_flatten(answer) for answer in untapped]
    found = [_flatten(answer) for answer in tapped]
    difference = max(_difference(a, b) for a, b in zip(expected, found, strict=True))
    if golden is None:
        tolerance = RELATIVE_TOLERANCE * max(1.0, *map(_largest, expected))
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
    differences = [_difference(_flatten(a), b) for a, b in zip(answers, golden.outputs, strict=True)]
    difference = max(differences)
    limit = SELF_TEST_TOLERANCE * float(np.abs(golden.outputs).max(initial=1.0))
    if not difference <= limit:
        return f"an answer is off by {difference:.3g}, tolerated are {limit:.3g}"
    return None


def compare_tap(
    name: str,
    values: Sequence[NDArray[Any]],
    expected: Sequence[NDArray[Any]],
    signature: float,
    reading: str,
) -> TapNeutrality:
    """Compare a tap's tensor, frame by frame, with that of the model that ends there.

    Integers have to be the same; floating-point numbers, which the runtime may compute in another order
    when other operators are fused, may differ by their rounding relative to the tensor's largest value.
    """
    dtype = expected[0].dtype
    rounding = max(RELATIVE_TOLERANCE, 2.0 * float(np.finfo(dtype).eps)) if dtype.kind == "f" else 0.0
    pairs = [(_flatten([a]), _flatten([b])) for a, b in zip(values, expected, strict=True)]
    return TapNeutrality(
        name=name,
        dtype=str(dtype),
        max_difference=max(_difference(a, b) for a, b in pairs),
        tolerance=rounding * max(_largest(b) for _, b in pairs),
        signature=signature,
        reading=reading,
    )


def _flatten(outputs: Sequence[NDArray[Any]]) -> FloatArray:
    return np.concatenate([output.ravel().astype(np.float64) for output in outputs])


def _largest(values: FloatArray) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _difference(a: FloatArray, b: FloatArray) -> float:
    """Largest absolute difference; infinite where just one is a number, or when shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.abs(np.subtract(a, b, where=~same, out=np.zeros_like(a)))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))
