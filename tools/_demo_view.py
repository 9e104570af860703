"""What the demo shows while it drives: one rich renderable made from one health report."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from edge_monitor.region_map import RegionMap
from edge_monitor.reports import STATES, FlagStatus, HealthReport, HealthState
from edge_monitor.types import BANDS

RAMP = " ▁▂▃▄▅▆▇█"
STATE_STYLE = {
    HealthState.OK: ("● OK", "bold green"),
    HealthState.WARMING: ("◔ WARMING", "bold cyan"),
    HealthState.NEVER_SEEN: ("○ NEVER SEEN", "bold cyan"),
    HealthState.WARN: ("▲ WARN", "bold yellow"),
    HealthState.STALE: ("◌ STALE", "bold magenta"),
    HealthState.FAIL: ("✖ FAIL", "bold red"),
}


def render(report: HealthReport, region_map: RegionMap, scene: str, progress: Progress) -> RenderableType:
    """Draw state, taps with band powers and regions, flags, and the progress of the drive."""
    glyph, style = STATE_STYLE[report.state]
    head = Text.assemble((f" {glyph} ", style), f"  camera: {scene}   ", (" · ".join(report.reasons), "dim"))
    parts: list[RenderableType] = [head, _taps(report, region_map), _scores(report), _flags(report), progress]
    return Panel(Group(*parts), title="edge_monitor demo: a road drive at 30 frames/s")


def _taps(report: HealthReport, region_map: RegionMap) -> Table:
    table = Table(expand=True, pad_edge=False, padding=(0, 1, 0, 0), box=None)
    table.add_column("tap", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=15)
    for band in BANDS:
        table.add_column(band, justify="right", min_width=5)
    table.add_column("|z| per region", no_wrap=True)
    first = 0
    for i, tap in enumerate(region_map.taps):
        bands, regions = report.bands, report.regions
        voxels = Text("")
        if regions is not None:
            voxels = heat(np.abs(regions.z[first : first + tap.n_voxels]))
        first += tap.n_voxels
        powers = [Text("–", "dim")] * len(BANDS)
        state = "warming"
        if bands is not None:
            powers = [_band(z) for z in bands.z[i]]
            state = STATES[bands.state[i]] if bands.state[i] >= 0 else state
        table.add_row(tap.name, state, *powers, voxels)
    return table


def _band(z: float) -> Text:
    """Log band power as its z against calibration."""
    if np.isnan(z):
        return Text("–", "dim")
    return Text(f"{np.clip(z, -99.9, 99.9):+.1f}", _heat_style(abs(z)))


def heat(z: np.ndarray) -> Text:
    """One character per voxel, higher and warmer with |z|; a dot where nothing is known."""
    text = Text()
    for value in z:
        known = np.isfinite(value)
        text.append(
            RAMP[min(int(value), len(RAMP) - 1)] if known else "·", _heat_style(value if known else 0.0)
        )
    return text


def _heat_style(z: float) -> str:
    return "green" if z < 3 else "yellow" if z < 6 else "red"


def _scores(report: HealthReport) -> Text:
    def show(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    vitals, consistency = report.vitals, report.consistency
    agreement = consistency.agreement if consistency else None
    score = consistency.score if consistency else None
    return Text(
        f"confidence {show(vitals.confidence)}  entropy {show(vitals.entropy)}  "
        f"rate {show(vitals.rate_hz, 1)} Hz  latency {vitals.latency_ns / 1e6:.2f} ms\n"
        f"consistency {show(score)}  agreement {show(agreement)}",
        "dim",
    )


def _flags(report: HealthReport) -> RenderableType:
    """Flags that are not at rest, worst first."""
    mark = {
        FlagStatus.CONFIRMED: ("✖", "bold red"),
        FlagStatus.PENDING: ("▲", "yellow"),
        FlagStatus.HEALED: ("✓", "green"),
    }
    lines = [
        Text.assemble(
            (f"{mark[flag.status][0]} {flag.code} ", mark[flag.status][1]),
            f"{flag.status.value}  ",
            (flag.cause, "dim"),
        )
        for status in mark
        for flag in report.flags
        if flag.status is status
    ]
    return Group(*lines) if lines else Text("no flags", "dim")
