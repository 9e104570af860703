"""What a list of taps says of each, whatever the runtime."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

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


def default_taps(readable: Sequence[str]) -> list[str]:
    """Names of the default taps: the first, the middle and the last of those that can be read."""
    places = {round(share * (len(readable) - 1)) for share in (0.0, 0.5, 1.0)} if readable else set()
    return [readable[place] for place in sorted(places)]
