"""Figures of a recording's page: all over the same time axis, so that they line up down the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from edge_monitor.offline.page import clock, number
from edge_monitor.offline.plots import (
    ACCENT,
    FAINT,
    GREY,
    INK,
    UNKNOWN_FILL,
    WARM,
    WIDTH_IN,
    drawing,
    levels,
    short,
)
from edge_monitor.reports import HealthState
from edge_monitor.types import BoolArray, FloatArray, TapSpec

STATE_MARK = {
    HealthState.OK: "●\u00a0OK",
    HealthState.WARMING: "◔\u00a0WARMING",
    HealthState.NEVER_SEEN: "○\u00a0NEVER\u00a0SEEN",
    HealthState.WARN: "▲\u00a0WARN",
    HealthState.STALE: "◌\u00a0STALE",
    HealthState.FAIL: "✖\u00a0FAIL",
}
# The worse, the darker: the order survives grey print.
_STATE_COLOUR = {
    HealthState.OK: "#a9cbe3",
    HealthState.WARMING: "#dbe3ea",
    HealthState.NEVER_SEEN: "#eceff2",
    HealthState.WARN: "#e3a03c",
    HealthState.STALE: "#8b6bb1",
    HealthState.FAIL: "#7d1d3f",
}
PENDING, CONFIRMED = 1, 2
CLIP_Z = 6.0
STANDS_S = 3.0
"""A state is drawn on through a silence of this length."""
_CLIP_LANE = 4.0
_LEFT, _RIGHT = 0.155, 0.925
_TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Axis(NamedTuple):
    """Time axis of a page: width of a column, length, and when which numbered flag was confirmed."""

    column_s: float
    length_s: float
    marks: tuple[tuple[float, str], ...]


def _rows(axis: Axis, heights_in: Sequence[float], gap_in: float = 0.1) -> tuple[Figure, list[Axes]]:
    """Panels of given heights above one another; the lowest carries the time."""
    top, bottom = 0.3, 0.35
    total = sum(heights_in) + gap_in * (len(heights_in) - 1) + top + bottom
    figure = Figure((WIDTH_IN, total))
    panels, y = [], total - top
    for height in heights_in:
        y -= height
        panels.append(figure.add_axes((_LEFT, y / total, _RIGHT - _LEFT, height / total)))
        y -= gap_in
    step = next((s for s in _TICKS_S if axis.length_s / s <= 10), _TICKS_S[-1])
    ticks = np.arange(0, axis.length_s + 1e-9, step)
    for panel in panels:
        panel.set_xlim(0, max(axis.length_s, axis.column_s))
        panel.set_xticks(ticks, [clock(t) for t in ticks] if panel is panels[-1] else [])
        panel.tick_params(axis="y", length=0)
        for t, _ in axis.marks:
            panel.axvline(t, color=INK, linewidth=0.6, linestyle=(0, (4, 3)), zorder=4)
    for t, label in _labels(axis):
        panels[0].annotate(
            label,
            (t, 1),
            (0, 11),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            size=8,
            weight="bold",
        )
    return figure, panels


def _labels(axis: Axis) -> list[tuple[float, str]]:
    """Join marks too close to be told apart under the first of them."""
    groups: list[list[tuple[float, str]]] = []
    for mark in axis.marks:
        if groups and mark[0] - groups[-1][0][0] < 0.02 * axis.length_s:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [(group[0][0], "–".join(dict.fromkeys((group[0][1], group[-1][1])))) for group in groups]


def _runs(mask: BoolArray, column_s: float) -> Iterator[tuple[float, float]]:
    """Start and length in seconds of every run of true columns."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        yield first * column_s, (last - first) * column_s


def _hatch_gaps(panel: Axes, axis: Axis, missing: BoolArray) -> None:
    """Hatch the time of which nothing is known."""
    for start, length in _runs(missing, axis.column_s):
        panel.axvspan(start, start + length, zorder=0, **UNKNOWN_FILL)


def _standing(axis: Axis, values: FloatArray) -> FloatArray:
    """Let what was said stand through the silence after it, though not for ever."""
    standing, silence_s = values.copy(), 0.0
    for before, now in pairwise(standing):
        silence_s = silence_s + axis.column_s if np.isnan(now).all() else 0.0
        if 0 < silence_s <= STANDS_S:
            now[:] = before
    return standing


@drawing
def health(axis: Axis, state: FloatArray, status: FloatArray, codes: Sequence[str]) -> Figure:
    """Draw a lane for every health state that occurred, worst on top, and below one for every flag raised.

    ``state`` (n_columns,), ``status`` (n_columns, n_codes) with `PENDING` and `CONFIRMED`.
    """
    silent = np.isnan(state)
    state, status = _standing(axis, state[:, None])[:, 0], _standing(axis, status)
    states = [s for s in sorted(HealthState, reverse=True) if (state == s).any()]
    lane = 0.22
    figure, panels = _rows(axis, [lane * len(states), *([lane * len(codes)] if codes else [])])
    for y, level in enumerate(states):
        panels[0].broken_barh(
            list(_runs(state == level, axis.column_s)),
            (y - 0.4, 0.8),
            facecolor=_STATE_COLOUR[level],
            edgecolor=FAINT,
            linewidth=0.3,
        )
    panels[0].set_yticks(range(len(states)), [STATE_MARK[level] for level in states])
    for y in range(len(codes)):
        for value, height, colour in ((PENDING, 0.3, FAINT), (CONFIRMED, 0.8, INK)):
            spans = list(_runs(status[:, y] == value, axis.column_s))
            panels[1].broken_barh(spans, (y - height / 2, height), facecolor=colour, linewidth=0)
    if codes:
        panels[1].set_yticks(range(len(codes)), codes, size=7)
    for panel, count in zip(panels, (len(states), len(codes)), strict=False):
        panel.set_ylim(count - 0.45, -0.55)
        _hatch_gaps(panel, axis, silent)
    return figure


@drawing
def spectrograms(axis: Axis, taps: Sequence[TapSpec], bands: Sequence[str], log_power: FloatArray) -> Figure:
    """Draw log10 band power over time, one strip a tap, the lowest band at the bottom.

    ``log_power`` (n_columns, n_taps, n_bands); colours reach from the 2nd to the 98th percentile of each tap.
    """
    figure, panels = _rows(axis, [0.62] * len(taps), gap_in=0.24)
    cmap = levels("viridis", 32)
    for i, (panel, tap) in enumerate(zip(panels, taps, strict=True)):
        values = log_power[:, i].T
        known = values[np.isfinite(values)]
        low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
        norm = Normalize(low, max(high, low + 1e-6))
        _image(panel, axis, values, norm, cmap, origin_lower=True)
        panel.set_yticks(range(len(bands)), bands, size=6.5)
        panel.set_title(short(tap.name, 40), pad=2, size=8)
        _side_bar(figure, panel, norm, cmap, number(low, 1), number(high, 1))
    return figure


@drawing
def carpet(axis: Axis, taps: Sequence[TapSpec], z: FloatArray) -> Figure:
    """Draw z of every voxel over time, (n_columns, n_voxels), grouped by tap, clipped at ± `CLIP_Z`."""
    n_voxels = z.shape[1]
    figure, panels = _rows(axis, [float(np.clip(0.055 * n_voxels, 1.5, 6.5))])
    norm, cmap = Normalize(-CLIP_Z, CLIP_Z), levels("PuOr_r", 25)
    _image(panels[0], axis, z.T, norm, cmap)
    edges = np.cumsum([0, *(tap.n_voxels for tap in taps)])
    for edge in edges[1:-1]:
        panels[0].axhline(edge - 0.5, color=INK, linewidth=0.8)
    panels[0].set_yticks((edges[:-1] + edges[1:] - 1) / 2, [short(tap.name) for tap in taps])
    _side_bar(figure, panels[0], norm, cmap, f"−{CLIP_Z:g}", f"+{CLIP_Z:g}")
    return figure


def _image(
    panel: Axes,
    axis: Axis,
    values: FloatArray,
    norm: Normalize,
    cmap: Colormap,
    *,
    origin_lower: bool = False,
) -> None:
    rows, columns = values.shape
    extent = (0, columns * axis.column_s, rows - 0.5, -0.5)
    if origin_lower:
        values, extent = values[::-1], (*extent[:2], -0.5, rows - 0.5)
    limits = panel.get_xlim()
    panel.patch.set(**UNKNOWN_FILL)
    panel.imshow(np.ma.masked_invalid(values), cmap=cmap, norm=norm, aspect="auto", extent=extent)
    panel.set_xlim(limits)
    panel.spines[:].set_visible(False)


def _side_bar(figure: Figure, panel: Axes, norm: Normalize, cmap: Colormap, low: str, high: str) -> None:
    """Colour bar right of a panel, its ends labelled."""
    box = panel.get_position()
    axes = figure.add_axes((_RIGHT + 0.012, box.y0, 0.01, box.height))
    bar = figure.colorbar(ScalarMappable(norm, cmap), cax=axes, ticks=[norm.vmin, norm.vmax])
    bar.ax.set_yticklabels([low, high], size=7)
    bar.ax.tick_params(length=0, pad=2)
    bar.outline.set_visible(False)


@drawing
def consistency(axis: Axis, values: FloatArray, names: Sequence[str]) -> Figure:
    """Draw the score, first of the columns, and its terms, (n_columns, n_terms + 1)."""
    figure, panels = _rows(axis, [1.5])
    panel = panels[0]
    t = (np.arange(len(values)) + 0.5) * axis.column_s
    styles = (("-", ACCENT, 1.6), ("--", WARM, 0.9), ("-.", INK, 0.9), (":", FAINT, 1.2))
    for column, name, (dash, colour, width) in zip(values.T, names, styles, strict=True):
        panel.plot(t, column, dash, color=colour, linewidth=width, label=name)
    panel.set_ylim(-1.05, 1.05)
    panel.set_yticks([-1, 0, 1], ["−1", "0", "1"])
    panel.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    panel.legend(loc="lower left", ncols=4, frameon=False, fontsize=7.5, borderpad=0, handlelength=2.6)
    _hatch_gaps(panel, axis, np.isnan(values[:, 0]))
    return figure


@drawing
def lanes(axis: Axis, values: FloatArray, names: Sequence[str], over: str = ACCENT) -> Figure:
    """Draw one lane a name, (n_columns, n_names), clipped at 4; what exceeds 1 in colour ``over``."""
    figure, panels = _rows(axis, [0.42] * len(names))
    edges = np.arange(len(values) + 1) * axis.column_s
    for panel, column, name in zip(panels, values.T, names, strict=True):
        known = column[np.isfinite(column)]
        top = float(np.clip(known.max(), 1.25, _CLIP_LANE)) if known.size else 1.25
        panel.stairs(np.clip(column, 0, top), edges, fill=True, color=ACCENT, alpha=0.35, linewidth=0)
        alarming = np.where(column > 1, np.clip(column, 0, top), np.nan)
        panel.stairs(alarming, edges, baseline=1, fill=True, color=over, linewidth=0)
        panel.axhline(1, color=INK, linewidth=0.7, linestyle=(0, (2, 2)))
        panel.set(ylim=(0, top * 1.02))
        panel.set_yticks([top / 2], [short(name)])
        panel.text(
            1.01,
            0.5,
            f"max {known.max():.3g}" if known.size else "–",
            transform=panel.transAxes,
            va="center",
            size=7.5,
            color=INK,
        )
        _hatch_gaps(panel, axis, np.isnan(column))
    return figure
