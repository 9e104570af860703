"""Calibration: clean rows in, region map out.

The first part of the rows fits baselines and null distributions, the rest, held out, sets the
thresholds. Scores come from the same `Monitor` that runs on the device.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edge_monitor.config import CalibrationSettings
from edge_monitor.eeg import BandPlan
from edge_monitor.errors import InputError
from edge_monitor.evidence import event_threshold, fit_null, surprise_of
from edge_monitor.offline.baselines import band_powers, fit_eeg, fit_fmri
from edge_monitor.offline.observe import Observed, Progress, silent
from edge_monitor.offline.residual import fit_residual
from edge_monitor.offline.tract_baseline import trace_tracts, watch_tracts
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import (
    CrossmodalNull,
    EvidenceNull,
    Provenance,
    RegionMap,
    Runtime,
)
from edge_monitor.types import CHANNELS, STATES, FlagStatus, FloatArray, IntArray, StatRow

FIT_SHARE = 0.6
"""Share of the rows that fits baselines; the rest is held out."""
MIN_FRAMES = 100
"""With fewer frames not even the gamma window says anything."""
TAIL = np.geomspace(1.0, 0.005, 64)
"""Tail probabilities at which clean scores are tabulated."""


def calibrate(
    observed: Observed, settings: CalibrationSettings | None = None, progress: Progress = silent
) -> RegionMap:
    """Learn a region map from clean rows.

    Parameters
    ----------
    observed : Observed
        Clean rows in the order in which they happened.
    settings : CalibrationSettings, optional

    Raises
    ------
    InputError
        Too few rows, or rows with non-finite values.
    """
    settings = settings or CalibrationSettings()
    alarms_per_hour, scale_mode = settings.alarms_per_hour, settings.bands
    rows = observed.rows
    n_fit = int(len(rows) * FIT_SHARE)
    if len(rows) < MIN_FRAMES:
        raise InputError(observed.source, f"{len(rows)} frames; calibration needs at least {MIN_FRAMES}")
    if all(row.spatial is None for row in rows[:n_fit]):
        raise InputError(observed.source, f"none of the first {n_fit} frames has voxel sums")
    for row in rows:
        if row.nonfinite.any() or (row.output is not None and row.output.nonfinite):
            raise InputError(observed.source, f"frame {row.frame} gives NaN or Inf; clean frames are needed")
    rate_hz = observed.frame_rate_hz
    powers = band_powers(rows, BandPlan.make(scale_mode, rate_hz), observed.taps, progress)
    eeg = fit_eeg(powers, n_fit, scale_mode, rate_hz)
    fmri = fit_fmri(observed.taps, rows[:n_fit])
    progress("residual", 0, 1)
    known = observed.workstation
    residual = fit_residual(observed.taps, rows[:n_fit], None if known is None else known.residual)
    progress("residual", 1, 1)
    traced = known.tracts if known is not None else trace_tracts(observed, progress)
    tracts = watch_tracts(traced, observed.taps, rows[:n_fit])
    provisional = RegionMap(
        provenance=Provenance(
            model=observed.model,
            model_sha256=observed.model_sha256,
            source=observed.source,
            seed=observed.seed,
            frame_rate_hz=rate_hz,
            frames_fit=n_fit,
            frames_held_out=len(rows) - n_fit,
            workstation=Runtime.here() if known is None else known.provenance.workstation,
            workstation_source=""
            if known is None
            else known.provenance.workstation_source or known.provenance.source,
            device=observed.device,
        ),
        taps=observed.taps,
        eeg=eeg,
        fmri=fmri,
        tracts=tracts,
        residual=residual,
        evidence=_no_thresholds(alarms_per_hour),
        crossmodal=CrossmodalNull(coherence_bias=0.0, temporal_error=np.inf, spatial_error=np.inf),
        golden=observed.golden,
        impact=None if known is None else known.impact,
    )
    scores = _score(provisional, rows, "score", progress)
    eeg = msgspec.structs.replace(eeg, state_mix=_state_mix(scores.states[:n_fit]))
    crossmodal = _fit_crossmodal(scores.anomaly[:n_fit], scores.coherence[:n_fit])
    evidence = _fit_evidence(scores.evidence, n_fit, rate_hz, alarms_per_hour)
    fitted = msgspec.structs.replace(provisional, eeg=eeg, crossmodal=crossmodal, evidence=evidence)
    alarms = int(_score(fitted, rows, "verify", progress).confirmed[n_fit:].sum())
    hours = evidence.held_out_hours
    remarks = []
    if hours * alarms_per_hour < 3.0:
        remarks.append(
            f"{hours:.2f} h of held-out clean frames cannot show {alarms_per_hour:g} alarms per hour; "
            f"thresholds are extrapolated, {3.0 / alarms_per_hour:g} h would show it"
        )
    dead = int(np.isnan(fmri.scale).sum())
    if dead:
        remarks.append(f"{dead} of {fmri.scale.size} voxels never varied and are not watched")
    remarks += [f"tract {problem}" for problem in tracts.problems if problem]
    return msgspec.structs.replace(
        fitted,
        evidence=msgspec.structs.replace(evidence, held_out_alarms=alarms),
        provenance=msgspec.structs.replace(provisional.provenance, warnings=tuple(remarks)),
    )


def _no_thresholds(alarms_per_hour: float) -> EvidenceNull:
    """Null under which nothing is surprising, for the pass that collects scores."""
    n = len(CHANNELS)
    nothing = np.full(n, np.nan)
    return EvidenceNull(TAIL, np.full((n, TAIL.size), np.nan), nothing, nothing, alarms_per_hour, 0, 0.0)


class Scores(msgspec.Struct, frozen=True, eq=False):
    """What the monitor said about n clean rows; NaN (or state -1) where it said nothing.

    ``evidence`` (n, n_channels) smoothed scores, ``anomaly`` (n, 2) temporal and spatial score,
    ``coherence`` (n,), ``states`` (n, n_taps) int64, ``confirmed`` (n,) int64 flags confirmed.
    """

    evidence: FloatArray
    anomaly: FloatArray
    coherence: FloatArray
    states: IntArray
    confirmed: IntArray


def _score(region_map: RegionMap, rows: list[StatRow], phase: str, progress: Progress) -> Scores:
    """Run the monitor over all rows."""
    monitor = Monitor(region_map)
    n = len(rows)
    scores = Scores(
        evidence=np.full((n, len(CHANNELS)), np.nan),
        anomaly=np.full((n, 2), np.nan),
        coherence=np.full(n, np.nan),
        states=np.full((n, len(region_map.taps)), -1, np.int64),
        confirmed=np.zeros(n, np.int64),
    )
    for i, row in enumerate(rows):
        report = monitor.step(row)
        if report.evidence is not None:
            scores.evidence[i] = report.evidence.score
        if report.bands is not None and report.regions is not None:
            scores.states[i] = report.bands.state
            scores.anomaly[i] = (_or_nan(report.bands.score), _or_nan(report.regions.score))
        if report.consistency is not None:
            scores.coherence[i] = _or_nan(report.consistency.coherence)
        scores.confirmed[i] = sum(t.after == FlagStatus.CONFIRMED.value for t in report.transitions)
        if i % 1000 == 0:
            progress(phase, i, n)
    progress(phase, n, n)
    return scores


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _state_mix(states: IntArray) -> FloatArray:
    """Share of frames that each tap spent in each state, over its warm frames, (n_taps, n_states)."""
    counts = np.stack([(states == s).sum(axis=0) for s in range(len(STATES))], axis=1)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), np.float64)


def _fit_crossmodal(anomaly: FloatArray, coherence: FloatArray) -> CrossmodalNull:
    """Mean clean coherence, and the clean 99 % quantile of each anomaly score as its error level."""
    known = coherence[np.isfinite(coherence)]
    levels = []
    for column in anomaly.T:
        finite = column[np.isfinite(column)]
        levels.append(float(np.quantile(finite, 0.99)) if finite.size else np.inf)
    return CrossmodalNull(float(known.mean()) if known.size else 0.0, *levels)


def _fit_evidence(scores: FloatArray, n_fit: int, rate_hz: float, alarms_per_hour: float) -> EvidenceNull:
    """Null distributions from the fitted rows, thresholds from the held-out ones."""
    fitted = [fit_null(column, TAIL) for column in scores[:n_fit].T]
    quantiles = np.stack([q for q, _ in fitted])
    excess = np.array([e for _, e in fitted])
    threshold = np.empty(len(CHANNELS))
    for c in range(len(CHANNELS)):
        surprise = surprise_of(scores[n_fit:, c], TAIL, quantiles[c], excess[c])
        threshold[c] = event_threshold(surprise, rate_hz, alarms_per_hour / len(CHANNELS))
    hours = (len(scores) - n_fit) / rate_hz / 3600.0
    return EvidenceNull(TAIL, quantiles, excess, threshold, alarms_per_hour, 0, hours)
