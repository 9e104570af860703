"""Figures of a region map's page."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edge_monitor.offline.plots import (
    ACCENT,
    FAINT,
    GREY,
    INK,
    UNKNOWN_FILL,
    WARM,
    WIDTH_IN,
    colour_bar,
    drawing,
    levels,
    short,
    text_colour,
)
from edge_monitor.types import BoolArray, FloatArray, TapSpec

_PER_ROW = 4


def _panels(count: int, height_in: float) -> tuple[Figure, list[Axes]]:
    """Figure of so many panels, four in a row."""
    n_rows = -(-count // _PER_ROW)
    columns = min(count, _PER_ROW)
    figure = Figure((WIDTH_IN, n_rows * height_in), layout="constrained")
    panels = figure.subplots(n_rows, columns, squeeze=False).ravel()
    for spare in panels[count:]:
        spare.set_axis_off()
    return figure, list(panels[:count])


@drawing
def densities(taps: Sequence[TapSpec], median: FloatArray, scale: FloatArray) -> Figure:
    """Draw clean density of every voxel, median with a bar of one scale either side, one panel a tap."""
    figure, panels = _panels(len(taps), 1.75)
    first = 0
    for panel, tap in zip(panels, taps, strict=True):
        own = slice(first, first + tap.n_voxels)
        first += tap.n_voxels
        x = np.arange(tap.n_voxels)
        varies = np.isfinite(scale[own])
        panel.vlines(
            x[varies],
            (median - scale)[own][varies],
            (median + scale)[own][varies],
            color=ACCENT,
            linewidth=1.2,
        )
        panel.plot(x[varies], median[own][varies], "o", color=ACCENT, markersize=3)
        panel.plot(x[~varies], median[own][~varies], "o", color=WARM, markersize=4, markerfacecolor="none")
        for edge in range(tap.n_voxels // tap.grid[0], tap.n_voxels, tap.n_voxels // tap.grid[0]):
            panel.axvline(edge - 0.5, color=GREY, linewidth=0.5, zorder=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set(title=short(tap.name), xlabel="voxel", xlim=(-0.7, tap.n_voxels - 0.3))
    return figure


@drawing
def signatures(
    taps: Sequence[TapSpec],
    bands: Sequence[str],
    log_power: FloatArray,
    states: Sequence[str],
    state_mix: FloatArray,
) -> Figure:
    """Draw two coloured tables side by side: log10 band power and share of time a state, (n_taps, n) each."""
    figure = Figure((WIDTH_IN, 1.0 + 0.3 * len(taps)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _cells(left, log_power, bands, "{:.1f}", "log10 band power")
    _cells(right, 100 * state_mix, states, "{:.0f} %", "share of clean frames in a state")
    left.set_yticks(range(len(taps)), [short(tap.name) for tap in taps])
    return figure


def _cells(panel: Axes, values: FloatArray, columns: Sequence[str], form: str, title: str) -> None:
    """Image with the number written into every cell; hatched and "–" where there is none."""
    cmap = levels("cividis", 64)
    known = values[np.isfinite(values)]
    norm = Normalize(known.min(), max(known.max(), known.min() + 1e-9)) if known.size else Normalize(0, 1)
    panel.patch.set(**UNKNOWN_FILL)
    panel.imshow(np.ma.masked_invalid(values), cmap=cmap, norm=norm, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            shown = round(float(value), 1) + 0.0  # no minus before 0
            text, colour = form.format(shown).replace("-", "−"), text_colour(np.array(cmap(norm(value))))
        else:
            text, colour = "–", INK
        panel.text(j, i, text, ha="center", va="center", size=8, color=colour)
    panel.set_xticks(range(len(columns)), [name.replace(" ", "\n", 1) for name in columns])
    panel.set_title(title)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


@drawing
def connectome(
    taps: Sequence[TapSpec],
    strengths: Sequence[FloatArray],
    reliable: Sequence[BoolArray],
    problems: Sequence[str],
) -> Figure:
    """Draw one matrix a transition: source voxels down, target voxels across.

    Colour is the share of the transition's strongest tract. Crossed out where not ``reliable``; a
    transition with a problem shows the problem instead.
    """
    figure, panels = _panels(len(strengths), 2.55)
    norm, cmap = Normalize(0, 1), levels("cividis")
    for i, panel in enumerate(panels):
        panel.set_title(f"{short(taps[i].name, 13)} → {short(taps[i + 1].name, 13)}")
        strength = strengths[i]
        n_source, n_target = strength.shape
        if problems[i] or not np.isfinite(strength).any():
            _say(panel, problems[i] or "no tract could be measured")
            continue
        panel.patch.set(**UNKNOWN_FILL)
        panel.imshow(np.ma.masked_invalid(_relative(strength)), cmap=cmap, norm=norm, aspect="auto")
        rows, columns = np.nonzero(~reliable[i] & np.isfinite(strength))
        inks = [text_colour(colour) for colour in cmap(norm(_relative(strength)[rows, columns]))]
        panel.scatter(columns, rows, s=14, c=inks, marker="x", linewidths=0.8)
        panel.set(xlabel="to voxel", ylabel="from voxel")
        panel.set_xticks(range(0, n_target, max(1, n_target // 4)))
        panel.set_yticks(range(0, n_source, max(1, n_source // 4)))
    colour_bar(figure, panels, norm, cmap, "strength, share of the strongest")
    return figure


def _relative(strength: FloatArray) -> FloatArray:
    """Strength as a share of the strongest of its transition."""
    largest = np.nanmax(strength)
    return strength / largest if largest > 0 else strength


def _say(panel: Axes, problem: str) -> None:
    """Fill a panel with the reason why it shows nothing."""
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_facecolor("#f1f2f4")
    panel.spines[:].set_visible(False)
    panel.text(
        0.5,
        0.5,
        "not traced\n" + fill(problem, 26),
        ha="center",
        va="center",
        size=8,
        color=INK,
        transform=panel.transAxes,
    )


@drawing
def tract_lines(
    taps: Sequence[TapSpec],
    strengths: Sequence[FloatArray],
    reliable: Sequence[BoolArray],
    problems: Sequence[str],
    strong: Sequence[BoolArray],
    weight: FloatArray,
) -> Figure:
    """Draw the voxels of each tap as a column of dots and the ``strong`` tracts as lines between them.

    Width is strength, a dashed line is not ``reliable``; a dot's area is ``weight`` (n_voxels,) in 0 ... 1.
    """
    tallest = max(tap.n_voxels for tap in taps)
    figure = Figure((WIDTH_IN, min(5.0, 1.6 + 0.18 * tallest)), layout="constrained")
    panel = figure.subplots()
    panel.set_axis_off()
    panel.set(xlim=(-0.25, len(taps) - 0.75), ylim=(1.04, -0.1))
    heights = [(np.arange(tap.n_voxels) + 0.5) / tap.n_voxels for tap in taps]
    for i, strength in enumerate(strengths):
        if problems[i] or not np.isfinite(strength).any():
            panel.text(i + 0.5, 0.5, "not traced", ha="center", va="center", color=FAINT, size=8)
            panel.plot((i + 0.1, i + 0.9), (0.56, 0.56), ":", color=FAINT, linewidth=0.8)
            continue
        relative = _relative(strength)
        for source, target in np.argwhere(strong[i]):
            share = relative[source, target]
            panel.plot(
                (i, i + 1),
                (heights[i][source], heights[i + 1][target]),
                color=ACCENT if reliable[i][source, target] else WARM,
                linestyle="-" if reliable[i][source, target] else (0, (3, 2)),
                linewidth=0.3 + 2.7 * share**2,
                alpha=0.25 + 0.6 * share,
                solid_capstyle="round",
            )
    first = 0
    for i, tap in enumerate(taps):
        size = 6 + 60 * weight[first : first + tap.n_voxels]
        panel.scatter(
            np.full(tap.n_voxels, i),
            heights[i],
            s=size,
            color=INK,
            edgecolors="white",
            linewidths=0.7,
            zorder=3,
        )
        panel.text(i, -0.05, short(tap.name, max(5, 96 // len(taps))), ha="center", weight="bold")
        first += tap.n_voxels
    return figure


@drawing
def convergence(
    taps: Sequence[TapSpec], pairs: FloatArray, history: FloatArray, theta: FloatArray, stderr: FloatArray
) -> Figure:
    """Draw theta of every voxel over the pairs drawn, with its final value ± 2 standard errors at the right.

    ``taps`` without the input; ``pairs`` (n_points,), ``history`` (n_points, n_voxels) and ``theta``,
    ``stderr`` (n_voxels,) of their voxels.
    """
    figure, panels = _panels(len(taps), 2.1)
    end = pairs[-1] * 1.04 if pairs.size else 1.0
    first = 0
    for panel, tap in zip(panels, taps, strict=True):
        own = slice(first, first + tap.n_voxels)
        first += tap.n_voxels
        largest = np.argsort(-np.nan_to_num(np.abs(theta[own])))[:3]
        for voxel in range(tap.n_voxels):
            stands_out = voxel in largest
            panel.plot(
                pairs,
                history[:, own][:, voxel],
                color=ACCENT if stands_out else FAINT,
                linewidth=1.2 if stands_out else 0.6,
                alpha=1.0 if stands_out else 0.5,
            )
        panel.errorbar(
            np.full(tap.n_voxels, end),
            theta[own],
            2 * stderr[own],
            fmt="none",
            ecolor=INK,
            elinewidth=0.8,
            capsize=2,
        )
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        panel.set(title=short(tap.name), xlabel="pairs", xlim=(0, end * 1.03))
    panels[0].set_ylabel("θ")
    return figure
