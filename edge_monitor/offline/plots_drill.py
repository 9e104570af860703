"""Figures of a drill's page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from edge_monitor.offline.plots import (
    ACCENT,
    FAINT,
    GREY,
    UNKNOWN_FILL,
    WARM,
    WIDTH_IN,
    colour_bar,
    drawing,
    levels,
    text_colour,
)
from edge_monitor.types import FloatArray

_ROW_IN = 0.26


@drawing
def detection(
    faults: Sequence[str], columns: Sequence[str], share: FloatArray, words: Sequence[Sequence[str]]
) -> Figure:
    """Draw the share of scenes in which each fault was detected, hatched where it was not drilled.

    Parameters
    ----------
    faults, columns : sequence of str
        Names of rows and columns.
    share : (n_faults, n_columns) float64
        0 ... 1, NaN where not drilled.
    words : sequence of sequence of str
        What is written into each cell.
    """
    figure = Figure((WIDTH_IN, _ROW_IN * len(faults) + 0.8), layout="constrained")
    panel = figure.subplots()
    norm, cmap = Normalize(0.0, 1.0), levels("cividis", 20)
    colours = cmap(norm(np.ma.masked_invalid(share)))
    panel.axhspan(-0.5, len(faults) - 0.5, zorder=-1, **UNKNOWN_FILL)
    panel.imshow(colours, aspect="auto")
    for (row, column), value in np.ndenumerate(share):
        if np.isfinite(value):
            ink = text_colour(colours[row, column])
            panel.text(column, row, words[row][column], ha="center", va="center", size=8, color=ink)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(faults)), faults)
    panel.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    panel.set_yticks(np.arange(len(faults) - 1) + 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="both", length=0)
    panel.xaxis.tick_top()
    panel.spines[:].set_visible(False)
    colour_bar(figure, panel, norm, cmap, "share of scenes")
    return figure


@drawing
def delays(
    faults: Sequence[str], frames: Sequence[FloatArray], ramp: Sequence[FloatArray], end: int
) -> Figure:
    """Draw the delay of every detected case, one row a fault, on a logarithmic axis.

    Parameters
    ----------
    faults : sequence of str
    frames, ramp : sequences of (n,) float64
        Delays of the sudden cases of each fault, and of its ramps, frames.
    end : int
        Frames of a scene.
    """
    figure = Figure((WIDTH_IN, _ROW_IN * len(faults) + 0.8), layout="constrained")
    panel = figure.subplots()
    for row, (sudden, grown) in enumerate(zip(frames, ramp, strict=True)):
        panel.axhline(row, color=GREY, linewidth=0.6, zorder=0)
        # Equal delays lie over one another: a fixed pattern of heights keeps them apart.
        for values, colour, mark in ((sudden, ACCENT, "o"), (grown, WARM, "D")):
            heights = row + 0.08 * ((np.arange(len(values)) * 2) % 7 - 3)
            panel.plot(values, heights, mark, color=colour, markersize=3.5, alpha=0.7, markeredgewidth=0)
        if len(sudden):
            panel.plot(np.median(sudden), row, "|", color=FAINT, markersize=12, markeredgewidth=2)
    panel.set_xscale("log")
    panel.set_xlim(0.9, end * 1.1)
    ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000) if t <= end]
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    panel.set_xlabel("frames from the onset to the flag")
    panel.set_yticks(range(len(faults)), faults)
    panel.set_ylim(len(faults) - 0.5, -0.5)
    return figure
