"""Section of a map's page on impact: what each voxel is worth for the result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_monitor.offline import plots_map
from edge_monitor.offline.page import Figure, Section, Table, csv_text, decimals, number, place_of
from edge_monitor.offline.plots import voxel_stack
from edge_monitor.region_map import Impact, RegionMap
from edge_monitor.types import FloatArray


def impact_section(region_map: RegionMap) -> Section:
    """Show the network coloured by theta, the scores in a table, and how they settled."""
    impact = region_map.impact
    lead = (
        "θ is what the result loses on average when a voxel falls silent (a Shapley-style impact score). "
        "Voxels of a tap are drawn as sheets, one a channel group, group 0 on top."
    )
    if impact is None:
        unknown = np.full(region_map.fmri.median.size, np.nan)
        places = ((str(i), *place_of(region_map.taps, i)) for i in range(unknown.size))
        figure = Figure(
            name="theta",
            svg=voxel_stack(region_map.taps, unknown, np.isfinite(unknown), "θ (not computed)"),
            alt="The network as a stack of voxel grids, all hatched: impact scores are not computed.",
            caption="The voxels of every tap. Impact scores are not computed.",
            csv=csv_text(("voxel", "tap", "place"), places),
        )
        return Section("impact", "Impact", lead, (figure,))
    return Section(
        "impact", "Impact", lead, (_theta_figure(region_map, impact), *_theta_tables(region_map, impact))
    )


def _theta_figure(region_map: RegionMap, impact: Impact) -> Figure:
    certain = np.abs(impact.theta) > 2 * impact.stderr
    top = int(np.nanargmax(np.abs(impact.theta))) if np.isfinite(impact.theta).any() else 0
    tap, place = place_of(region_map.taps, top)
    return Figure(
        name="theta",
        svg=voxel_stack(region_map.taps, impact.theta, certain, f"θ, {impact.payoff}"),
        alt="The network as a stack of voxel grids coloured by θ. "
        f"The largest is {impact.theta[top]:.3g}: {tap} {place}.",
        caption="Orange and + : the result needs the voxel; purple and − : it is better off without. A voxel "
        "without a sign is within two standard errors of 0, a hatched one was not played (the input).",
        csv=csv_text(
            ("voxel", "tap", "place", "theta", "stderr", "image_stderr"),
            (
                (str(i), *place_of(region_map.taps, i), *(f"{value:.6g}" for value in values))
                for i, values in enumerate(zip(impact.theta, impact.stderr, impact.image_stderr, strict=True))
            ),
        ),
    )


def _theta_tables(region_map: RegionMap, impact: Impact) -> Iterator[Table | Figure]:
    known = np.flatnonzero(np.isfinite(impact.theta))
    order = known[np.argsort(-np.abs(impact.theta[known]), kind="stable")]
    digits = decimals(float(np.abs(impact.theta[known]).max()) if known.size else 0.0)
    yield Table(
        name="theta",
        title="Voxels by |θ|",
        headers=("tap", "group · row · column", "θ", "± sampling", "± images"),
        rows=tuple(
            (
                *place_of(region_map.taps, int(i)),
                number(impact.theta[i], digits, signed=True),
                number(impact.stderr[i], digits),
                number(impact.image_stderr[i], digits),
            )
            for i in order
        ),
        words=2,
    )
    played = region_map.taps[1:]
    skipped = region_map.taps[0].n_voxels
    yield Figure(
        name="convergence",
        svg=plots_map.convergence(
            played,
            impact.history_pairs,
            impact.history_theta[:, skipped:],
            impact.theta[skipped:],
            impact.stderr[skipped:],
        ),
        alt="θ of every voxel against the number of permutation pairs drawn, one panel a tap.",
        caption="How θ settled. The three largest of each tap in blue; at the right the final value ± 2 "
        "standard errors.",
        csv=csv_text(
            ("pairs", *(f"voxel {i}" for i in known)),
            (
                (f"{n:g}", *(f"{value:.6g}" for value in theta))
                for n, theta in zip(impact.history_pairs, impact.history_theta[:, known], strict=True)
            ),
        ),
    )
    yield Table(
        name="payoff",
        title=f"Payoff: {impact.payoff}",
        headers=("tap", "all voxels", "none", "sum of θ", "pairs"),
        rows=tuple(
            (
                tap.name,
                number(impact.f_all[i], 4),
                number(impact.f_none[i], 4),
                number(float(total), 4),
                f"{impact.pairs[i]:g}",
            )
            for i, (tap, total) in enumerate(zip(played, _sums(region_map, impact.theta), strict=True))
        ),
        shown=64,
    )


def _sums(region_map: RegionMap, values: FloatArray) -> Iterator[float]:
    """Sum over the voxels of each tap but the input."""
    first = region_map.taps[0].n_voxels
    for tap in region_map.taps[1:]:
        yield float(values[first : first + tap.n_voxels].sum())
        first += tap.n_voxels
