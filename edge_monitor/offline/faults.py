"""The faults of the drill: their table, and what all injectors share.

A fault is injected at one of three stages: into the picture before the network
(`edge_monitor.offline.picture_faults`), into the network (`edge_monitor.offline.model_faults`), or into
the delivery of frames (`edge_monitor.offline.stream_faults`).

A *level* is a real number from 0 (no fault) to 3; `SEVERITIES` are the drill's mild, medium and strong.
What lies between is interpolated, so a fault can begin slowly.

Most faults have two *variants*: the drill's own, and another mechanism of the same physical fault. What was
fitted to the other variants alone is judged on faults it never saw.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np

from edge_monitor.errors import InputError

SEVERITIES = (1.0, 2.0, 3.0)
VARIANTS = ("drill", "other")

Amounts = tuple[float, float, float, float]
"""What a fault does at the levels 0, 1, 2 and 3, in a unit of its own."""


class Stage(Enum):
    """Where a fault is injected."""

    PICTURE = "picture"
    MODEL = "model"
    STREAM = "stream"


class Fault(NamedTuple):
    """One fault; ``gradual``: it can begin slowly; ``text``: the physical fault it stands for."""

    name: str
    stage: Stage
    gradual: bool
    text: str


_P, _M, _S = Stage.PICTURE, Stage.MODEL, Stage.STREAM

FAULTS = (
    Fault("frozen exact", _P, False, "The camera's driver repeats its last buffer bit for bit."),
    Fault("frozen with noise", _P, False, "The picture stands still behind a noisy analogue link."),
    Fault("blackout", _P, True, "Hardly any light reaches the sensor, which still has its read noise."),
    Fault("flicker", _P, True, "Exposure beats against lamps that pulse with the mains."),
    Fault("exposure hunting", _P, True, "The exposure control overshoots and swings slowly."),
    Fault("gaussian noise", _P, True, "The sensor is hot, or its gain far too high."),
    Fault(
        "salt and pepper", _P, True, "Bits are lost on the camera's link; single pixels are black or white."
    ),
    Fault("defocus", _P, True, "The lens has moved out of focus."),
    Fault("fog", _P, True, "Fog, or condensation on the lens, takes away contrast."),
    Fault("lens blob", _P, True, "Dirt or a drop sits on the lens."),
    Fault("dead rows", _P, True, "Rows of the sensor are no longer read out."),
    Fault("rolling band", _P, True, "A rolling shutter under pulsing light shows a band that wanders."),
    Fault("frame reorder", _S, False, "A queue hands over neighbouring frames in the wrong order."),
    Fault("channel swap", _P, False, "Colour channels are mistaken for one another."),
    Fault("wrong normalisation", _P, False, "Preprocessing has the wrong gain and offset."),
    Fault("camera shift", _P, True, "The mount has come loose; the camera looks elsewhere."),
    Fault("adversarial patch", _P, False, "Somebody put a pattern into the view to mislead the network."),
    Fault("domain shift", _P, True, "The world looks unlike everything the network was trained on."),
    Fault("weight bit flips", _M, False, "Radiation or worn memory flips bits of the weights."),
    Fault("NaN/Inf", _M, False, "A weight has become infinite or not a number."),
    Fault("dead channels", _M, False, "Channels of a layer have fallen silent."),
    Fault("saturated layer", _M, False, "A layer's accumulator overflows: its activations stick at the top."),
    Fault("stuck-high unit", _M, False, "One channel answers far too much, whatever it sees."),
    Fault("quantisation fault", _M, False, "Weights were quantised too coarsely or with a wrong scale."),
)
"""The faults that the drill injects at each of the severities."""

EXTRAS = (
    Fault("true freeze", _S, False, "The scene is held, while sensor noise and capture times go on."),
    Fault("stutter", _S, False, "Now and then the scene is held for some frames; noise goes on."),
    Fault("latency stall", _S, False, "Now and then the network takes several frame periods."),
    Fault("dropped frames", _S, False, "Frames are lost on their way."),
)
"""Faults that the drill reports apart from `FAULTS`: only part of them can be seen in the activations."""


def amount_at(level: float, amounts: Amounts) -> float:
    """Amount of a fault at a level, interpolated linearly.

    Raises
    ------
    InputError
        The level is outside 0..3.
    """
    if not 0.0 <= level <= 3.0:
        raise InputError("level of a fault", f"must be 0 to 3, not {level}")
    return float(np.interp(level, (0.0, *SEVERITIES), amounts))


def check_variant(variant: str) -> None:
    """Refuse what is neither "drill" nor "other".

    Raises
    ------
    InputError
        It is neither.
    """
    if variant not in VARIANTS:
        raise InputError("variant of a fault", f"{variant!r} is none of {', '.join(VARIANTS)}")


def make_rng(name: str, seed: int) -> np.random.Generator:
    """Random numbers of one fault: faults of one seed draw apart from each other.

    Raises
    ------
    InputError
        The seed is negative.
    """
    if seed < 0:
        raise InputError("seed of a fault", f"must be 0 or more, not {seed}")
    return np.random.default_rng([seed, *name.encode()])
