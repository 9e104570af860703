"""Section of a map's page on tracts: what drives what, and how far the live estimate can be relied on."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from edge_monitor.offline import plots_map
from edge_monitor.offline.page import Figure, Section, Table, csv_text, decimals, number
from edge_monitor.offline.tract_baseline import FAITHFUL
from edge_monitor.region_map import RegionMap
from edge_monitor.types import BoolArray, FloatArray

RELIABLE = FAITHFUL
"""Correlation of a tract's live estimate with the exact one from which it can be relied on."""
STRONG = 0.25
"""Share of a transition's strongest tract from which a tract counts as strong here."""
LINES = 24
"""So many strong tracts of a transition are shown; more would hide one another."""


class Transition(msgspec.Struct, frozen=True, eq=False):
    """Tracts between two consecutive taps; arrays (source voxels, target voxels)."""

    name: str
    strength: FloatArray
    fidelity: FloatArray
    watched: BoolArray
    problem: str

    @property
    def reliable(self) -> BoolArray:
        return np.asarray(self.fidelity >= RELIABLE)

    @property
    def strong(self) -> BoolArray:
        """The `LINES` strongest, as far as they have a `STRONG` share of the strongest of all."""
        known = np.sort(self.strength[np.isfinite(self.strength)])
        if not known.size or known[-1] <= 0:
            return np.zeros(self.strength.shape, np.bool_)
        return np.asarray(self.strength >= max(STRONG * known[-1], known[-LINES:][0]))


def transitions_of(region_map: RegionMap) -> Iterator[Transition]:
    """Cut the flat arrays of the tracts into one matrix a transition."""
    tracts, first = region_map.tracts, 0
    pairs = zip(region_map.taps[:-1], region_map.taps[1:], tracts.problems, strict=True)
    for source, target, problem in pairs:
        shape = (source.n_voxels, target.n_voxels)
        own = slice(first, first + shape[0] * shape[1])
        first = own.stop
        yield Transition(
            name=f"{source.name} → {target.name}",
            strength=tracts.strength[own].reshape(shape),
            fidelity=tracts.fidelity[own].reshape(shape),
            watched=np.isfinite(tracts.scale[own]).reshape(shape),
            problem=problem,
        )


def connectome_section(region_map: RegionMap, transitions: tuple[Transition, ...]) -> Section:
    """Tracts as matrices, as lines, and the strong ones in a table."""
    columns = (
        [t.strength for t in transitions],
        [t.reliable for t in transitions],
        [t.problem for t in transitions],
    )
    matrix = Figure(
        name="connectome",
        svg=plots_map.connectome(region_map.taps, *columns),
        alt="One matrix a transition: strength of the tract from every source voxel to every target voxel.",
        caption="Mean tract strength. Crossed out: the live estimate follows the exact tract with a "
        f"correlation below {RELIABLE:g}, or that could not be measured; do not rely on such a tract.",
        csv=csv_text(
            ("transition", "from", "to", "strength", "fidelity"),
            (
                (t.name, str(g), str(h), f"{t.strength[g, h]:.6g}", f"{t.fidelity[g, h]:.6g}")
                for t in transitions
                for g, h in np.ndindex(t.strength.shape)
            ),
        ),
    )
    theta = np.nan_to_num(np.abs(region_map.theta))
    weight = theta / theta.max() if theta.max() > 0 else theta
    strongest = _strongest(transitions)
    lines = Figure(
        name="tracts",
        svg=plots_map.tract_lines(region_map.taps, *columns, [t.strong for t in transitions], weight),
        alt="Voxels of each tap as a column of dots, voxel 0 on top; strong tracts as lines between.",
        caption=f"The {LINES} strongest tracts of each transition, wider when stronger; orange and dashed "
        "where the live estimate is not to be relied on. Dots grow with |θ|.",
        csv=csv_text(strongest.headers, strongest.rows),
    )
    lead = (
        "How strongly the voxels of one tap drive those of the next, "
        f"traced exactly on {region_map.tracts.images} images."
    )
    return Section(
        "connectome", "Connectome", lead, (matrix, _transition_table(transitions), lines, strongest)
    )


def _transition_table(transitions: tuple[Transition, ...]) -> Table:
    rows = []
    for t in transitions:
        known = t.fidelity[np.isfinite(t.fidelity)]
        rows.append(
            (
                t.name,
                t.problem or "traced",
                str(t.strength.size),
                number(float(np.median(known)) if known.size else None),
                str(int(t.reliable.sum())),
                str(int(t.watched.sum())),
            )
        )
    headers = ("transition", "state", "tracts", "median fidelity", f"fidelity ≥ {RELIABLE:g}", "watched live")
    return Table("transitions", "Transitions", headers, tuple(rows), shown=64, words=2)


def _strongest(transitions: tuple[Transition, ...]) -> Table:
    rows = []
    for t in transitions:
        for g, h in np.argwhere(t.strong):
            share = t.strength[g, h] / np.nanmax(t.strength)
            strength = number(t.strength[g, h], decimals(np.nanmax(t.strength)))
            reliable = "yes" if t.reliable[g, h] else "no"
            cells = (
                t.name,
                f"{g} → {h}",
                strength,
                f"{100 * share:.0f} %",
                number(t.fidelity[g, h]),
                reliable,
            )
            rows.append((-share, cells))
    rows.sort()
    headers = ("transition", "voxels", "strength", "share of strongest", "fidelity", "reliable")
    return Table("strongest", "Strong tracts", headers, tuple(cells for _, cells in rows), words=2)
