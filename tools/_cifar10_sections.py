"""Sections of the study's page: a figure with its numbers, and tables."""

from __future__ import annotations

from collections.abc import Iterator

import _cifar10_plots as plots
import numpy as np
from _cifar10_measure import TERMS
from _cifar10_results import Interval, Study, TermLevel
from _cifar10_stream import CONDITIONS, FRAME_RATE_HZ
from _cifar10_summary import STRONGEST
from _cifar10_words import (
    deletion_finding,
    numbers,
    percent,
    plus_minus,
    plus_minus_percent,
    seed_names,
    separation,
)
from _study_deletion import ORDERS

from edge_monitor.band_plan import BandPlan
from edge_monitor.offline.page import UNKNOWN, Figure, Section, Table, Text, csv_text, number
from edge_monitor.offline.plots import voxel_stack
from edge_monitor.offline.plots_map import connectome
from edge_monitor.offline.report_connectome import RELIABLE
from edge_monitor.reports import STATES
from edge_monitor.types import BANDS


def signature_section(study: Study) -> Section:
    plan = BandPlan.make("nyquist", FRAME_RATE_HZ)
    bands = [
        f"{band}\n{low:.2g}–{high:.2g} Hz" for band, (low, high) in zip(BANDS, plan.edges_hz, strict=True)
    ]
    table = Table(
        name="signatures",
        title="log10 band power, and share of windows in which the nearest signature is the layer's own",
        headers=("tap", *BANDS, "named right"),
        rows=tuple(
            (s.tap, *(plus_minus(s.log10_power[b], 2) for b in BANDS), plus_minus_percent(s.named))
            for s in study.signatures
        ),
    )
    figure = Figure(
        name="band-signatures",
        svg=plots.band_signatures(study.signatures, bands),
        alt="log10 band power over the five bands, one line a tap, with intervals over seeds.",
        caption="Clips of the moving camera, none of them seen in calibration. Bars: 95 % interval.",
        csv=csv_text(
            ("tap", "band", "mean", "half", *seed_names(study)),
            (
                (s.tap, band, *numbers(value))
                for s in study.signatures
                for band, value in s.log10_power.items()
            ),
        ),
    )
    lead = "How each layer's activity swings in time while the camera moves (NN-EEG)."
    return Section("signatures", "Band signatures", lead, (figure, table))


def state_section(study: Study) -> Section:
    figure = Figure(
        name="states",
        svg=plots.state_mixes(study.states),
        alt="Share of time each tap spends in each of the five states, one bar a condition.",
        caption="Mean over seeds; intervals are in the table. A state is named by the band that stands out "
        "most against the moving camera of calibration, idle when none does.",
        csv=csv_text(
            ("condition", "tap", "state", "mean", "half", *seed_names(study)),
            (
                (m.condition, m.tap, state, *numbers(value))
                for m in study.states
                for state, value in m.shares.items()
            ),
        ),
    )
    mixes = Table(
        name="states",
        title="Share of time in each state",
        headers=("condition", "tap", *STATES),
        rows=tuple(
            (m.condition, m.tap, *(plus_minus_percent(value) for value in m.shares.values()))
            for m in study.states
        ),
        shown=64,
        words=2,
    )
    telling = study.telling
    confusion = Table(
        name="confusion",
        title="Which condition the states say (clips)",
        headers=("true condition", *(f"said {condition}" for condition in CONDITIONS)),
        rows=tuple(
            (condition, *map(str, row)) for condition, row in zip(CONDITIONS, telling.counts, strict=True)
        ),
    )
    teachers = "the same seed" if telling.own_seed else "the other seeds"
    text = Text(
        f"A clip is given the condition whose typical mix of states is nearest; the typical mixes come from "
        f"calibration images of {teachers}. Right: {plus_minus_percent(telling.right)} of clips (by chance "
        f"{percent(1 / len(CONDITIONS))}); {plus_minus_percent(telling.right_kind)} when only idle, active "
        f"and corrupted are told apart."
    )
    lead = "What a still camera, a moving one and corrupted pictures do to the states of the layers."
    return Section("states", "States", lead, (figure, text, mixes, confusion))


def impact_section(study: Study) -> Section:
    theta = np.array([voxel.theta.mean for voxel in study.impact])
    certain = np.array([abs(voxel.theta.mean) > voxel.theta.half for voxel in study.impact])
    skipped = study.taps[0].n_voxels
    picture = Figure(
        name="theta",
        svg=voxel_stack(
            study.taps,
            np.concatenate([np.full(skipped, np.nan), theta]),
            np.concatenate([np.zeros(skipped, np.bool_), certain]),
            "θ, mean over seeds",
        ),
        alt="The network as a stack of voxel grids coloured by θ; the input is hatched.",
        caption="Mean probability of the decision that is lost without the voxel. A sign is written where "
        "the interval over seeds leaves out 0. The input is no player.",
        csv=csv_text(
            ("tap", "place", "mean", "half", *seed_names(study)),
            ((voxel.tap, voxel.place, *numbers(voxel.theta)) for voxel in study.impact),
        ),
    )
    table = Table(
        name="theta",
        title="Voxels by |θ|",
        headers=("tap", "group · row · column", "θ ± seeds", "± sampling", "± images"),
        rows=tuple(
            (
                *(voxel.tap, voxel.place, plus_minus(voxel.theta, 4)),
                *(number(voxel.sampling_error, 4), number(voxel.image_error, 4)),
            )
            for voxel in sorted(study.impact, key=lambda voxel: -abs(voxel.theta.mean))
        ),
        words=2,
    )
    curves = Figure(
        name="deletion",
        svg=plots.deletion_curves(study.deletion),
        alt="Accuracy against the number of deleted voxels, one panel a tap, one line an order.",
        caption="Accuracy on judged images while voxels are replaced by their calibrated mean, the most "
        "important first. Band: 95 % interval. The faster it falls, the better the order.",
        csv=csv_text(
            ("tap", "order", "voxels", "mean", "half", *seed_names(study)),
            (
                (c.tap, c.order, str(i), *numbers(value))
                for c in study.deletion
                for i, value in enumerate(c.accuracy)
            ),
        ),
    )
    lead = f"What each voxel is worth for the result. {deletion_finding(study)}"
    return Section("impact", "Impact", lead, (picture, table, curves, area_table(study)))


def area_table(study: Study) -> Table:
    areas: dict[str, list[Interval]] = {}
    for curve in study.deletion:
        areas.setdefault(curve.tap, []).append(curve.area)
    areas["mean of taps"] = [found.area for found in study.deletion_means]
    rows = [(name, *(plus_minus(area, 3) for area in row)) for name, row in areas.items()]
    less = (UNKNOWN if m.order == "theta" else plus_minus(m.theta_less, 3) for m in study.deletion_means)
    rows.append(("θ less this order", *less))
    return Table(
        name="areas",
        title="Area under the deletion curve (smaller is better)",
        headers=("tap", *ORDERS),
        rows=tuple(rows),
    )


def tract_section(study: Study) -> Section:
    strengths = [np.array(t.strength) for t in study.tracts]
    fidelities = [np.array(t.tract_fidelity) for t in study.tracts]
    matrices = Figure(
        name="connectome",
        svg=connectome(
            study.taps, strengths, [f >= RELIABLE for f in fidelities], [t.problem for t in study.tracts]
        ),
        alt="One matrix a transition: strength of the tract from every source voxel to every target voxel.",
        caption="Mean over seeds. Crossed out: the live estimate follows the exact tract with a correlation "
        f"below {RELIABLE:g}, mean over seeds, or none could be measured.",
        csv=csv_text(
            ("transition", "from", "to", "strength", "fidelity"),
            (
                (t.transition, str(g), str(h), f"{s[g, h]:.6g}", f"{f[g, h]:.6g}")
                for t, s, f in zip(study.tracts, strengths, fidelities, strict=True)
                for g, h in np.ndindex(s.shape)
            ),
        ),
    )
    table = Table(
        name="tracts",
        title="",
        headers=(
            "transition",
            "tracts",
            f"carried by the strongest {percent(STRONGEST)}",
            "same in two seeds (r)",
            "median fidelity",
            f"fidelity ≥ {RELIABLE:g}",
        ),
        rows=tuple(
            (
                f"{t.transition} ({t.problem})" if t.problem else t.transition,
                str(t.tracts),
                plus_minus_percent(t.strongest_share),
                number(t.same_seeds, 3),
                plus_minus(t.fidelity, 2),
                plus_minus_percent(t.reliable),
            )
            for t in study.tracts
        ),
    )
    text = Text(
        "Fidelity: correlation of the live estimate with exact C on the second half of the calibration "
        f"images; it was fitted on the first. Tracts below {RELIABLE:g} are not watched on a device."
    )
    lead = "How strongly the voxels of one layer drive those of the next."
    return Section("tracts", "Tracts", lead, (matrices, text, table))


def crossmodal_section(study: Study) -> Section:
    figure = Figure(
        name="crossmodal",
        svg=plots.term_levels(study.crossmodal),
        alt="Each term of the cross-modal consistency in each condition, with intervals over seeds.",
        caption="Mean over seeds with its 95 % interval, in grey the seeds. Active is the clean reference.",
        csv=csv_text(
            ("condition", "term", "mean", "half", *seed_names(study)),
            ((found.condition, found.term, *numbers(found.level)) for found in study.crossmodal),
        ),
    )
    level_table = Table(
        name="crossmodal",
        title="Level of the score and its terms",
        headers=("condition", *TERMS),
        rows=tuple((c, *(plus_minus(found.level, 2) for found in row)) for c, row in by_condition(study)),
    )
    areas = Table(
        name="separation",
        title="Clean against other clips: area under the ROC curve",
        headers=("condition", *TERMS),
        rows=tuple(
            (c, *(separates(found) for found in row)) for c, row in by_condition(study) if c != "active"
        ),
    )
    text = Text(
        "Area under the ROC curve: at 0.5 a clean clip has the larger value as often as not; above, the "
        "value falls in that condition, below, it rises. “No” marks an interval that holds 0.5: the term "
        "does not separate. No threshold was set, and the monitor alarms on none of these values."
    )
    lead = f"How far the temporal and the spatial view agree. {separation(study)}"
    return Section("crossmodal", "Cross-modal consistency", lead, (figure, text, level_table, areas))


def by_condition(study: Study) -> Iterator[tuple[str, list[TermLevel]]]:
    for condition in CONDITIONS:
        yield condition, [found for found in study.crossmodal if found.condition == condition]


def separates(found: TermLevel) -> str:
    return f"{plus_minus(found.area, 2)}{' · no' if found.separates is False else ''}"
