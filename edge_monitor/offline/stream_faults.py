"""Stream faults: which frame is delivered when, with which capture time, and how late the network answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edge_monitor.errors import InputError
from edge_monitor.offline.faults import Amounts, amount_at, make_rng


class Delivery(NamedTuple):
    """What arrives in the place of frame n since the onset.

    ``index`` : the frame whose scene is delivered: n, one before, or the next one (frame reorder).
    ``again`` : the scene is rendered again, with fresh noise.
    ``t_capture_frame`` : the frame whose capture time it carries.
    ``delivered`` : False when it is lost.
    ``extra_latency`` : of the network, in frame periods.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    again: bool
    t_capture_frame: int
    delivered: bool
    extra_latency: float


def _as_it_is(n: int) -> Delivery:
    return Delivery(n, again=False, t_capture_frame=n, delivered=True, extra_latency=0.0)


def _reorder(amount: float, n: int, rng: np.random.Generator) -> list[Delivery]:
    """Swap frame n with the next with probability ``amount``: capture times run back.

    The caller has to know one frame in advance, as the queue that does this has.
    """
    order = list(range(n))
    first = 0
    while first + 1 < n:
        if rng.random() < amount:
            order[first : first + 2] = [first + 1, first]
            first += 1
        first += 1
    return [_as_it_is(index) for index in order]


def _freeze(_amount: float, n: int, _rng: np.random.Generator) -> list[Delivery]:
    """Hold the scene of the onset; the sensor's noise and its clock go on."""
    return [_as_it_is(k)._replace(index=0, again=k > 0) for k in range(n)]


def _stutter(amount: float, n: int, rng: np.random.Generator) -> list[Delivery]:
    """Hold the scene for ``amount`` frames, from the onset on and then every 15 to 45 frames."""
    found: list[Delivery] = []
    while len(found) < n:
        first = len(found)
        found.extend(
            _as_it_is(k)._replace(index=first, again=k > first)
            for k in range(first, first + round(amount) + 1)
        )
        found.extend(_as_it_is(k) for k in range(len(found), len(found) + rng.integers(15, 46)))
    return found[:n]


def _stall(amount: float, n: int, rng: np.random.Generator) -> list[Delivery]:
    """Let the network take ``amount`` more frame periods, for 2 to 5 frames every 15 to 45 frames."""
    found: list[Delivery] = []
    while len(found) < n:
        slow = len(found) + rng.integers(2, 6)
        found.extend(_as_it_is(k)._replace(extra_latency=amount) for k in range(len(found), slow))
        found.extend(_as_it_is(k) for k in range(slow, slow + rng.integers(15, 46)))
    return found[:n]


def _drop(amount: float, n: int, rng: np.random.Generator) -> list[Delivery]:
    """Lose the share ``amount`` of the frames."""
    lost = rng.random(n) < amount
    return [_as_it_is(k)._replace(delivered=not lost[k]) for k in range(n)]


_Make = Callable[[float, int, np.random.Generator], list[Delivery]]

_KINDS: dict[str, tuple[Amounts, _Make]] = {
    "frame reorder": ((0.0, 0.05, 0.2, 0.6), _reorder),
    "true freeze": ((0.0, 1.0, 1.0, 1.0), _freeze),
    "stutter": ((0.0, 5.0, 10.0, 15.0), _stutter),
    "latency stall": ((0.0, 2.0, 4.0, 8.0), _stall),
    "dropped frames": ((0.0, 0.05, 0.15, 0.4), _drop),
}


def deliveries(name: str, level: float, seed: int, n: int) -> list[Delivery]:
    """Say what is delivered in the first ``n`` frames of a stream fault.

    Parameters
    ----------
    name : str
        A fault of `edge_monitor.offline.faults` whose stage is the stream.
    level : float
        0 (every frame as it is) to 3.
    seed : int
        0 or more.
    n : int
        Frames since the onset.

    Raises
    ------
    InputError
        No stream fault has this name, the level is outside 0..3, or the seed is negative.
    """
    if name not in _KINDS:
        raise InputError("stream fault", f"{name!r} is none of {', '.join(_KINDS)}")
    amounts, make = _KINDS[name]
    amount, rng = amount_at(level, amounts), make_rng(name, seed)
    if level == 0.0:
        return [_as_it_is(k) for k in range(n)]
    return make(amount, n, rng)
