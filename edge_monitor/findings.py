"""What the test of a flag reads, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from edge_monitor.reports import (
    BandPowers,
    Connectivity,
    Consistency,
    Evidence,
    FaultGuess,
    RegionScores,
    Vitals,
)
from edge_monitor.types import ProbeEvent, StatRow, TapSpec


class Limits(msgspec.Struct, frozen=True):
    """What counts as too slow, too silent or too many for one stream; times in nanoseconds, rate in Hz."""

    rate_hz: float
    deadline_ns: int
    silence_ns: int
    repeats_by_nature: bool
    dead_rows: int
    least_agreement: float


class Findings(msgspec.Struct, frozen=True, eq=False):
    """All that one input told the monitor; None where the input carries no such thing."""

    limits: Limits
    taps: tuple[TapSpec, ...]
    vitals: Vitals | None
    row: StatRow | None = None
    bands: BandPowers | None = None
    regions: RegionScores | None = None
    connectivity: Connectivity | None = None
    consistency: Consistency | None = None
    evidence: Evidence | None = None
    guess: FaultGuess | None = None
    event: ProbeEvent | None = None


class Verdict(NamedTuple):
    """Answer of one test; ``failed`` None means that nothing was learned."""

    failed: bool | None
    cause: str = ""
    values: Mapping[str, float] = MappingProxyType({})


PASSED = Verdict(False)
UNKNOWN = Verdict(None)
