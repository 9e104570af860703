"""Figures of the study's page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _cifar10_measure import TERMS
from _cifar10_results import Curve, Interval, Mix, Signature, TermLevel
from _cifar10_stream import CONDITIONS
from _study_deletion import ORDERS
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from edge_monitor.offline.plots import ACCENT, FAINT, GREY, INK, WARM, WIDTH_IN, drawing, levels, short
from edge_monitor.reports import STATES

_LOOKS = {
    "theta": (ACCENT, "-"),
    "mean activation": (WARM, "--"),
    "density": (INK, ":"),
    "random": (FAINT, "-."),
}
_MARKERS = "osD^vP"


def _bars(values: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """Means and half intervals; no bar where there is no interval."""
    return [v.mean for v in values], np.nan_to_num([v.half for v in values]).tolist()


@drawing
def band_signatures(signatures: Sequence[Signature], bands: Sequence[str]) -> Figure:
    """Draw log10 power over bands, one line a tap, with intervals."""
    figure = Figure((WIDTH_IN, 3.2), layout="constrained")
    panel = figure.subplots()
    shades = levels("viridis", 64)(np.linspace(0.0, 0.8, len(signatures)))
    for i, (signature, colour) in enumerate(zip(signatures, shades, strict=True)):
        mean, half = _bars(list(signature.log10_power.values()))
        x = np.arange(len(mean)) + 0.06 * (i - (len(signatures) - 1) / 2)
        marker = _MARKERS[i % len(_MARKERS)]
        panel.errorbar(
            *(x, mean, half), color=colour, marker=marker, markersize=4, capsize=3, label=short(signature.tap)
        )
    panel.set_xticks(range(len(bands)), bands)
    panel.set_ylabel("log10 band power")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


@drawing
def state_mixes(mixes: Sequence[Mix]) -> Figure:
    """Draw how each tap spends its time, one panel a tap, one stacked bar a condition."""
    taps = list(dict.fromkeys(mix.tap for mix in mixes))
    figure = Figure((WIDTH_IN, 2.9), layout="constrained")
    panels = figure.subplots(1, len(taps), sharey=True, squeeze=False)[0]
    shades = levels("viridis", 64)(np.linspace(0.0, 1.0, len(STATES)))
    hatches = ("", "///", "", "...", "")
    for panel, tap in zip(panels, taps, strict=True):
        own = [mix for mix in mixes if mix.tap == tap]
        below = np.zeros(len(own))
        for state, colour, hatch in zip(STATES, shades, hatches, strict=True):
            share = np.array([mix.shares[state].mean for mix in own])
            panel.bar(
                *(range(len(own)), share),
                bottom=below,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                label=state,
            )
            below += share
        panel.set_xticks(range(len(own)), [mix.condition for mix in own], rotation=45, ha="right")
        panel.set_title(short(tap))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("share of time")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    return figure


@drawing
def deletion_curves(curves: Sequence[Curve]) -> Figure:
    """Draw accuracy against the number of deleted voxels, one panel a tap, one line an order."""
    taps = list(dict.fromkeys(curve.tap for curve in curves))
    figure = Figure((WIDTH_IN, 2.8), layout="constrained")
    panels = figure.subplots(1, len(taps), sharey=True, squeeze=False)[0]
    for panel, tap in zip(panels, taps, strict=True):
        for curve in curves:
            if curve.tap != tap:
                continue
            mean, half = map(np.array, _bars(curve.accuracy))
            colour, line = _LOOKS[curve.order]
            x = range(len(mean))
            panel.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
            panel.plot(x, mean, line, color=colour, linewidth=1.4, label=curve.order)
        panel.set(title=short(tap), xlabel="voxels deleted")
    panels[0].set(ylabel="accuracy", ylim=(0, 1))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles, ORDERS, loc="outside right upper", frameon=False)
    return figure


@drawing
def term_levels(found: Sequence[TermLevel]) -> Figure:
    """Draw each term in each condition with its interval and the values of the seeds, one panel a term."""
    figure = Figure((WIDTH_IN, 2.6), layout="constrained")
    panels = figure.subplots(1, len(TERMS))
    for panel, term in zip(panels, TERMS, strict=True):
        own = [level for level in found if level.term == term]
        for i, level in enumerate(own):
            seeds = level.level.seeds
            panel.plot(i + np.linspace(-0.2, 0.2, len(seeds)), seeds, "o", color=GREY, markersize=3)
            mean, half = _bars([level.level])
            clean = level.condition == "active"
            colour = ACCENT if clean else INK
            panel.errorbar(
                [i], mean, half, fmt="o", color=colour, markersize=5 if clean else 4, capsize=3, zorder=3
            )
        panel.set_xticks(range(len(own)), CONDITIONS, rotation=45, ha="right")
        panel.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        panel.set_title(term)
    return figure
