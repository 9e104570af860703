"""What a drill found, fault by fault, as numbers and as a table for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from statistics import fmean, median

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from edge_monitor.offline.drill import GUARDS, RAMP_S, UNBROKEN, WITHIN_S, Case, Outcome
from edge_monitor.offline.fault_bank import CALLED
from edge_monitor.region_map import RegionMap

HELD = "true freeze"
"""The fault that nobody can tell from a vehicle that stands."""


class FaultLine(msgspec.Struct, frozen=True):
    """One fault at one severity, over its scenes.

    ``scenes``: how many count. ``left_standing``: scenes that do not, because the vehicle stood and a true
    freeze cannot be told apart in principle. ``alarmed_before``: scenes in which a flag was up before the
    onset, which count as missed. ``within``: detected within each of `WITHIN_S`; ``found``: before the
    scene's end. ``median_delay``: of the detected ones, frames. ``flag``: raised first most often.
    ``named``: how many of the found ones were named right; None where none was found, or where neither head
    nor flag knows the fault's name. ``impact``: mean share of decisions changed, None without scenes.
    """

    fault: str
    severity: float
    ramp: bool
    scenes: int
    left_standing: int
    alarmed_before: int
    within: tuple[int, ...]
    found: int
    median_delay: float | None
    flag: str | None
    named: int | None
    impact: float | None


class LeftOut(msgspec.Struct, frozen=True):
    """A fault that could not be put into some scenes, and why."""

    fault: str
    cases: int
    reason: str


class Unbroken(msgspec.Struct, frozen=True):
    """Scenes run with nothing put in; ``flags``: those that were raised first, one of each alarmed scene."""

    scenes: int
    minutes: float
    alarmed: int
    flags: tuple[str, ...]


class Drilled(msgspec.Struct, frozen=True):
    """A whole drill."""

    model: str
    source: str
    calibrated_on: str
    seed: int
    frame_rate_hz: float
    within_s: tuple[float, ...]
    lines: tuple[FaultLine, ...]
    left_out: tuple[LeftOut, ...]
    unbroken: Unbroken
    outcomes: tuple[Outcome, ...]


def summarize(
    region_map: RegionMap,
    source: str,
    outcomes: Sequence[Outcome],
    skipped: Sequence[tuple[Case, str]] = (),
    seed: int = 0,
) -> Drilled:
    """Put the outcomes of `drill` together, faults in the order in which they come."""
    origin = region_map.provenance
    groups: dict[tuple[str, float, bool], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.fault, outcome.severity, outcome.ramp), []).append(outcome)
    heard = {*GUARDS.values(), *(region_map.faults.names if region_map.faults else ())}
    unbroken = [outcome for outcome in outcomes if outcome.fault == UNBROKEN]
    order = list(dict.fromkeys(fault for fault, _, _ in groups))
    lines = [_line(group, origin.frame_rate_hz, heard) for key, group in groups.items() if key[0] != UNBROKEN]
    reasons = Counter((case.fault, why) for case, why in skipped)
    return Drilled(
        model=origin.model,
        source=source,
        calibrated_on=origin.source,
        seed=seed,
        frame_rate_hz=origin.frame_rate_hz,
        within_s=WITHIN_S,
        lines=tuple(sorted(lines, key=lambda line: (order.index(line.fault), line.ramp))),
        left_out=tuple(LeftOut(fault, n, why) for (fault, why), n in reasons.items()),
        unbroken=Unbroken(
            scenes=len(unbroken),
            minutes=len(unbroken) * RAMP_S / 60.0,
            alarmed=sum(outcome.delay is not None or outcome.standing for outcome in unbroken),
            flags=tuple(outcome.flag for outcome in unbroken if outcome.flag is not None),
        ),
        outcomes=tuple(outcomes),
    )


def _line(group: Sequence[Outcome], rate_hz: float, heard: Collection[str]) -> FaultLine:
    first = group[0]
    name = CALLED.get(first.fault, first.fault)
    counted = [o for o in group if o.fault != HELD or o.moving is not False]
    found = [o for o in counted if o.delay is not None]
    flags = Counter(o.flag for o in found)
    return FaultLine(
        fault=first.fault,
        severity=first.severity,
        ramp=first.ramp,
        scenes=len(counted),
        left_standing=len(group) - len(counted),
        alarmed_before=sum(o.standing for o in counted),
        within=tuple(sum(o.within(seconds, rate_hz) for o in counted) for seconds in WITHIN_S),
        found=len(found),
        median_delay=float(median(o.delay for o in found if o.delay is not None)) if found else None,
        flag=flags.most_common(1)[0][0] if found else None,
        named=sum(o.named == name for o in found) if found and name in heard else None,
        impact=fmean(o.impact for o in counted) if counted else None,
    )


def remarks(drilled: Drilled) -> Iterator[str]:
    """Say what the table leaves open, and last how many false alarms there were."""
    for left in drilled.left_out:
        yield f"{left.fault}: left out of {left.cases} cases: {left.reason.removeprefix(f'{left.fault}: ')}"
    standing = max((line.left_standing for line in drilled.lines), default=0)
    if standing:
        yield (
            f"{HELD}: {standing} scenes not counted, in which the vehicle stood or crawled: "
            "it cannot be told apart in principle"
        )
    before = max((line.alarmed_before for line in drilled.lines), default=0)
    if before:
        yield f"in {before} scenes a flag was up before the fault: they count as missed"
    clean = drilled.unbroken
    flags = f" ({', '.join(clean.flags)})" if clean.flags else ""
    alarmed = f"{clean.alarmed} of {clean.scenes} scenes raised a flag{flags}"
    yield f"unbroken, {alarmed} in {clean.minutes:.1f} minutes"


def cells(line: FaultLine) -> tuple[str, ...]:
    """Write one line, in the order of `headers`; what is not known is a dash."""
    if not line.scenes:
        return (line.fault, how_strong(line), *["–"] * (len(WITHIN_S) + 5))
    counts = ["–" if line.ramp else f"{n}/{line.scenes}" for n in line.within]
    delay = "–" if line.median_delay is None else f"{math.floor(line.median_delay + 0.5)}"
    named = "–" if line.named is None else f"{line.named}/{line.found}"
    impact = "–" if line.impact is None else f"{line.impact:.0%}"
    return (
        *(line.fault, how_strong(line), *counts, f"{line.found}/{line.scenes}"),
        *(delay, line.flag or "–", named, impact),
    )


def headers() -> tuple[str, ...]:
    """Titles of the columns of `cells`."""
    return ("fault", "sev.", *(f"{t:g} s" for t in WITHIN_S), "end", "delay", "flag", "named", "impact")


def how_strong(line: FaultLine) -> str:
    """Severity of a line in words."""
    return "ramp" if line.ramp else f"{line.severity:g}"


def explanation(drilled: Drilled) -> str:
    """Say what the columns mean."""
    times = ", ".join(f"{seconds:g} s" for seconds in drilled.within_s)
    return (
        f"{times}, end: detected within that time, and before the scene's end after {RAMP_S:g} s, when a "
        "ramp is at its full strength. delay: median of the detected, in frames of "
        f"1/{drilled.frame_rate_hz:g} s, the first faulty one included. flag: raised first most often. "
        "named: the fault named right, of the detected. impact: share of decisions that the fault changed."
    )


def describe_drill(drilled: Drilled) -> RenderableType:
    """Return the table with its remarks below."""
    title = f"{drilled.model} on {drilled.source}: detected, of so many scenes"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers():
        words = header in {"fault", "flag"}
        table.add_column(
            header, justify="left" if words else "right", no_wrap=header != "flag", overflow="fold"
        )
    last = None
    for line in drilled.lines:
        fault, *others = cells(line)
        table.add_row("" if fault == last else fault, *others)
        last = fault
    return Group(
        table,
        explanation(drilled),
        *remarks(drilled),
    )
