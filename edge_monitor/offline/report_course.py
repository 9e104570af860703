"""Sections of a recording's page on the time course: health, evidence, regions, rhythm, consistency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edge_monitor.band_plan import BandPlan
from edge_monitor.flag_table import FLAGS
from edge_monitor.offline import plots_recording as plots
from edge_monitor.offline.page import Figure, Part, Section, Table, Text, clock_tenths, csv_text
from edge_monitor.offline.plots import WARM
from edge_monitor.offline.plots_recording import STATE_MARK, Axis
from edge_monitor.offline.watching import TERMS, Watched, Watching
from edge_monitor.reports import CHANNELS, FlagStatus
from edge_monitor.types import BANDS, FloatArray

CSV_CELLS = 60_000
"""Numbers behind one figure: more of them would outweigh the page."""
_FLAG_ROWS = {row.code: row for row in FLAGS}


def health_section(watched: Watched, axis: Axis) -> Section:
    """When the monitor was in which state, which flags were confirmed, and all transitions."""
    watching = watched.watching
    state, status = watching.course.columns("state")[:, 0], watching.course.columns("flags")
    raised = np.flatnonzero(np.nan_to_num(status).any(axis=0))
    codes = [FLAGS[i].code for i in raised]
    figure = Figure(
        name="health",
        svg=plots.health(axis, state, status[:, raised], codes),
        alt="Health state over time in lanes, and below it a bar for every flag while it was confirmed.",
        caption="Health, worst state of a column; below, flags: thin while pending, thick while confirmed. "
        "Dashed lines on all figures: first confirmation of a flag, numbered. Hatched: no input.",
        csv=_csv(watched, ("state", "flags"), ("state", *(row.code for row in FLAGS)), digits=0),
    )
    shares = Table(
        "states",
        "States",
        ("state", "reports", "share"),
        tuple(
            (STATE_MARK[s], str(n), f"{100 * n / watching.reports:.1f} %")
            for s, n in sorted(watching.states.items(), reverse=True)
        ),
    )
    shown, total = len(watching.events), watching.n_events
    events = Table(
        "events",
        "Events" if shown == total else f"First {shown} of {total} events",
        ("time", "frame", "what", "from", "to", "cause"),
        tuple(
            (clock_tenths(at), str(t.frame), t.code, t.before, t.after, t.cause or "–")
            for at, t in watching.events
        ),
        words=6,
    )
    return Section("health", "Health and flags", "", (figure, *_flag_table(watching), shares, events))


def _flag_table(watching: Watching) -> Iterator[Part]:
    """Every flag that was confirmed, or the statement that none was."""
    if not watching.freeze_frames or watching.last is None:
        yield Text("Nothing was flagged.")
        return
    final = {flag.code: flag for flag in watching.last.flags}
    rows = []
    for i, (code, freeze) in enumerate(watching.freeze_frames.items(), 1):
        flag, row = final[code], _FLAG_ROWS[code]
        first = (freeze.transition.cause, clock_tenths(freeze.at_s))
        stands = "still" if flag.status is FlagStatus.CONFIRMED else "no more"
        rows.append((str(i), code, STATE_MARK[row.severity], *first, str(flag.occurrences), stands))
    headers = ("", "flag", "severity", "cause", "first at", "times", "at the end")
    yield Table("flags", "Flags", headers, tuple(rows), shown=64, words=4)


def evidence_section(watched: Watched, axis: Axis) -> Section:
    """Evidence of every channel against its threshold, and the functional residual of every tap."""
    course, taps = watched.watching.course, watched.region_map.taps
    names = [tap.name for tap in taps]
    evidence = Figure(
        name="evidence",
        svg=plots.lanes(axis, course.columns("ratio"), CHANNELS, WARM),
        alt="Evidence of every channel over time, as a multiple of its threshold.",
        caption="Evidence as a multiple of its threshold, highest of each column; from the dashed line at 1 "
        "on a channel alarms. Clipped at 4, the maximum stands at the right. Hatched: no evidence.",
        csv=_csv(watched, ("ratio",), CHANNELS),
    )
    residual = Figure(
        name="residual",
        svg=plots.lanes(axis, course.columns("residual"), names),
        alt="Functional residual of every tap over time.",
        caption="Functional residual: how far each tap is from what the tap before it predicts (the input: "
        "from its own clean level); 1 is as far as it ever was in calibration.",
        csv=_csv(watched, ("residual",), names),
    )
    lead = "Every score in one unit: the surprise over the threshold set at calibration."
    return Section("evidence", "Evidence", lead, (evidence, residual))


def regions_section(watched: Watched, axis: Axis) -> Section:
    """Carpet plot of all voxels."""
    taps, z = watched.region_map.taps, watched.watching.course.columns("z")
    figure = Figure(
        name="carpet",
        svg=plots.carpet(axis, taps, z),
        alt="Carpet plot: z of every voxel over time, voxels grouped by tap.",
        caption="z of every voxel against clean frames, the largest |z| of each column, clipped at "
        f"±{plots.CLIP_Z:g}. Orange above, purple below; in grey print darkness is |z|. Hatched: not known.",
        csv=_csv(watched, ("z",), [f"{tap.name} {v}" for tap in taps for v in range(tap.n_voxels)], digits=1),
    )
    return Section("regions", "Regions", "Voxel densities over time (NN-fMRI).", (figure,))


def rhythm_section(watched: Watched, axis: Axis) -> Section:
    """Spectrogram of every tap."""
    region_map, course = watched.region_map, watched.watching.course
    taps = region_map.taps
    power = course.columns("log_power")
    plan = BandPlan.make(region_map.eeg.scale_mode, region_map.provenance.frame_rate_hz)
    named = zip(BANDS, plan.edges_hz, strict=True)
    edges = ", ".join(f"{band} {low:.2g}–{high:.2g} Hz" for band, (low, high) in named)
    figure = Figure(
        name="bands",
        svg=plots.spectrograms(axis, taps, BANDS, power.reshape(-1, len(taps), len(BANDS))),
        alt="Spectrogram of every tap: log10 power of five bands over time.",
        caption="log10 band power, highest of each column; colours from the 2nd to the 98th percentile of "
        f"each tap. {edges}. Hatched: the band's window is not full yet, or the band is not observable.",
        csv=_csv(watched, ("log_power",), [f"{tap.name} {band}" for tap in taps for band in BANDS]),
    )
    return Section("rhythm", "Rhythm", "Band powers over time (NN-EEG).", (figure,))


def consistency_section(watched: Watched, axis: Axis) -> Section:
    """Consistency score and its terms."""
    names = ("score", "ρ gamma and regions", "agreement", "coherence")
    figure = Figure(
        name="consistency",
        svg=plots.consistency(axis, watched.watching.course.columns("consistency"), names),
        alt="Consistency of the two views over time with its three terms.",
        caption="Lowest of each column. The score is the mean of the valid terms; hatched where none is.",
        csv=_csv(watched, ("consistency",), TERMS),
    )
    lead = "How far the view in time and the view in space agree: it grades an alarm and never raises one."
    return Section("consistency", "Consistency", lead, (figure,))


def _csv(watched: Watched, tracks: tuple[str, ...], headers: Sequence[str], digits: int = 3) -> str:
    """Columns of one or more tracks with their time in seconds; unknown is an empty field."""
    course = watched.watching.course
    parts = [course.coarse(track, CSV_CELLS) for track in tracks]
    values: FloatArray = np.hstack([columns for _, columns in parts])
    times = (f"{i * parts[0][0]:.3f}" for i in range(len(values)))
    cells = (["" if v != v else f"{v:.{digits}f}" for v in row] for row in values.tolist())  # noqa: PLR0124 - NaN
    return csv_text(("seconds", *headers), ((t, *row) for t, row in zip(times, cells, strict=True)))
