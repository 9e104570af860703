"""The page of the benchmark of detection, in Markdown, from its stored results alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median

from _detection_compare import FUSED
from _detection_config import BUDGETS, RATE_HZ
from _detection_goals import AHEAD, FREEZE_FRAMES, GOALS, Value, best_peer, estimate, peer_names, peer_of
from _detection_results import ConfigurationResult, FaultRow, Results

from edge_monitor.offline.thresholds import poisson_interval

GOALS_TEXT = """\
*Named right in the first 3 s* is the likeliest fault at the end of the scene, 3 s after the onset; *named
right when the flag was raised* is the one that the flag's cause keeps. An exact flag names its fault in both.

*Types left out of the training*: every fault that the head learns is left out once, and looked for with the
head that never saw it. Frozen exact, NaN/Inf and frame reorder do not count here: no head learns them, guards
find them.

*Without fault head and picture channels*: fault head, sudden shift, stall and input densities are off. The
spectral line of the input, the residual of the first layer, which is predicted from the input, and the exact
guards are still there."""
PEERS_TEXT = """\
Each with the exact flags as guards, the gate for over-exposed frames, and the best of its raw score, minimum
over 4, mean over 12 and CUSUM, chosen on the design scenes. They see the same clean frames before each onset
as the monitor does. Percent of events detected; false alarms are those on the fresh trips. An alarm that the
scene raises without any fault counts as found for a peer, but not for the monitor.

Max softmax and ADWIN have the model's own confidence. Energy and ViM need logits, which rows do not hold:
theirs are what the healthy last layer makes of the activations before it, so that these two cannot see a
fault in the last layer's own weights."""


def page(results: Results) -> str:
    """Write the whole page."""
    configurations = list(results.configurations.values())
    parts = [
        "# What the monitor detects",
        introduction(configurations),
        "## Goals",
        goals(configurations),
        GOALS_TEXT,
        "## False alarms on clean driving",
        false_alarms(configurations),
        "## Peers on the same rows",
        PEERS_TEXT,
        *(peers(configurations, budget) for budget in BUDGETS),
        "## Configurations",
        by_configuration(configurations),
    ]
    for budget in BUDGETS:
        parts += [f"## Fault by fault at {budget}", faults(configurations, budget)]
    parts += ["## Trips, times, versions", provenance(results)]
    return "\n\n".join(parts) + "\n"


def introduction(configurations: Sequence[ConfigurationResult]) -> str:
    scenes = " + ".join(str(c.splits["test"][1]) for c in configurations)
    return (
        "Written by `tools/bench_detection --page` from `detection.json`. "
        f"24 faults at 3 severities in {scenes} scenes of unseen trips. Percentages are means over the "
        "configurations; 95 % intervals behind them come from drawing whole scenes anew, with replacement. A "
        "fault has impact when it changes at least 10 % of the decisions. An alarm that stood before the "
        "onset is a miss."
    )


def measured(configurations: Sequence[ConfigurationResult]) -> str:
    """Say in one sentence which configurations were measured, and in which mode."""
    modes: dict[str, list[str]] = {}
    for c in configurations:
        text = f"{c.name} (`{Path(c.model).stem}`, world {c.world})"
        modes.setdefault(c.mode, []).append(text)
    rough = {mode: "" if mode == "full" else ", so that the numbers are rough" for mode in modes}
    return "Measured: " + "; ".join(f"{', '.join(modes[m])} in {m} mode{rough[m]}" for m in modes) + "."


def goals(configurations: Sequence[ConfigurationResult]) -> str:
    """Table of the goals, and above it what it was measured on."""
    rows = []
    for goal in GOALS:
        cells = []
        for budget, least in zip(BUDGETS, goal.least, strict=True):
            value = estimate([[c.shares[goal.metric][budget]] for c in configurations])
            met = None if value is None or least is None else 100 * value[0] >= least - 1e-9
            cells += [_percent(value), "–" if least is None else f"≥ {least:g} %", _met(met)]
        rows.append([goal.text, *cells])
    slowest = [c.slowest_freeze for c in configurations]
    missed = None in slowest
    frames = "one missed" if missed else str(max(s for s in slowest if s is not None))
    met = _met(not missed and int(frames) <= FREEZE_FRAMES)
    rows.append(["slowest exact freeze, frames", *[frames, f"≤ {FREEZE_FRAMES}", met] * 2])
    cells = []
    for budget, ahead in zip(BUDGETS, AHEAD, strict=True):
        best, lead = best_peer(configurations, budget)
        met = None if lead is None else 100 * lead[0] >= ahead
        cells += [f"{_percent(lead)} ({best})", f"≥ {ahead:g} points", _met(met)]
    rows.append(["ahead of the best peer, impacting, 3 s", *cells])
    cells = []
    for budget, promise in BUDGETS.items():
        fresh = [c.alarms["fresh"][budget] for c in configurations]
        events, hours = sum(a.events for a in fresh), sum(a.hours for a in fresh)
        low, high = poisson_interval(events, hours)
        met = low <= promise  # fewer than promised break no promise
        cells += [f"{events / hours:.2f} [{low:.2f}, {high:.2f}]", f"{promise:.3g} in interval", _met(met)]
    rows.append(["false alarms per hour on fresh trips", *cells])
    header = ["", *(cell for budget in BUDGETS for cell in (budget, "goal", "met"))]
    return f"{measured(configurations)}\n\n{table(header, rows)}"


def false_alarms(configurations: Sequence[ConfigurationResult]) -> str:
    header = [
        "",
        "part",
        "budget",
        "events",
        "hours",
        "per hour",
        "95 %",
        "kept",
        "standing still",
        "by flag",
    ]
    rows = []
    for c in configurations:
        for part, name in {"fresh": "fresh trips", "judge": "end of the pool"}.items():
            for budget, promise in BUDGETS.items():
                a = c.alarms[part][budget]
                low, high = poisson_interval(a.events, a.hours)
                numbers = [
                    str(a.events),
                    f"{a.hours:.2f}",
                    f"{a.events / a.hours:.2f}",
                    f"{low:.2f} … {high:.2f}",
                ]
                flags = ", ".join(f"{code} {n}" for code, n in sorted(a.flags.items()))
                standing = f"{a.standing_events} in {a.standing_hours:.2f} h"
                rows.append([c.name, name, budget, *numbers, _met(low <= promise), standing, flags or "–"])
    return table(header, rows)


def peers(configurations: Sequence[ConfigurationResult], budget: str) -> str:
    metrics = ("impacting 1 s", "impacting 3 s", "all 1 s", "all 3 s")
    header = [f"at {budget}", *metrics, "false alarms per hour", "transform"]
    hours = sum(c.alarms["fresh"][budget].hours for c in configurations)
    own = [_percent(estimate([[c.shares[m][budget]] for c in configurations])) for m in metrics]
    alarms = sum(c.alarms["fresh"][budget].events for c in configurations) / hours
    rows = [["**this monitor**", *own, f"{alarms:.2f}", "–"]]
    for name in peer_names(configurations):
        found = [peer_of(c, name, budget) for c in configurations]
        values = [_percent(estimate([[peer.shares[m]] for peer in found])) for m in metrics]
        alarms = sum(peer.alarms for peer in found) / hours
        transforms = ", ".join(dict.fromkeys(peer.transform for peer in found))
        shown = f"*{name}*" if name == FUSED else name
        rows.append([shown, *values, f"{alarms:.2f}", transforms])
    return table(header, rows)


def by_configuration(configurations: Sequence[ConfigurationResult]) -> str:
    names = [f"{c.name} ({c.mode} mode), {budget}" for c in configurations for budget in BUDGETS]
    rows = [
        [
            goal.text,
            *(_percent(estimate([[c.shares[goal.metric][b]]])) for c in configurations for b in BUDGETS),
        ]
        for goal in GOALS
    ]
    delays = [c.delay[b] for c in configurations for b in BUDGETS]
    rows.append(["median delay of those detected, frames", *(_number(d, "{:g}") for d in delays)])
    return table(["", *names], rows)


def faults(configurations: Sequence[ConfigurationResult], budget: str) -> str:
    groups: dict[tuple[str, float, bool], list[FaultRow]] = {}
    for c in configurations:
        for row in c.faults:
            if row.budget == budget:
                groups.setdefault((row.fault, row.severity, row.ramp), []).append(row)
    header = [
        *("fault", "severity", "events", "decisions changed", "0.5 s", "1 s", "3 s", "found", "median delay"),
        *("flag raised most", "named right", "agreement", "consistency"),
    ]
    rows = []
    for (fault, severity, ramp), found in groups.items():
        flags = list(dict.fromkeys(row.flag for row in found if row.flag))
        delays = [row.delay for row in found if row.delay is not None]
        rows.append(
            [
                fault + (", ramp" if ramp else ""),
                f"{severity:g}" if severity else "–",
                str(sum(row.events for row in found)),
                _mean((row.impact for row in found), "{:.0%}"),
                *(_mean((row.within[k] for row in found), "{:.0%}") for k in range(3)),
                _mean((row.found for row in found), "{:.0%}"),
                _number(median(delays) if delays else None, "{:g}"),
                ", ".join(flags) or "–",
                _mean((row.named for row in found), "{:.0%}"),
                _mean((row.agreement for row in found), "{:.2f}"),
                _mean((row.consistency for row in found), "{:.2f}"),
            ]
        )
    return table(header, rows)


def provenance(results: Results) -> str:
    rows = [
        [
            c.name,
            f"`{c.model}`",
            str(c.world),
            c.mode,
            "; ".join(f"{name} {first}–{first + n - 1}" for name, (first, n) in c.splits.items()),
            f"{sum(c.seconds.values()) / 60:.0f} min",
            ", ".join(f"{name} {version}" for name, version in c.versions.items()),
        ]
        for c in results.configurations.values()
    ]
    header = ["", "model", "world", "mode", "trips", "measured in", "with"]
    return f"{table(header, rows)}\n\n{RATE_HZ:g} frames/s."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: Value | None) -> str:
    return "–" if value is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in value))


def _met(met: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "–"}[met]


def _number(value: float | None, text: str) -> str:
    return "–" if value is None else text.format(value)


def _mean(values: Iterable[float | None], text: str) -> str:
    known = [value for value in values if value is not None]
    return _number(mean(known) if known else None, text)
