"""What the page of a recording holds: the verdict, the time course, and every flag's freeze frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.page import Facts, Page, Section, clock, count
from edge_monitor.offline.plots_recording import STATE_MARK, Axis
from edge_monitor.offline.report_course import (
    consistency_section,
    evidence_section,
    health_section,
    regions_section,
    rhythm_section,
)
from edge_monitor.offline.report_freeze_frame import freeze_frame_section
from edge_monitor.offline.watching import FreezeFrame, Watched, Watching, watch_recording
from edge_monitor.reports import HealthState


def recording_page(path: Path, progress: Progress = silent) -> Page:
    """Page of a recording.

    Raises
    ------
    RecordingError
        The file is missing, no recording, holds no whole input, or was made under settings unknown here.
    MapError
        The embedded region map is damaged.
    """
    watched = watch_recording(path, progress)
    axis = _axis(watched)
    worst = _worst(watched.watching)
    return Page(
        title=f"Recording {path.name}",
        badge=STATE_MARK[worst],
        level="fail" if worst >= HealthState.STALE else "warn" if worst is HealthState.WARN else "calm",
        verdict=_verdict(watched.watching),
        warnings=tuple(_warnings(watched)),
        sections=(
            health_section(watched, axis),
            evidence_section(watched, axis),
            regions_section(watched, axis),
            rhythm_section(watched, axis),
            consistency_section(watched, axis),
            *(freeze_frame_section(watched.region_map, i, f) for i, f in enumerate(_freezes(watched), 1)),
            _provenance(watched),
        ),
    )


def _freezes(watched: Watched) -> tuple[FreezeFrame, ...]:
    return tuple(watched.watching.freeze_frames.values())


def _axis(watched: Watched) -> Axis:
    course = watched.watching.course
    marks = tuple((freeze.at_s, str(i)) for i, freeze in enumerate(_freezes(watched), 1))
    return Axis(course.column_s, course.elapsed_s, marks)


def _worst(watching: Watching) -> HealthState:
    """Worst state there was; states of the start count only when nothing better was reached."""
    alarms = [state for state in watching.states if state >= HealthState.WARN]
    if alarms:
        return max(alarms)
    return HealthState.OK if HealthState.OK in watching.states else max(watching.states)


def _verdict(watching: Watching) -> str:
    span = f"{_span(watching.course.elapsed_s)} ({count(watching.frames)} frames)"
    end = watching.last.state if watching.last else HealthState.NEVER_SEEN
    if not watching.freeze_frames:
        ready = "" if HealthState.OK in watching.states else f", but health never went beyond {end.name}"
        return f"Nothing was flagged in {span}{ready}."
    first, *others = watching.freeze_frames.values()
    text = f"{first.transition.code} at {clock(first.at_s)}: {first.transition.cause}."
    if others:
        text += " Then " + ", ".join(f"{f.transition.code} at {clock(f.at_s)}" for f in others) + "."
    flags = f"{len(others) + 1} flags were" if others else "One flag was"
    times = sum(flag.occurrences for flag in watching.last.flags) if watching.last else 0
    often = f", {times} times in all," if times > len(others) + 1 else ""
    return f"{flags} confirmed{often} in {span}. {text} At the end health was {end.name}."


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{clock(seconds)} {'min' if seconds < 3600 else 'h'}"


def _warnings(watched: Watched) -> Iterator[str]:
    if watched.truncated:
        yield "The recording is cut or damaged: this page ends where it does."
    if watched.lost:
        yield f"{watched.lost} inputs never reached the recording; what follows a loss cannot be reproduced."
    reports = watched.watching.reports
    if watched.identical != reports:
        yield f"{reports - watched.identical} of {reports} reports differ from those recorded on the device."
    if watched.region_map.impact is None:
        yield "The map has no impact scores: voxels are ranked as if all were worth the same."


def _provenance(watched: Watched) -> Section:
    watching, origin = watched.watching, watched.region_map.provenance
    pairs = (
        ("recording", watched.path.name),
        (
            "length",
            f"{_span(watching.course.elapsed_s)}, {watching.frames} frames, {watching.reports} reports",
        ),
        ("replay", f"{watched.identical} of {watching.reports} reports identical to the recorded ones"),
        ("columns", f"{watching.course.column_s:.3g} s wide"),
        ("model", f"{origin.model}, SHA-256 {origin.model_sha256}"),
        ("map", f"{origin.source}, {origin.frames_fit} frames fitted, seed {origin.seed}"),
        ("frame rate", f"{origin.frame_rate_hz:g} Hz"),
        *((key.replace("_", " "), value) for key, value in sorted(watched.metadata.items())),
    )
    return Section("provenance", "Provenance", "", (Facts(pairs),))
