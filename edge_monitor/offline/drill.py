"""Drill: break clean scenes in every known way and see whether the monitor notices, how fast, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.faults import EXTRAS, FAULTS, SEVERITIES
from edge_monitor.offline.injection import Injection, Injector, decisions, fork, levels_of, ramp, warm
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.scene import Scene
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import RegionMap
from edge_monitor.types import FlagStatus, StatRow
from edge_monitor.vitals import MOVING_MPS

IMPACTING = 0.1
"""A fault has impact when it changes at least this share of the decisions."""
WITHIN_S = (0.5, 1.0, 3.0)
"""Times within which detections are counted, seconds."""
RAMP_S = 10.0
"""A gradual fault takes so long to grow to its full strength."""
GUARDS = {"INPUT_FROZEN": "frozen exact", "NON_FINITE": "NaN/Inf", "TIME_BACKWARDS": "frame reorder"}
"""Flags that are exact about what is wrong, and the fault each of them names."""


class Case(msgspec.Struct, frozen=True):
    """One fault to drill: ``severity`` 1, 2 or 3, sudden or growing over `RAMP_S`."""

    fault: str
    severity: float
    ramp: bool = False
    variant: str = "drill"


class Outcome(msgspec.Struct, frozen=True):
    """What came of one case in one scene.

    ``impact``: share of decisions that the fault changed. ``moving``: the vehicle drove throughout; None where
    speed is not known. ``standing``: a flag was up already before the onset, so nothing counts as detected.
    ``delay``: frames from the onset to the first confirmed flag, that frame included; None when there was none.
    ``flag``: its code. ``named``, ``named_second``: the likeliest faults at the end of the scene or, by an exact
    flag, when it was raised; ``named_at_once``: the likeliest when the flag was raised. ``agreement``, ``consistency``: those of
    the last frame (design D9).
    """

    fault: str
    severity: float
    ramp: bool
    scene: int
    impact: float
    moving: bool | None
    standing: bool
    delay: int | None
    flag: str | None
    named: str | None
    named_second: str | None
    named_at_once: str | None
    agreement: float | None
    consistency: float | None

    @property
    def impacting(self) -> bool:
        return self.impact >= IMPACTING

    def within(self, seconds: float, rate_hz: float) -> bool:
        """Whether the fault was detected within so many seconds."""
        return self.delay is not None and self.delay <= seconds * rate_hz


def all_cases() -> list[Case]:
    """Every fault at every severity, the faults of the stream, and the gradual ones once more as ramps."""
    sudden = [Case(fault.name, level) for fault in (*FAULTS, *EXTRAS) for level in SEVERITIES]
    return sudden + [Case(fault.name, SEVERITIES[-1], ramp=True) for fault in FAULTS if fault.gradual]


def drill(
    injector: Injector,
    region_map: RegionMap,
    scenes: Sequence[Scene],
    cases: Sequence[Case],
    seed: int = 0,
    progress: Progress = silent,
    skipped: Callable[[Case, str], None] = lambda _case, _why: None,
) -> Iterator[Outcome]:
    """Put every case into every scene.

    Cases that the model, the picture or the source cannot have are told to ``skipped``, once, and left out.
    """
    monitor = Monitor(region_map)
    impossible: set[str] = set()
    for number, scene in enumerate(scenes):
        warm(monitor, scene)
        clean = injector.rows(scene, [])
        for place, case in enumerate(cases):
            if case.fault in impossible:
                continue
            try:
                rows = broken_rows(injector, scene, case, seed=_seed(seed, number, place))
            except (InputError, ModelError) as error:
                impossible.add(case.fault)
                skipped(case, str(error))
                continue
            yield judge(fork(monitor), case, number, clean, rows)
        progress("drill", number + 1, len(scenes))


def broken_rows(injector: Injector, scene: Scene, case: Case, seed: int) -> list[StatRow]:
    """Rows of a scene with one case put in."""
    if case.ramp:
        levels = ramp(case.severity, int(RAMP_S * injector.rate_hz), scene.length)
    else:
        levels = levels_of(case.severity, scene.length)
    return injector.rows(scene, [Injection(case.fault, levels, seed, case.variant)])


def judge(
    monitor: Monitor, case: Case, scene: int, clean: Sequence[StatRow], rows: Sequence[StatRow]
) -> Outcome:
    """Feed a warm monitor with the broken rows and see what it says."""
    standing = any(flag.status is FlagStatus.CONFIRMED for flag in monitor.report.flags)
    delay: int | None = None
    flag = at_once = named = second = exact = None
    start = monitor.report.frame
    for row in rows:
        report = monitor.step(row)
        guess = report.guess
        if guess is not None and guess.score is not None:
            named, second = guess.name, guess.second
        raised = [
            t.code for t in report.transitions if t.code != "HEALTH" and t.after == FlagStatus.CONFIRMED.value
        ]
        if raised and delay is None and not standing:
            delay, flag, at_once = row.frame - start, raised[0], named
        if exact is None:
            exact = next((GUARDS[code] for code in raised if code in GUARDS), None)
    speeds = [row.context.get("speed_mps") for row in rows]
    known = [speed for speed in speeds if speed is not None]
    by_frame = {row.frame: answer for row, answer in zip(clean, decisions(list(clean)).tolist(), strict=True)}
    changed = [
        answer != by_frame[row.frame]
        for row, answer in zip(rows, decisions(list(rows)).tolist(), strict=True)
        if row.frame in by_frame
    ]
    consistency = monitor.report.consistency
    return Outcome(
        fault=case.fault,
        severity=case.severity,
        ramp=case.ramp,
        scene=scene,
        impact=sum(changed) / len(changed) if changed else 0.0,
        moving=min(known) > MOVING_MPS if known else None,
        standing=standing,
        delay=delay,
        flag=flag,
        named=exact or named,
        named_second=second,
        named_at_once=exact or at_once,
        agreement=consistency.agreement if consistency else None,
        consistency=consistency.score if consistency else None,
    )


def _seed(seed: int, scene: int, place: int) -> int:
    """Seed of one case in one scene."""
    return (seed * 1_000_003 + scene) * 1009 + place
