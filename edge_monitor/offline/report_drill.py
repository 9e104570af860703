"""What the page of a drill holds: what was detected, how soon, and what each fault stands for."""

from __future__ import annotations

import numpy as np

from edge_monitor.offline import plots_drill
from edge_monitor.offline.drill import IMPACTING, RAMP_S, UNBROKEN, Outcome
from edge_monitor.offline.drill_table import (
    HELD,
    Drilled,
    FaultLine,
    cells,
    explanation,
    headers,
    how_strong,
    remarks,
)
from edge_monitor.offline.faults import EXTRAS, FAULTS
from edge_monitor.offline.page import Facts, Figure, Page, Section, Table, Text, csv_text
from edge_monitor.types import FloatArray

ENOUGH = 0.9
"""Share of the sudden faults with impact that has to be found for the page to be calm."""


def drill_page(drilled: Drilled) -> Page:
    """Page of a drill."""
    sudden = [o for o in drilled.outcomes if o.fault != UNBROKEN and not o.ramp and o.severity > 0.0]
    counted = [o for o in sudden if o.fault != HELD or o.moving is not False]
    serious = [o for o in counted if o.impacting]
    return Page(
        title=f"Drill of {drilled.model} on {drilled.source}",
        badge="DRILLED",
        level="calm" if not serious or _share(serious, drilled) >= ENOUGH else "warn",
        verdict=_verdict(serious, counted, drilled),
        warnings=tuple(remarks(drilled)),
        sections=(
            _detection(drilled),
            _delays(drilled),
            Section(
                "table",
                "Every fault",
                explanation(drilled),
                (
                    Table(
                        name="drill",
                        title="",
                        headers=headers(),
                        rows=tuple(cells(line) for line in drilled.lines),
                        shown=len(drilled.lines),
                    ),
                ),
            ),
            _faults(drilled),
            _provenance(drilled),
        ),
    )


def _verdict(serious: list[Outcome], counted: list[Outcome], drilled: Drilled) -> str:
    if not counted:
        return "No sudden fault was put in."
    longest = drilled.within_s[-1]
    found = f"{_share(counted, drilled):.0%} of {len(counted)} sudden faults"
    words = f"Within {longest:g} s the monitor found {found}"
    if not serious:
        return f"{words}, none of which changed {IMPACTING:.0%} of the decisions."
    least = f"the {len(serious)} that changed at least {IMPACTING:.0%} of the decisions"
    return f"{words}, and {_share(serious, drilled):.0%} of {least}."


def _share(outcomes: list[Outcome], drilled: Drilled) -> float:
    within = sum(o.within(drilled.within_s[-1], drilled.frame_rate_hz) for o in outcomes)
    return within / len(outcomes)


def _detection(drilled: Drilled) -> Section:
    faults = list(dict.fromkeys(line.fault for line in drilled.lines))
    columns = [how_strong(line) for line in sorted(drilled.lines, key=lambda n: (n.ramp, n.severity))]
    columns = list(dict.fromkeys(columns))
    share = np.full((len(faults), len(columns)), np.nan)
    words = [[""] * len(columns) for _ in faults]
    for line in drilled.lines:
        row, column = faults.index(line.fault), columns.index(how_strong(line))
        if line.scenes:
            share[row, column] = _found(line) / line.scenes
            words[row][column] = f"{_found(line)}/{line.scenes}"
    longest = drilled.within_s[-1]
    titles = [column if column == "ramp" else f"severity {column}" for column in columns]
    parts: tuple[Figure | Text, ...] = (Text("No fault was put in."),)
    if faults:
        parts = (
            Figure(
                name="detection",
                svg=plots_drill.detection(faults, titles, share, words),
                alt=f"Faults by severity, coloured by the share of scenes with a detection in {longest:g} s.",
                caption=f"Scenes in which a flag was confirmed within {longest:g} s; of a ramp, before it "
                f"reached its full strength after {RAMP_S:g} s. Hatched: not drilled.",
                csv=csv_text(
                    ("fault", "severity", "scenes", "detected"),
                    (
                        (line.fault, how_strong(line), str(line.scenes), str(_found(line)))
                        for line in drilled.lines
                    ),
                ),
            ),
        )
    lead = "Each fault was put into the same clean scenes, from one frame on; the monitor was warm before it."
    return Section("detection", "Detection", lead, parts)


def _found(line: FaultLine) -> int:
    """Count the scenes of a line in which the fault was detected in time."""
    return line.found if line.ramp else line.within[-1]


def _delays(drilled: Drilled) -> Section:
    faults = list(dict.fromkeys(line.fault for line in drilled.lines))
    found = [o for o in drilled.outcomes if o.delay is not None and o.fault in faults]

    def of(fault: str, *, ramp: bool) -> FloatArray:
        return np.array([o.delay for o in found if o.fault == fault and o.ramp is ramp], np.float64)

    lead = "One frame is the first faulty one. What was never detected is not shown."
    if not found:
        return Section("delay", "Delay", lead, (Text("Nothing was detected."),))
    figure = Figure(
        name="delay",
        svg=plots_drill.delays(
            faults,
            [of(fault, ramp=False) for fault in faults],
            [of(fault, ramp=True) for fault in faults],
            round(RAMP_S * drilled.frame_rate_hz),
        ),
        alt="Frames from onset to flag of every detected case, one row a fault.",
        caption="Blue dots: sudden faults, all severities; the bar is their median. Orange diamonds: ramps.",
        csv=csv_text(
            ("fault", "severity", "ramp", "scene", "frames", "flag"),
            (
                (o.fault, f"{o.severity:g}", str(o.ramp), str(o.scene), str(o.delay), o.flag or "")
                for o in found
            ),
        ),
    )
    return Section("delay", "Delay", lead, (figure,))


def _faults(drilled: Drilled) -> Section:
    drilled_faults = {line.fault for line in drilled.lines} | {left.fault for left in drilled.left_out}
    rows = tuple(
        (fault.name, fault.stage.value, fault.text)
        for fault in (*FAULTS, *EXTRAS)
        if fault.name in drilled_faults
    )
    table = Table("faults", "", ("fault", "put into", "what it stands for"), rows, shown=len(rows), words=3)
    return Section("faults", "What was put in", "", (table,))


def _provenance(drilled: Drilled) -> Section:
    facts = Facts(
        (
            ("model", drilled.model),
            ("clean frames", drilled.source),
            ("map calibrated on", drilled.calibrated_on),
            ("scenes", f"{drilled.unbroken.scenes}, {RAMP_S:g} s each from the onset on"),
            ("seed", str(drilled.seed)),
        )
    )
    return Section("provenance", "How it was made", "", (facts,))
