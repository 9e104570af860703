"""Section of a recording's page on one flag: what led to its confirmation, and where."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_monitor.flag_causes import locate
from edge_monitor.flag_table import FLAGS
from edge_monitor.offline.page import (
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    clock_tenths,
    csv_text,
    number,
    place_of,
)
from edge_monitor.offline.plots import voxel_stack
from edge_monitor.offline.plots_recording import CLIP_Z, STATE_MARK
from edge_monitor.offline.watching import FreezeFrame
from edge_monitor.region_map import RegionMap
from edge_monitor.reports import CHANNELS, Connectivity, HealthReport

_FLAG_ROWS = {row.code: row for row in FLAGS}
_OFFSETS = (-32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32)


def freeze_frame_section(region_map: RegionMap, index: int, freeze: FreezeFrame) -> Section:
    """Show the numbers that raised a flag, the reports around it, and the voxels at that moment."""
    transition = freeze.transition
    row = _FLAG_ROWS[transition.code]
    connectivity = freeze.seen.connectivity if freeze.seen else None
    root = None if connectivity is None else connectivity.root
    pairs = (
        ("cause", transition.cause),
        *((name, f"{value:.6g}") for name, value in transition.values.items()),
        ("frame", str(transition.frame)),
        ("severity", STATE_MARK[row.severity]),
        *((("root cause", _place(region_map, root)),) if root is not None else ()),
    )
    return Section(
        anchor=f"flag-{index}",
        title=f"{index} · {transition.code} at {clock_tenths(freeze.at_s)}",
        lead=row.text,
        parts=(Facts(pairs), _around(index, freeze), *_where(region_map, index, freeze)),
    )


def _place(region_map: RegionMap, voxel: int) -> str:
    tap, place = locate(region_map.taps, voxel)
    return f"{tap.name} {list(place)}"


def _role(connectivity: Connectivity | None, voxel: int) -> str:
    """Say what a voxel is in the order of causes."""
    if connectivity is None or not connectivity.alarming[voxel]:
        return ""
    if voxel == connectivity.root:
        return "◆ root"
    return "under the root" if connectivity.under[voxel] else "alarms"


def _around(index: int, freeze: FreezeFrame) -> Table:
    """Scores of the reports around the confirmation."""
    rows = []
    for offset in _OFFSETS:
        i = freeze.index + offset
        if 0 <= i < len(freeze.reports):
            report = freeze.reports[i]
            after_s = (report.t_ns - freeze.transition.t_ns) / 1e9
            rows.append(
                (
                    STATE_MARK[report.state],
                    str(report.frame),
                    number(after_s, 2, signed=True),
                    *_scores(report),
                )
            )
    headers = ("state", "frame", "Δ s", *CHANNELS, "consistency", "confidence")
    return Table(f"around-{index}", "Evidence before and after, 1 = alarm", headers, tuple(rows), shown=64)


def _scores(report: HealthReport) -> tuple[str, ...]:
    ratio = np.full(len(CHANNELS), np.nan) if report.evidence is None else report.evidence.ratio
    consistency = None if report.consistency is None else report.consistency.score
    return (*(number(float(r)) for r in ratio), number(consistency), number(report.vitals.confidence))


def _where(region_map: RegionMap, index: int, freeze: FreezeFrame) -> Iterator[Part]:
    """Voxels at the confirmation, those that matter most first."""
    if freeze.seen is None or freeze.seen.regions is None:
        yield Text("Nothing is known about the regions at that time.")
        return
    z, impact = freeze.seen.regions.z, region_map.impact
    theta = np.full(z.size, np.nan) if impact is None else impact.theta
    worth = np.abs(theta) * np.abs(z)
    order = [int(i) for i in np.lexsort((-np.abs(z), -worth)) if np.isfinite(z[i])]  # NaN sorts last
    rows = tuple(
        (
            *place_of(region_map.taps, i),
            _role(freeze.seen.connectivity, i),
            number(z[i], 1, signed=True),
            number(theta[i], 4, signed=True),
            number(worth[i], 4),
        )
        for i in order
    )
    headers = ("tap", "group · row · column", "", "z", "θ", "|θ|·|z|")
    csv = csv_text(headers, rows)
    yield Figure(
        name=f"where-{index}",
        svg=voxel_stack(region_map.taps, z, np.abs(z) >= 3, "z against clean frames", CLIP_Z),
        alt="The network as a stack of voxel grids coloured by z at the confirmation.",
        caption=f"Density of every voxel against clean frames, at frame {freeze.seen.frame}. Orange and + : "
        "above, purple and − : below; a sign from 3 on. Hatched: not known.",
        csv=csv,
    )
    title = "Voxels by |z|" if impact is None else "Voxels by |θ|·|z|"
    yield Table(f"voxels-{index}", title, headers, rows[:24], shown=8, words=3)
