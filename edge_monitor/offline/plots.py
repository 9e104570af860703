"""Figures as SVG: one style, one export, and the pictures that both kinds of page draw.

Colours hold for the colour-blind and in grey print: cividis and viridis for amounts, purple to orange for
values with a sign, hatched for what is not known.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from edge_monitor.types import BoolArray, FloatArray, TapSpec

WIDTH_IN = 10.0
INK, FAINT, GREY, ACCENT = "#1d2733", "#6b7785", "#d5d8dc", "#1f5f99"
WARM = "#c2570c"
UNKNOWN_FILL: dict[str, Any] = {"facecolor": "#eceff2", "hatch": "////", "linewidth": 0}
"""Look of what is not known: a plain grey would be a value in grey print."""

# Any: newer versions of matplotlib spell out every key as its type.
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.parse_math": False,  # a tensor name may hold dollar signs
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "hatch.linewidth": 0.5,
    "hatch.color": "#a3adb8",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "image.interpolation": "none",  # one cell of the array is one cell of the picture
}
_PATH = re.compile(r'(?<= d=")[^"]*')
_DECIMALS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is enough, and half the size
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))

_Arguments = ParamSpec("_Arguments")


def drawing(build: Callable[_Arguments, Figure]) -> Callable[_Arguments, str]:
    """Make a function that builds a figure return it as an SVG element, the same one for the same input."""

    @wraps(build)
    def draw(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> str:
        with mpl.rc_context({**_STYLE, "svg.hashsalt": build.__name__}), warnings.catch_warnings():
            # Only the layout asks matplotlib's own font; the browser draws every script it knows.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            buffer = io.StringIO()
            build(*args, **kwargs).savefig(buffer, format="svg", metadata=_NO_METADATA)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]  # an XML prolog has no place inside a page
        return _PATH.sub(lambda path: _DECIMALS.sub(r"\1", path[0]), svg)

    return draw


def levels(name: str, count: int = 24) -> Colormap:
    """Colour map of few steps, which compress well and print alike; clear where the value is not known."""
    return mpl.colormaps[name].resampled(count).with_extremes(bad="none")


def short(name: str, length: int = 20) -> str:
    """Cut a tensor's name in its middle; tables hold it whole."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def colour_bar(
    figure: Figure, axes: Axes | Sequence[Axes], norm: Normalize, cmap: Colormap, label: str
) -> None:
    """Thin bar on the right of the axes."""
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=axes, fraction=0.025, pad=0.015, aspect=18)
    bar.set_label(label)
    bar.outline.set_visible(False)


_SHEAR, _DEPTH, _PITCH, _GAP = 0.5, 0.5, 0.72, 0.75  # of one sheet of voxels, in units of its width


@drawing
def voxel_stack(
    taps: Sequence[TapSpec], values: FloatArray, marked: BoolArray, label: str, limit: float | None = None
) -> Figure:
    """Draw the network as a stack of voxel grids, one panel a tap.

    Each channel group is a sheet of rows and columns seen from above, group 0 on top. Colour is the
    value, between -``limit`` and ``limit``; hatched is not known. The sign is written into marked voxels.

    Parameters
    ----------
    taps : sequence of TapSpec
    values : (n_voxels,) float64
    marked : (n_voxels,) bool
    label : str
        Of the colour bar.
    limit : float, optional
        Largest |value| when not given.
    """
    known = np.abs(values[np.isfinite(values)])
    limit = limit or (float(known.max()) if known.size else 0.0) or 1.0
    norm, cmap = Normalize(-limit, limit), levels("PuOr_r", 25)
    colours = cmap(norm(np.ma.masked_invalid(values)))
    signs = [("+" if value > 0 else "−") if mark else "" for value, mark in zip(values, marked, strict=True)]
    wide, tall = 1 + _SHEAR + _GAP, max(tap.grid[0] for tap in taps) * _PITCH + 0.5
    per_row = min(max(len(taps), 3), 5)
    n_rows = -(-len(taps) // per_row)
    height_in = WIDTH_IN * 0.88 * tall / (per_row * wide)
    figure = Figure((WIDTH_IN, n_rows * height_in), layout="constrained")
    panels = figure.subplots(n_rows, 1, squeeze=False)[:, 0]
    for panel in panels:
        panel.set_axis_off()
        panel.set(xlim=(0, per_row * wide - _GAP), ylim=(0.5 - tall, 0.5), aspect="equal")
    first = 0
    for i, tap in enumerate(taps):
        own = slice(first, first + tap.n_voxels)
        row, column = divmod(i, per_row)
        _draw_tap(panels[row], tap, column * wide, colours[own], signs[own])
        first += tap.n_voxels
    if known.size:
        colour_bar(figure, list(panels), norm, cmap, label)
    return figure


def _corner(tap: TapSpec, x: float, group: int, row: float, column: float) -> tuple[float, float]:
    """Where the corner of a cell lies on the drawing."""
    depth = 1 - row / tap.grid[1]
    return x + column / tap.grid[2] + _SHEAR * depth, _DEPTH * (depth - 1) - group * _PITCH


def _draw_tap(panel: Axes, tap: TapSpec, x: float, colours: FloatArray, signs: Sequence[str]) -> None:
    """Draw the sheets of one tap with its name above."""
    ring = ((0, 0), (0, 1), (1, 1), (1, 0))
    cells = [[_corner(tap, x, g, r + i, c + j) for i, j in ring] for g, r, c in np.ndindex(tap.grid)]
    panel.add_collection(PolyCollection(cells, **UNKNOWN_FILL))
    panel.add_collection(PolyCollection(cells, facecolors=colours, edgecolors="#aab2bb", linewidths=0.6))
    for (g, r, c), colour, sign in zip(np.ndindex(tap.grid), colours, signs, strict=True):
        centre = _corner(tap, x, g, r + 0.5, c + 0.5)
        ink = text_colour(colour)
        panel.text(*centre, sign, ha="center", va="center", size=8, weight="bold", color=ink)
    shape, grid = ("×".join(map(str, size)) for size in (tap.shape, tap.grid))
    panel.text(x + _SHEAR, 0.2, short(tap.name), weight="bold", va="bottom")
    panel.text(x + _SHEAR, 0.17, f"{shape} in {grid}", size=7, color=FAINT, va="top")


def text_colour(background: FloatArray) -> str:
    """Ink or white, whichever reads better on a colour (red, green, blue, alpha)."""
    return INK if background[:3] @ (0.299, 0.587, 0.114) > 0.55 else "white"
