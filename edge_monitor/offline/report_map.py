"""What the page of a region map holds: what is known about the network, and what is not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_monitor.band_plan import BandPlan
from edge_monitor.offline import plots_map
from edge_monitor.offline.page import Facts, Figure, Page, Section, Table, count, csv_text, number, place_of
from edge_monitor.offline.report_connectome import Transition, connectome_section, transitions_of
from edge_monitor.offline.report_impact import impact_section
from edge_monitor.region_map import RegionMap, Runtime
from edge_monitor.reports import CHANNELS, STATES
from edge_monitor.types import BANDS


def map_page(region_map: RegionMap, name: str) -> Page:
    """Page of a region map; ``name`` is the file's."""
    transitions = tuple(transitions_of(region_map))
    missing = tuple(_missing(region_map, transitions))
    return Page(
        title=f"Region map {name}",
        badge="▲ INCOMPLETE" if missing else "● COMPLETE",
        level="warn" if missing else "calm",
        verdict=_verdict(region_map, transitions),
        warnings=(*missing, *region_map.provenance.warnings),
        sections=(
            impact_section(region_map),
            _densities(region_map),
            _signatures(region_map),
            connectome_section(region_map, transitions),
            _thresholds(region_map),
            _provenance(region_map),
        ),
    )


def _verdict(region_map: RegionMap, transitions: tuple[Transition, ...]) -> str:
    origin, impact = region_map.provenance, region_map.impact
    traced = sum(not transition.problem for transition in transitions)
    worth = "is not known yet" if impact is None else f"was measured on {impact.images} images"
    return (
        f"{len(region_map.taps) - 1} layers of {origin.model} and its input were learnt as "
        f"{region_map.fmri.median.size} voxels from {count(origin.frames_fit)} clean frames at "
        f"{origin.frame_rate_hz:g} Hz. What each voxel is worth {worth}; what drives what was traced in "
        f"{traced} of {len(transitions)} transitions."
    )


def _missing(region_map: RegionMap, transitions: tuple[Transition, ...]) -> Iterator[str]:
    if region_map.impact is None:
        yield "Impact scores are not computed: every voxel counts alike."
    for transition in transitions:
        if transition.problem:
            yield f"Tracts {transition.name} are not known: {transition.problem}"
        elif not transition.watched.any():
            yield f"Tracts {transition.name} are traced, but no live estimate follows them: none is watched."
    for channel, threshold in zip(CHANNELS, region_map.evidence.threshold, strict=True):
        if np.isnan(threshold).all():
            yield f"The evidence channel “{channel}” is off: calibration saw no score of it that varied."


def _densities(region_map: RegionMap) -> Section:
    fmri = region_map.fmri
    dead = int(np.isnan(fmri.scale).sum())
    caption = "Median and one scale (1.4826 MAD) either side; thin lines part the channel groups."
    if dead:
        caption += f" Hollow: never varied in calibration, not watched ({dead})."
    figure = Figure(
        name="densities",
        svg=plots_map.densities(region_map.taps, fmri.median, fmri.scale),
        alt="Clean density of every voxel with its scale, one panel a tap.",
        caption=caption,
        csv=csv_text(
            ("voxel", "tap", "place", "median", "scale"),
            (
                (str(i), *place_of(region_map.taps, i), f"{m:.6g}", f"{s:.6g}")
                for i, (m, s) in enumerate(zip(fmri.median, fmri.scale, strict=True))
            ),
        ),
    )
    lead = "What each voxel's activity looks like on clean frames (NN-fMRI); for the input, its log level."
    return Section("densities", "Density baselines", lead, (figure,))


def _signatures(region_map: RegionMap) -> Section:
    eeg = region_map.eeg
    plan = BandPlan.make(eeg.scale_mode, region_map.provenance.frame_rate_hz)
    bands = [
        f"{band} {low:.2g}–{high:.2g} Hz" for band, (low, high) in zip(BANDS, plan.edges_hz, strict=True)
    ]
    log_power = eeg.profile_mean / np.log(10.0)
    mix = np.where(eeg.state_mix.any(axis=1, keepdims=True), eeg.state_mix, np.nan)
    accuracy = (
        "There was no other window to try the signatures on."
        if eeg.profile_accuracy is None
        else f"The nearest signature names the layer in {100 * eeg.profile_accuracy:.0f} % of other windows."
    )
    figure = Figure(
        name="signatures",
        svg=plots_map.signatures(region_map.taps, bands, log_power, STATES, mix),
        alt="Left: log10 band power of each tap. Right: share of clean frames in each state.",
        caption=f"Left: mean over 10 s windows. {accuracy} Hatched: not observable.",
        csv=csv_text(
            ("tap", *bands, *STATES),
            (
                (tap.name, *(f"{value:.6g}" for value in (*powers, *shares)))
                for tap, powers, shares in zip(region_map.taps, log_power, mix, strict=True)
            ),
        ),
    )
    lead = "How each tap's activity swings in time (NN-EEG), in bands named as the EEG's."
    return Section("signatures", "Band signatures", lead, (figure,))


def _thresholds(region_map: RegionMap) -> Section:
    null = region_map.evidence
    half = int(np.abs(null.tail - 0.5).argmin())
    rows = tuple(
        (
            channel,
            *(number(float(null.quantiles[i, k]), 3) for k in (half, -1)),
            *(
                "off" if np.isnan(threshold) else number(float(threshold), 1)
                for threshold in null.threshold[i]
            ),
        )
        for i, channel in enumerate(CHANNELS)
    )
    quantile = f"{100 - 100 * null.tail[-1]:.1f} % quantile"
    headers = ("channel", "median score", quantile, "threshold, −log p", "while overexposed")
    table = Table("thresholds", "", headers, rows)
    lead = (
        f"From which surprise on a channel alarms: set for {null.alarms_per_hour:g} false alarms an hour; "
        f"{null.held_out_alarms} came up in the {null.held_out_hours:.2f} h of clean frames that set the "
        f"thresholds, {null.judge_alarms} in {null.judge_hours:.2f} h that tuned nothing."
    )
    return Section("evidence", "Evidence thresholds", lead, (table,))


def _provenance(region_map: RegionMap) -> Section:
    origin, impact = region_map.provenance, region_map.impact
    crossmodal, certificate = region_map.crossmodal, region_map.neutrality
    pairs = [
        ("model", origin.model),
        ("SHA-256", origin.model_sha256),
        ("clean data", origin.source),
        ("frames", f"{origin.frames_fit} fitted, {origin.frames_held_out} held out"),
        ("frame rate", f"{origin.frame_rate_hz:g} Hz, bands on the {region_map.eeg.scale_mode} scale"),
        ("seed", str(origin.seed)),
        ("workstation", _versions(origin.workstation)),
        *((("clean data there", origin.workstation_source),) if origin.workstation_source else ()),
        ("device", _versions(origin.device)),
        ("golden frames", f"{len(region_map.golden.frames)}, tolerance {region_map.golden.tolerance:.2g}"),
        ("answers when tapped", f"{certificate.verdict} on {certificate.runtime}, {certificate.provider}"),
        (
            "error levels",
            f"temporal {number(crossmodal.temporal_error)}, spatial {number(crossmodal.spatial_error)}, "
            f"coherence bias {number(crossmodal.coherence_bias, 3)}",
        ),
    ]
    if impact is not None:
        effort = f"{impact.images} images, {impact.evaluations} evaluations, seed {impact.seed}"
        pairs.append(("impact", f"{impact.payoff}; {effort}"))
    pairs.append(("tracts", f"{region_map.tracts.images} images"))
    taps = Table(
        "taps",
        "Taps",
        ("tap", "shape", "grid", "voxels"),
        tuple(
            (tap.name, "×".join(map(str, tap.shape)), "×".join(map(str, tap.grid)), str(tap.n_voxels))
            for tap in region_map.taps
        ),
        shown=64,
    )
    return Section("provenance", "Provenance", "", (Facts(tuple(pairs)), taps, _certificate(region_map)))


def _certificate(region_map: RegionMap) -> Table:
    """Each tap beside the model that ends there, as the neutrality certificate has it."""
    found = region_map.neutrality
    return Table(
        "neutrality",
        "Neutrality certificate",
        ("tap", "stored as", "largest difference", "tolerated", "signature, mean |a|", "verdict"),
        tuple(
            (
                tap.name,
                tap.dtype or "–",
                "–" if tap.max_difference is None else f"{tap.max_difference:.3g}",
                f"{tap.tolerance:.2g}",
                number(tap.signature, 6),
                tap.verdict,
            )
            for tap in found.taps
        ),
        shown=64,
    )


def _versions(runtime: Runtime) -> str:
    libraries = f"NumPy {runtime.numpy}, Numba {runtime.numba}"
    return f"{runtime.runtime}, Python {runtime.python}, {libraries}, {runtime.machine}"
