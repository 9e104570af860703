"""Drill: break clean scenes in every known way, and see what the monitor says, and how soon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized

import msgspec

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.faults import EXTRAS, FAULTS, SEVERITIES
from edge_monitor.offline.injection import Injection, Injector, decisions, fork, levels_of, ramp, warm
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.scene import Scene
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import RegionMap
from edge_monitor.reports import FlagStatus
from edge_monitor.types import StatRow
from edge_monitor.vitals import MOVING_MPS

IMPACTING = 0.1
"""A fault has impact when it changes at least this share of the decisions."""
WITHIN_S = (0.5, 1.0, 3.0)
"""Times within which detections are counted, seconds."""
RAMP_S = 10.0
"""A gradual fault takes so long to grow to its full strength."""
UNBROKEN = "unbroken"
"""Name of the case in which nothing is put in: what it raises is a false alarm."""
GUARDS = {
    "INPUT_FROZEN": "frozen exact",
    "NON_FINITE": "NaN/Inf",
    "TIME_BACKWARDS": "frame reorder",
    "LATENCY_HIGH": "latency stall",
    "FRAMES_LOST": "dropped frames",
    "CAMERA_MOVED": "camera shift",
    "ROWS_DEAD": "dead rows",
}
"""Flags that say by themselves what is wrong, and the fault each of them names."""


class Case(msgspec.Struct, frozen=True):
    """One fault to drill: ``severity`` 1, 2 or 3 (or between), sudden or growing over `RAMP_S`."""

    fault: str
    severity: float
    ramp: bool = False
    variant: str = "drill"


class Outcome(msgspec.Struct, frozen=True):
    """What came of one case in one scene.

    ``impact``: share of decisions that the fault changed. ``moving``: the vehicle drove throughout; None
    where speed is not known. ``standing``: a flag was up already before the onset, so nothing counts as
    detected. ``delay``: frames from the onset to the first confirmed flag, that frame included; None when
    there was none. ``flag``: its code. ``named``, ``named_second``: the likeliest faults at the end of the
    scene or, by an exact flag, when it was raised; ``named_at_once``: the likeliest when the flag was raised.
    ``agreement``, ``consistency``: those of the last frame (design D9).
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
    return choose_cases()


def choose_cases(
    faults: Sequence[str] = (), severities: Sequence[float] = SEVERITIES, *, ramps: bool = True
) -> list[Case]:
    """Cases of some faults (none given: all), and a ramp of each gradual one.

    Raises
    ------
    InputError
        No such fault, or a severity outside 0..3.
    """
    known = {fault.name: fault for fault in (*FAULTS, *EXTRAS)}
    for name in faults:
        if name not in known:
            raise InputError("fault", f"{name!r} is none of {', '.join(known)}")
    for severity in severities:
        if not 0.0 <= severity <= SEVERITIES[-1]:
            raise InputError("severity", f"{severity:g} is not in 0 ... {SEVERITIES[-1]:g}")
    chosen = [known[name] for name in dict.fromkeys(faults or known)]
    levels = sorted(set(severities))
    sudden = [Case(fault.name, level) for fault in chosen for level in levels]
    gradual = [Case(fault.name, SEVERITIES[-1], ramp=True) for fault in chosen if fault.gradual and ramps]
    return sudden + gradual


def drill(
    injector: Injector,
    region_map: RegionMap,
    scenes: Iterable[Scene],
    cases: Sequence[Case],
    seed: int = 0,
    progress: Progress = silent,
    skipped: Callable[[Case, str], None] = lambda _case, _why: None,
) -> Iterator[Outcome]:
    """Put every case into every scene.

    A flag that the scene raises without any fault counts for nothing from then on. A case that the model, the
    picture or the source cannot have is told to ``skipped``, scene by scene, and left out. Equal seeds give
    equal outcomes, whatever the other cases are.

    Raises
    ------
    InputError
        The seed is negative.
    """
    if seed < 0:
        raise InputError("seed", f"{seed} is below 0")
    monitor = Monitor(region_map)
    total = len(cases) * len(scenes) if isinstance(scenes, Sized) else None
    for number, scene in enumerate(scenes):
        warm(monitor, scene)
        clean = injector.rows(scene, [])
        own = _raised(fork(monitor), clean)
        for place, case in enumerate(cases):
            progress("drill", number * len(cases) + place, total)
            if case.fault == UNBROKEN:
                yield judge(fork(monitor), case, number, clean, clean)
                continue
            try:
                rows = broken_rows(injector, scene, case, seed=_seed(seed, number, case))
            except (InputError, ModelError) as error:
                skipped(case, str(error))
                continue
            yield judge(fork(monitor), case, number, clean, rows, own)
    if total is not None:
        progress("drill", total, total)


def broken_rows(injector: Injector, scene: Scene, case: Case, seed: int) -> list[StatRow]:
    """Rows of a scene with one case put in."""
    if case.ramp:
        levels = ramp(case.severity, int(RAMP_S * injector.rate_hz), scene.length)
    else:
        levels = levels_of(case.severity, scene.length)
    return injector.rows(scene, [Injection(case.fault, levels, seed, case.variant)])


def judge(
    monitor: Monitor,
    case: Case,
    scene: int,
    clean: Sequence[StatRow],
    rows: Sequence[StatRow],
    own: Mapping[str, int] | None = None,
) -> Outcome:
    """Feed a warm monitor with the broken rows and see what it says.

    ``own``: flags that the ``clean`` rows raise, and the frame of each.
    """
    own = own or {}
    standing = any(flag.status is FlagStatus.CONFIRMED for flag in monitor.report.flags)
    delay: int | None = None
    flag = at_once = named = second = exact = None
    start = monitor.report.frame
    before = _confirmed(monitor)
    for row in rows:
        report = monitor.step(row)
        guess = report.guess
        if guess is not None and guess.score is not None:
            named, second = guess.name, guess.second
        confirmed = _confirmed(monitor)
        raised = [code for code in confirmed if code not in before and row.frame < own.get(code, math.inf)]
        before = confirmed
        if raised and delay is None and not standing:
            delay, flag, at_once = row.frame - start, raised[0], named
        if exact is None:
            exact = next((GUARDS[code] for code in raised if code in GUARDS), None)
    speeds = [row.context.get("speed_mps") for row in rows]
    known = [speed for speed in speeds if speed is not None]
    consistency = monitor.report.consistency
    return Outcome(
        fault=case.fault,
        severity=case.severity,
        ramp=case.ramp,
        scene=scene,
        impact=_impact(clean, rows),
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


def _impact(clean: Sequence[StatRow], rows: Sequence[StatRow]) -> float:
    """Share of the decisions that differ from the clean ones of the same frame."""
    by_frame = dict(zip((row.frame for row in clean), decisions(list(clean)).tolist(), strict=True))
    answers = decisions(list(rows)).tolist()
    changed = [
        answer != by_frame[row.frame]
        for row, answer in zip(rows, answers, strict=True)
        if row.frame in by_frame
    ]
    return sum(changed) / len(changed) if changed else 0.0


def _raised(monitor: Monitor, rows: Sequence[StatRow]) -> dict[str, int]:
    """Find the flags that rows raise, and the first frame of each."""
    found: dict[str, int] = {}
    before = _confirmed(monitor)
    for row in rows:
        monitor.step(row)
        confirmed = _confirmed(monitor)
        found |= {code: row.frame for code in confirmed if code not in before and code not in found}
        before = confirmed
    return found


def _confirmed(monitor: Monitor) -> list[str]:
    """Name the flags that stand; transitions would miss one that flutters and is not told again."""
    return [flag.code for flag in monitor.report.flags if flag.status is FlagStatus.CONFIRMED]


def _seed(seed: int, scene: int, case: Case) -> int:
    """Seed of one case in one scene: the same, whatever else is drilled."""
    return (seed * 1_000_003 + scene) * 1009 + round(100 * case.severity) + 500 * case.ramp
