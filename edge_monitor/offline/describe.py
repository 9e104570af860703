"""What a region map or a configuration holds, as text, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from edge_monitor.band_plan import BandPlan
from edge_monitor.config import Config, load_config
from edge_monitor.errors import EdgeMonitorError, about
from edge_monitor.flag_causes import locate
from edge_monitor.map_file import load_region_map
from edge_monitor.offline.output_file import require_folder
from edge_monitor.region_map import Impact, RegionMap
from edge_monitor.reports import CHANNELS, STATES
from edge_monitor.sources.frames import FrameSource
from edge_monitor.taps.known_model import load_known_model
from edge_monitor.taps.model_file import load_model
from edge_monitor.types import BANDS, TapSpec


def describe_map(region_map: RegionMap) -> RenderableType:
    """Provenance, layer signatures, and thresholds of a map."""
    origin = region_map.provenance
    station, device = origin.workstation, origin.device
    golden = region_map.golden.frames
    elsewhere = f" from {origin.workstation_source}" if origin.workstation_source else ""
    facts = Table.grid(padding=(0, 2))
    for key, value in (
        ("model", f"{origin.model}  sha256 {origin.model_sha256[:16]}…"),
        (
            "clean data",
            f"{origin.source}, {origin.frames_fit} frames fitted, {origin.frames_held_out} held out",
        ),
        ("frame rate", f"{origin.frame_rate_hz:g} Hz, bands on the {region_map.eeg.scale_mode} scale"),
        (
            "workstation",
            f"{station.runtime}, {station.machine}: tracts, ridge weights, golden frames{elsewhere}",
        ),
        ("device", f"{device.runtime}, {device.machine}: baselines, thresholds"),
        ("impact scores", _impact(region_map)),
        ("tracts", _tracts(region_map)),
        ("golden frames", f"{len(golden)}, model input {golden.min():.3g} ... {golden.max():.3g}"),
        ("certificate", _certificate(region_map)),
    ):
        facts.add_row(key, value)
    remarks = [f"note: {remark}" for remark in origin.warnings]
    return Group(facts, *remarks, _signatures(region_map), _thresholds(region_map))


def map_facts(region_map: RegionMap) -> dict[str, object]:
    """Provenance, taps and thresholds of a map for machines; a threshold that is NaN is off."""
    null = region_map.evidence
    return {
        "provenance": region_map.provenance,
        "taps": region_map.taps,
        "alarms_per_hour": null.alarms_per_hour,
        "held_out": {"alarms": null.held_out_alarms, "hours": null.held_out_hours},
        "judged": {"alarms": null.judge_alarms, "hours": null.judge_hours},
        "thresholds": dict(zip(CHANNELS, null.threshold.tolist(), strict=True)),
    }


def describe_impact(impact: Impact, taps: tuple[TapSpec, ...]) -> RenderableType:
    """Voxels with the largest scores, and how sure they are."""
    table = Table(
        box=None,
        pad_edge=False,
        title=f"Impact on {impact.payoff}, {impact.images} images, {impact.evaluations} coalitions",
        caption="± sampling of permutations, then ± choice of images (one standard error each)",
    )
    for title in ("tap", "voxel", "θ", "± pairs", "± images"):
        table.add_column(title, justify="left" if title == "tap" else "right", no_wrap=True)
    for voxel in np.argsort(-np.abs(impact.theta))[: min(10, int(np.isfinite(impact.theta).sum()))].tolist():
        tap, place = locate(taps, voxel)
        errors = (impact.stderr[voxel], impact.image_stderr[voxel])
        numbers = (f"{value:.4f}" if np.isfinite(value) else "–" for value in errors)
        table.add_row(tap.name, str(list(place)), f"{impact.theta[voxel]:+.4f}", *numbers)
    lines = [
        f"{tap.name}: payoff {whole:.4f} whole, {none:.4f} with the tap ablated, {pairs:.0f} pairs"
        for tap, whole, none, pairs in zip(taps[1:], impact.f_all, impact.f_none, impact.pairs, strict=True)
    ]
    return Group(table, *lines)


def _certificate(region_map: RegionMap) -> str:
    found = region_map.neutrality
    faulty = sum(bool(tap.problem) for tap in found.taps)
    taps = f"{faulty} of {len(found.taps)} taps do not read true" if faulty else "all taps read true"
    return f"{found.runtime}, {found.provider}: answers {found.verdict}, {taps}"


def _impact(region_map: RegionMap) -> str:
    impact = region_map.impact
    if impact is None:
        return "not computed, all voxels count alike; `edge-monitor impact` computes them"
    return f"{impact.payoff} on {impact.images} images, {int(impact.pairs.min())} pairs or more"


def _tracts(region_map: RegionMap) -> str:
    tracts = region_map.tracts
    carrying = int((tracts.strength > 0).sum())
    watched = int(np.isfinite(tracts.scale).sum())
    return f"{carrying} traced on {tracts.images} images, {watched} of them watched"


def _signatures(region_map: RegionMap) -> Table:
    """Band profile of each layer: mean log10 power, its spread, and the mix of states."""
    plan = BandPlan.make(region_map.eeg.scale_mode, region_map.provenance.frame_rate_hz)
    accuracy = region_map.eeg.profile_accuracy
    table = Table(
        box=None,
        pad_edge=False,
        title="Layer signatures: log10 band power over 10 s (edges in Hz), most frequent state",
        caption="no other window to try the nearest profile on"
        if accuracy is None
        else f"the nearest profile names the layer in {accuracy:.0%} of other windows",
    )
    table.add_column("tap", no_wrap=True)
    for band, (low, high) in zip(BANDS, plan.edges_hz, strict=True):
        table.add_column(f"{band}\n{low:.2g}-{high:.2g}", justify="right", no_wrap=True)
    table.add_column("mostly", no_wrap=True)
    for i, tap in enumerate(region_map.taps):
        mean = region_map.eeg.profile_mean[i] / np.log(10.0)
        spread = np.sqrt(np.diag(region_map.eeg.profile_covariance[i])) / np.log(10.0)
        cells = [f"{m:.1f}±{s:.1f}" if np.isfinite(m) else "–" for m, s in zip(mean, spread, strict=True)]
        mix = region_map.eeg.state_mix[i]
        top = int(mix.argmax())
        table.add_row(
            tap.name,
            *cells,
            f"{STATES[top]} {mix[top]:.0%}" if mix.any() else "–",
        )
    return table


def _thresholds(region_map: RegionMap) -> Table:
    null = region_map.evidence
    table = Table(
        box=None,
        pad_edge=False,
        title=f"Evidence: budget {null.alarms_per_hour:g} false alarms per hour",
        caption=f"{null.held_out_alarms} flags in the {null.held_out_hours:.2f} h of clean frames that set "
        f"the thresholds, {null.judge_alarms} in {null.judge_hours:.2f} h that tuned nothing",
    )
    for title in ("channel", "median score", "99.5 % quantile", "threshold, -log p", "overexposed"):
        table.add_column(title, justify="left" if title == "channel" else "right")
    half = int(np.abs(null.tail - 0.5).argmin())
    for i, channel in enumerate(CHANNELS):
        if np.isnan(null.threshold[i]).all():
            table.add_row(channel, "–", "–", f"off: {_why_off(region_map, channel)}", "–")
            continue
        table.add_row(
            channel,
            f"{null.quantiles[i, half]:.3g}",
            f"{null.quantiles[i, -1]:.3g}",
            *(f"{threshold:.1f}" for threshold in null.threshold[i]),
        )
    return table


def _why_off(region_map: RegionMap, channel: str) -> str:
    """Say why the clean frames gave a channel no threshold."""
    if channel == "faults" and region_map.faults is None:
        return "no fault head"
    if channel == "tracts" and not np.isfinite(region_map.tracts.scale).any():
        return "none is watched"
    return "no score, or always the same"


def check_config(path: Path) -> tuple[Config, list[str]]:
    """Load a configuration and try what it names; the list says what is wrong beyond the file itself.

    Raises
    ------
    ConfigError
        The file itself is unusable.
    """
    config = load_config(path)
    problems: list[str] = []
    region_map: RegionMap | None = None
    try:
        region_map = load_region_map(config.region_map)
    except EdgeMonitorError as error:
        problems.append(f"region_map: {error}")
    checks: list[tuple[str, Callable[[], object]]] = []
    if region_map is None:
        checks.append(("model.path", lambda: load_model(config.model.path)))
    else:
        checks += [
            ("model.path", lambda: load_known_model(config.model.path, region_map)),
            ("source", lambda: region_map.require_frame_rate(config.source.frame_rate_hz)),
            ("source", lambda: next(iter(FrameSource(config.source, region_map.input_shape)))),
        ]
    sinks = config.sinks
    if sinks.recording is not None:
        folder = Path(sinks.recording.folder)
        # The service makes it.
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        checks.append(("sinks.recording.folder", lambda: require_folder(there)))
    if sinks.health_page is not None:
        page = Path(sinks.health_page.path).parent
        checks.append(("sinks.health_page.path", lambda: require_folder(page)))
    if sinks.mqtt is not None:
        checks.append(("sinks.mqtt", sinks.mqtt.require_files))
    for key, test in checks:
        try:
            with about(key):
                test()
        except EdgeMonitorError as error:
            problems.append(str(error))
    return config, problems
