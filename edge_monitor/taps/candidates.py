"""What a list of taps says of each, whatever the runtime."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

import msgspec

from edge_monitor.errors import ModelError

READ_BYTES_PER_US = 10_000
"""Rate at which a tap is handed over and reduced; with it `TapCandidate.cost_us` is an estimate."""


class TapCandidate(msgspec.Struct, frozen=True):
    """A tensor that can be tapped.

    ``op`` is the operator that makes it; ``shape`` leaves out the batch axis; ``bytes`` per frame;
    ``default``: part of the suggested set; ``cost_us``: estimated cost per frame in microseconds
    (`READ_BYTES_PER_US`).
    """

    name: str
    op: str
    shape: tuple[int, ...]
    bytes: int
    cost_us: float
    default: bool

    @classmethod
    def of(cls, name: str, op: str, shape: tuple[int, ...], n_bytes: int, *, default: bool) -> TapCandidate:
        """Candidate with its cost estimated from its size."""
        return cls(name, op, shape, n_bytes, n_bytes / READ_BYTES_PER_US, default)


def default_taps(readable: Mapping[str, int]) -> list[str]:
    """Names of the default taps: an early, the middle and the last one of those that can be read.

    ``readable``: bytes of each, in order of execution. Early is the first quarter, and of it what has least
    to read: a stem at half the picture's size may hold more than all layers behind it.
    """
    names = list(readable)
    if not names:
        return []
    last = len(names) - 1
    early = min(range(last // 4 + 1), key=lambda place: readable[names[place]])
    return [names[place] for place in sorted({early, round(last / 2), last})]


def check_taps(names: Sequence[str], candidates: Collection[str]) -> None:
    """Refuse names of which one is no candidate or given twice.

    Raises
    ------
    ModelError
        Names the nearest candidates.
    """
    for place, name in enumerate(names):
        if name not in candidates:
            nearest = difflib.get_close_matches(name, candidates, n=3, cutoff=0.0)
            raise ModelError(name, f"no such tap; nearest: {', '.join(nearest) or 'the model has none'}")
        if name in names[:place]:
            raise ModelError(name, "tapped twice")
