"""Payoffs: what a network's answer is worth while parts of it are switched off (design D7)."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError, ModelError
from edge_monitor.kernels.output import SUM_TOLERANCE
from edge_monitor.types import FloatArray, IntArray

Outputs = Sequence[NDArray[Any]]
"""All outputs of the model, in its order; the first axis of each counts the n frames."""


class Payoff(msgspec.Struct, frozen=True):
    """A payoff and its name.

    ``score(ablated, unablated)`` compares the outputs of the ablated model (`Outputs`) with those of
    the whole model on the same n frames and returns (n,) float64, finite, larger for better. It
    is always given all frames, in the same order, and may be called from several threads.
    ``digest`` tells apart payoffs of one name, as a checkpoint must.
    """

    name: str
    score: Callable[[Outputs, Outputs], FloatArray]
    digest: str = ""


def decision_probability(ablated: Outputs, unablated: Outputs) -> FloatArray:
    """Probability that the ablated model gives to the class the whole model decides for; needs no labels.

    The first output counts, as it does for the probe.

    Raises
    ------
    ModelError
        The whole model's first output is no probability vector (`summarize_output` has the rule).
    """
    whole = _scores(unablated)
    with np.errstate(invalid="ignore"):
        total = whole.sum(axis=1, dtype=np.float64)
        is_probability = (whole >= 0).all(axis=1) & (np.abs(total - 1.0) <= SUM_TOLERANCE)
    if whole.dtype.kind != "f" or whole.shape[1] < 2 or not is_probability.all():
        frame = int(np.argmin(is_probability))
        raise ModelError(
            "first output",
            f"is no probability vector ({whole.dtype} {unablated[0].shape[1:]}, frame {frame} adds up to "
            f"{total[frame]:.4g}): give labels, or a payoff of your own",
        )
    decision = whole.argmax(axis=1)[:, None]
    return np.take_along_axis(_scores(ablated), decision, axis=1)[:, 0].astype(np.float64)


DECISION_PROBABILITY = Payoff("decision_probability", decision_probability)


def accuracy(labels: IntArray) -> Payoff:
    """1 where the largest value of the first output is at the frame's label, else 0.

    Parameters
    ----------
    labels : (n,) integers
        The right class of every frame.

    Raises
    ------
    InputError
        ``labels`` are no integers of shape (n,). When the payoff is used: their number is not that of
        the frames, the model has no such class, or its first output is no vector of classes.
    """
    right = np.asarray(labels)
    if right.ndim != 1 or right.dtype.kind not in "iu":
        raise InputError("labels", f"are {right.dtype}{right.shape}, one integer per frame is needed")
    right = right.astype(np.int64)

    def score(ablated: Outputs, _: Outputs) -> FloatArray:
        scores = _scores(ablated)
        if sum(n > 1 for n in ablated[0].shape[1:]) > 1:
            shape = ablated[0].shape[1:]
            raise InputError("labels", f"name one class a frame, the first output has shape {shape}")
        if len(right) != len(scores):
            raise InputError("labels", f"{len(right)} for {len(scores)} frames")
        beyond = (right < 0) | (right >= scores.shape[1])
        if beyond.any():
            raise InputError("labels", f"{right[beyond][0]} is none of the model's {scores.shape[1]} classes")
        return np.asarray(scores.argmax(axis=1) == right, np.float64)

    return Payoff("accuracy", score, hashlib.sha256(right.tobytes()).hexdigest())


def load_payoff(place: str) -> Payoff:
    """Load a user's own function, given as ``file.py:function``; `Payoff` says what it must do.

    Raises
    ------
    InputError
        No such file or function, or the file cannot be run. When the payoff is used: it fails.
    """
    file, _, function = place.rpartition(":")
    path = Path(file)
    if not file or not path.is_file():
        raise InputError(place, f"no file {file or place}; a payoff is given as file.py:function")
    module_name = f"payoff_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(place, f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up the module they are defined in
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise InputError(place, f"cannot be loaded ({type(error).__name__}: {error})") from error
    score = getattr(module, function, None)
    if not callable(score):
        raise InputError(place, f"{file} has no function {function!r}")

    def told(ablated: Outputs, unablated: Outputs) -> FloatArray:
        try:
            return score(ablated, unablated)  # type: ignore[no-any-return]  # what it gives is looked at later
        except Exception as error:  # whatever a user's function may raise
            raise InputError(place, f"fails ({type(error).__name__}: {error})") from error

    return Payoff(f"{path.name}:{function}", told, hashlib.sha256(path.read_bytes()).hexdigest())


def _scores(outputs: Outputs) -> NDArray[Any]:
    """Return the first output as one row per frame."""
    return outputs[0].reshape(len(outputs[0]), -1)
