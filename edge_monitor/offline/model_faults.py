"""Model faults: edited copies of a model, broken in its weights or in what a layer hands on.

Each fault has two variants, the drill's and another mechanism (`edge_monitor.offline.faults`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.backend import Editable, backend_of
from edge_monitor.offline.faults import VARIANTS, Amounts, amount_at, check_variant, make_rng
from edge_monitor.offline.model_edits import EXPONENT_BITS, Layer, flip_bits

_HIGH_BITS = {"float32": EXPONENT_BITS, "float16": range(10, 15), "int8": range(4, 8), "uint8": range(4, 8)}
"""Types of weights, and the bits of each that matter most."""


class _Case(NamedTuple):
    """What an injector works on: a model that it may alter, frames, and its random numbers."""

    model: Editable
    frames: NDArray[np.float32]
    rng: np.random.Generator

    def find_layers(self, kinds: str = "fiu") -> list[Layer]:
        """Layers whose weights are of these kinds of numbers (`numpy.dtype.kind`)."""
        layers = [layer for layer in self.model.layers() if self.model.read(layer.weight).dtype.kind in kinds]
        if not layers:
            what = "floating-point weights" if kinds == "f" else "weights that can be edited"
            raise ModelError("model", f"has no layer with {what}, which the fault needs")
        return layers

    def pick_layer(self, kinds: str = "fiu") -> Layer:
        """Choose one of the layers."""
        layers = self.find_layers(kinds)
        return layers[self.rng.integers(len(layers))]

    def pick_tap(self) -> tuple[str, NDArray[np.float32]]:
        """Choose a tap (1, C, H, W) or (1, N), and return its values (n, ...) on the frames."""
        names = self.model.taps()
        if not names:
            raise ModelError("model", "has no activations (C, H, W) or (N,) that could be made faulty")
        tap = names[int(self.rng.integers(len(names)))]
        return tap, self.model.tap_values(tap, self.frames)


def faulty_model(
    model: bytes,
    name: str,
    level: float,
    seed: int,
    probe_frames: NDArray[np.float32],
    variant: str = "drill",
) -> tuple[bytes, str]:
    """Edit a copy of the model so that it has the fault.

    Parameters
    ----------
    model : bytes
        With one input.
    name : str
        One of `edge_monitor.offline.faults.FAULTS` whose stage is the model.
    level : float
        0 (the model as it is) to 3.
    seed : int
        0 or more; it chooses the place.
    probe_frames : (n, ...) float32
        Inputs of the model, without a fault: they tell how large activations are.
    variant : {"drill", "other"}
        The mechanism.

    Returns
    -------
    data : bytes
        The serialized model; its taps have the names they had.
    where : str
        The place, such as "block2_add_relu channel 7".

    Raises
    ------
    InputError
        No model fault has this name, no such variant, a level outside 0..3, a negative seed, or frames that
        do not fit the model.
    ModelError
        The model has nothing that could have the fault: no activations, no weights, or none that can be NaN.
    """
    if name not in _KINDS:
        raise InputError("model fault", f"{name!r} is none of {', '.join(_KINDS)}")
    check_variant(variant)
    amounts, break_model = _KINDS[name][VARIANTS.index(variant)]
    amount, rng = amount_at(level, amounts), make_rng(name, seed)
    if level == 0.0:
        return model, "nowhere"
    case = _Case(backend_of(model).edit(model), probe_frames, rng)
    where = break_model(case, amount)
    return case.model.to_bytes(), where


def _high_bits(case: _Case, amount: float) -> str:
    """Flip ``amount`` exponent bits (of integers: bits of the upper half) anywhere in the weights."""
    return _flip(case, round(amount), lambda dtype: [int(case.rng.choice(_HIGH_BITS[dtype]))])


def _bursts(case: _Case, amount: float) -> str:
    """Flip 2 to 4 neighbouring bits, any, of ``amount`` weights: one particle upsets several cells."""

    def burst(dtype: str) -> list[int]:
        n = int(case.rng.integers(2, 5))
        first = int(case.rng.integers(np.dtype(dtype).itemsize * 8 - n + 1))
        return list(range(first, first + n))

    return _flip(case, round(amount), burst)


def _non_finite_weight(case: _Case, amount: float) -> str:
    """Set ``amount`` weights of one layer to NaN or to infinity."""
    layer = case.pick_layer("f")
    values = case.model.read(layer.weight).copy()
    bad = case.rng.choice([np.nan, np.inf])
    places = case.rng.permutation(values.size)[: max(1, round(amount))]
    values.reshape(-1)[places] = bad
    case.model.replace(layer.weight, values)
    return f"{layer.weight}{places.tolist()} is {bad}"


def _non_finite_channel(case: _Case, amount: float) -> str:
    """Divide the weights of ``amount`` channels of one layer by a variance that underflowed to zero."""
    layer = case.pick_layer("f")
    values = case.model.read(layer.weight).copy()
    channels = case.rng.permutation(values.shape[layer.axis])[: max(1, round(amount))]
    with np.errstate(divide="ignore", invalid="ignore"):
        np.moveaxis(values, layer.axis, 0)[channels] /= values.dtype.type(0.0)
    case.model.replace(layer.weight, values)
    return f"{layer.weight} channels {channels.tolist()} divided by zero"


def _silent_channels(case: _Case, amount: float) -> str:
    """Hold the share ``amount`` of a layer's channels at zero, chosen from those that speak."""
    tap, values = case.pick_tap()
    strength = np.abs(values).mean(axis=tuple(axis for axis in range(values.ndim) if axis != 1))
    speaking = np.flatnonzero(strength >= 0.1 * strength.mean())
    channels = case.rng.permutation(speaking)[: max(1, round(amount * len(strength)))]
    gain = np.ones(len(strength), np.float32)
    gain[channels] = 0.0
    case.model.alter(tap, gain, np.zeros_like(gain))
    return f"{tap} channels {sorted(channels.tolist())}"


def _zero_weights(case: _Case, amount: float) -> str:
    """Zero weights and biases of the share ``amount`` of a layer's channels: a part of memory not loaded."""
    layer = case.pick_layer()
    values = case.model.read(layer.weight).copy()
    n = values.shape[layer.axis]
    channels = case.rng.permutation(n)[: max(1, round(amount * n))]
    np.moveaxis(values, layer.axis, 0)[channels] = layer.zero
    case.model.replace(layer.weight, values)
    if layer.bias is not None:
        bias = case.model.read(layer.bias).copy()
        if bias.size == n:
            bias.reshape(-1)[channels] = 0
            case.model.replace(layer.bias, bias)
    return f"{layer.weight} channels {sorted(channels.tolist())}"


def _clip_scaled(case: _Case, amount: float) -> str:
    """Multiply a layer's activations by ``amount`` and cut them off at the largest clean value."""
    tap, values = case.pick_tap()
    gain = np.full(values.shape[1], amount, np.float32)
    case.model.alter(tap, gain, np.zeros_like(gain), ceiling=_largest(tap, values))
    return f"{tap} times {amount:.3g}"


def _clip_moved(case: _Case, amount: float) -> str:
    """Raise a layer's activations by ``amount`` x the largest clean value and cut them off there."""
    tap, values = case.pick_tap()
    largest = _largest(tap, values)
    bias = np.full(values.shape[1], amount * largest, np.float32)
    case.model.alter(tap, np.ones_like(bias), bias, ceiling=largest)
    return f"{tap} raised by {bias[0]:.3g}"


def _stuck_channel(case: _Case, amount: float) -> str:
    """Hold one channel at ``amount`` x the layer's largest clean value."""
    return _raise_channel(case, amount, gain=0.0)


def _biased_channel(case: _Case, amount: float) -> str:
    """Add ``amount`` x the layer's largest clean value to one channel: a bias with a flipped bit."""
    return _raise_channel(case, amount, gain=1.0)


def _few_levels(case: _Case, amount: float) -> str:
    """Round all weights to ``amount`` levels on either side of zero, one step for each tensor."""
    layers = {layer.weight: layer.zero for layer in case.find_layers()}
    for name, zero in layers.items():
        values = case.model.read(name)
        weights = values.astype(np.float32) - np.float32(zero)
        step = np.abs(weights).max() / np.float32(amount)
        if step > 0.0:
            case.model.replace(name, _stored(np.rint(weights / step) * step + np.float32(zero), values.dtype))
    return f"{amount:.3g} levels in {len(layers)} layers"


def _wrong_scale(case: _Case, amount: float) -> str:
    """Multiply or divide the weights of one layer by ``amount``: the scale of another tensor."""
    layer = case.pick_layer()
    factor = float(np.float32(amount if case.rng.random() < 0.5 else 1.0 / amount))
    case.model.scale(layer, factor)
    return f"{layer.weight} times {factor:.3g}"


def _stored(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers as weights of a type store them."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def _flip(case: _Case, n: int, choose: Callable[[str], list[int]]) -> str:
    """Flip the chosen bits of ``n`` weights, every weight as likely as any other; at least of one."""
    weights = {
        name: values for name, values in case.model.weights().items() if values.dtype.name in _HIGH_BITS
    }
    if not weights:
        raise ModelError("model", f"has no weights of type {', '.join(_HIGH_BITS)}, which the fault needs")
    names, sizes = list(weights), [values.size for values in weights.values()]
    ends = np.cumsum(sizes)
    flipped = []
    for place in case.rng.permutation(ends[-1])[: max(1, n)]:
        k = int(np.searchsorted(ends, place, side="right"))
        name, index = names[k], int(place - ends[k]) + sizes[k]
        bits = choose(weights[name].dtype.name)
        case.model.replace(name, flip_bits(case.model.read(name), index, bits))
        flipped.append(f"{name}[{index}] bits {bits}")
    return ", ".join(flipped)


def _raise_channel(case: _Case, amount: float, gain: float) -> str:
    """Scale one channel by ``gain`` and add ``amount`` x the layer's largest clean value."""
    tap, values = case.pick_tap()
    channel = int(case.rng.integers(values.shape[1]))
    gains, bias = np.ones(values.shape[1], np.float32), np.zeros(values.shape[1], np.float32)
    gains[channel], bias[channel] = gain, amount * _largest(tap, values)
    case.model.alter(tap, gains, bias)
    return f"{tap} channel {channel}"


def _largest(tap: str, values: NDArray[np.float32]) -> float:
    """Return the largest clean value of a tap."""
    largest = float(values[np.isfinite(values)].max(initial=0.0))
    if largest == 0.0:
        raise InputError(tap, f"is nowhere above 0 in the {len(values)} probe frames")
    return largest


_KINDS: dict[str, tuple[tuple[Amounts, Callable[[_Case, float], str]], ...]] = {
    "weight bit flips": (((0.0, 2.0, 8.0, 32.0), _high_bits), ((0.0, 4.0, 16.0, 64.0), _bursts)),
    "NaN/Inf": (((0.0, 1.0, 2.0, 4.0), _non_finite_weight), ((0.0, 1.0, 2.0, 4.0), _non_finite_channel)),
    "dead channels": (((0.0, 0.15, 0.3, 0.6), _silent_channels), ((0.0, 0.2, 0.4, 0.75), _zero_weights)),
    "saturated layer": (((1.0, 3.0, 8.0, 25.0), _clip_scaled), ((0.0, 0.15, 0.35, 0.7), _clip_moved)),
    "stuck-high unit": (((0.0, 1.0, 2.0, 4.0), _stuck_channel), ((0.0, 0.7, 1.5, 4.0), _biased_channel)),
    "quantisation fault": (((127.0, 10.0, 5.0, 2.0), _few_levels), ((1.0, 1.5, 2.5, 6.0), _wrong_scale)),
}
