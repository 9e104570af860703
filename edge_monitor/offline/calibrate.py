"""Calibration: clean rows in, region map out.

The first part of the rows fits baselines and the fault head, the second null distributions and thresholds,
and on the last, which tuned nothing, the false alarms are counted. Scores come from the same `Monitor` that
runs on the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from edge_monitor.band_plan import BandPlan
from edge_monitor.config import CalibrationSettings
from edge_monitor.errors import InputError
from edge_monitor.flag_table import FLAGS
from edge_monitor.offline.baselines import band_powers, fit_eeg, fit_fmri
from edge_monitor.offline.frame_remarks import frame_remarks
from edge_monitor.offline.head_training import Keep, train_head
from edge_monitor.offline.observe import FIT_SHARE, Observed, Progress, require_finite, silent
from edge_monitor.offline.residual import fit_residual
from edge_monitor.offline.thresholds import COMMON, TAIL, count_events, fit_evidence, poisson_interval
from edge_monitor.offline.tract_baseline import trace_tracts, watch_tracts
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import (
    CrossmodalNull,
    EvidenceNull,
    Provenance,
    RegionMap,
)
from edge_monitor.reports import CHANNELS, STATES, FlagStatus
from edge_monitor.types import BoolArray, FloatArray, IntArray, StatRow

JUDGE_SHARE = 0.2
"""Share of the rows, the last ones, on which the false alarms are counted."""
LEAST_AGREEMENT = 0.9
"""The views disagree when they agree less than this share of the least agreement in clean rows."""
ENOUGH_EVENTS = 3.0
"""So many false alarms the budget has to allow in the frames that set the thresholds."""
MIN_FRAMES = 100
"""With fewer frames not even the gamma window says anything."""


def calibrate(
    observed: Observed,
    settings: CalibrationSettings | None = None,
    progress: Progress = silent,
    keep: Keep | None = None,
) -> RegionMap:
    """Learn a region map from clean rows.

    Parameters
    ----------
    observed : Observed
        Clean rows in the order in which they happened.
    settings : CalibrationSettings, optional
    keep : callable, optional
        Takes what the fault head was trained on, for whoever wants to train others.

    Raises
    ------
    InputError
        Too few rows, or rows with non-finite values.
    """
    settings = settings or CalibrationSettings()
    alarms_per_hour, scale_mode = settings.alarms_per_hour, settings.bands
    known = observed.workstation
    if known is not None and known.eeg.scale_mode != scale_mode:
        raise InputError("bands", f"is {scale_mode}, the map of the recording has {known.eeg.scale_mode}")
    rows = observed.rows
    n_fit, n_known = int(len(rows) * FIT_SHARE), int(len(rows) * (1.0 - JUDGE_SHARE))
    if len(rows) < MIN_FRAMES:
        raise InputError(observed.source, f"{len(rows)} frames; calibration needs at least {MIN_FRAMES}")
    if all(row.spatial is None for row in rows[:n_fit]):
        raise InputError(observed.source, f"none of the first {n_fit} frames has voxel sums")
    for row in rows:
        require_finite(row, observed.source)
    rate_hz = observed.frame_rate_hz
    eeg = fit_eeg(
        *band_powers(rows[:n_known], BandPlan.make(scale_mode, rate_hz), observed.taps, progress),
        n_fit,
        scale_mode,
        rate_hz,
    )
    fmri = fit_fmri(observed.taps, rows[:n_known], n_fit)
    progress("residual", 0, 1)
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
            frames_held_out=n_known - n_fit,
            workstation=observed.device if known is None else known.provenance.workstation,
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
        crossmodal=CrossmodalNull(0.0, np.inf, np.inf, -np.inf),
        golden=observed.golden,
        neutrality=observed.neutrality,
        impact=None if known is None else known.impact,
    )
    head, head_remarks = (
        train_head(observed, provisional, n_fit, progress, keep) if known is None else (known.faults, [])
    )
    provisional = msgspec.structs.replace(provisional, faults=head)
    held_out = rows[n_fit:n_known]
    scores = score_rows(provisional, held_out, "score", progress)
    if scores.overexposed.mean() > COMMON:  # what is common is no exception, on the device neither
        fmri = msgspec.structs.replace(fmri, bright=np.full(fmri.bright.shape, np.nan))
        provisional = msgspec.structs.replace(provisional, fmri=fmri)
    eeg = msgspec.structs.replace(eeg, state_mix=_state_mix(scores.states))
    crossmodal = _fit_crossmodal(scores.anomaly, scores.coherence)
    evidence = fit_evidence(scores.evidence, scores.overexposed, rate_hz, alarms_per_hour)
    fitted = msgspec.structs.replace(provisional, eeg=eeg, crossmodal=crossmodal, evidence=evidence)
    again = score_rows(fitted, held_out, "verify", progress)
    if np.isfinite(again.agreement).any():
        least = LEAST_AGREEMENT * float(np.nanmin(again.agreement))
        crossmodal = msgspec.structs.replace(crossmodal, least_agreement=least)
    fitted = msgspec.structs.replace(fitted, crossmodal=crossmodal)
    judged = score_rows(fitted, rows[n_known:], "judge", progress)
    evidence = msgspec.structs.replace(
        evidence,
        held_out_alarms=count_events(again.confirmed),
        judge_alarms=count_events(judged.confirmed),
        judge_hours=len(judged.confirmed) / rate_hz / 3600.0,
    )
    remarks = [*budget_remarks(evidence), *frame_remarks(rows)]
    dead = int(np.isnan(fmri.scale).sum())
    if dead:
        remarks.append(f"{dead} of {fmri.scale.size} voxels never varied and are not watched")
    remarks += observed.neutrality.problems
    remarks += [f"tract {problem}" for problem in tracts.problems if problem]
    remarks += head_remarks
    return msgspec.structs.replace(
        fitted,
        evidence=evidence,
        provenance=msgspec.structs.replace(provisional.provenance, warnings=tuple(remarks)),
    )


def budget_remarks(evidence: EvidenceNull) -> Iterator[str]:
    """Say so when the clean data is too little for the budget, and which budget it would do for."""
    hours, budget = evidence.held_out_hours, evidence.alarms_per_hour
    if hours * budget < ENOUGH_EVENTS:
        honest = ENOUGH_EVENTS / hours
        total_h = ENOUGH_EVENTS / budget / (1.0 - FIT_SHARE - JUDGE_SHARE)
        yield (
            f"{hours:.2f} h of clean frames set the thresholds: too little for {budget:g} alarms per hour, "
            f"which takes {total_h:.3g} h of frames in all; thresholds are extrapolated. "
            f"These frames would do for --alarms-per-hour {honest:.3g}"
        )
    low, high = poisson_interval(evidence.judge_alarms, evidence.judge_hours)
    if low > budget:
        yield (
            f"{evidence.judge_alarms} false alarms in {evidence.judge_hours:.2f} h of clean frames that "
            f"tuned nothing: {low:.2g} to {high:.2g} per hour, more than the budget of {budget:g}"
        )


def _no_thresholds(alarms_per_hour: float) -> EvidenceNull:
    """Null under which nothing is surprising, for the pass that collects scores."""
    n = len(CHANNELS)
    nothing = np.full(n, np.nan)
    return EvidenceNull(
        tail=TAIL,
        quantiles=np.full((n, TAIL.size), np.nan),
        excess=nothing,
        threshold=np.full((n, 2), np.nan),
        alarms_per_hour=alarms_per_hour,
        held_out_alarms=0,
        held_out_hours=0.0,
        judge_alarms=0,
        judge_hours=0.0,
    )


class Scores(msgspec.Struct, frozen=True, eq=False):
    """What the monitor said about n clean rows; NaN (or state -1) where it said nothing.

    ``evidence`` (n, n_channels) smoothed scores, ``overexposed`` (n,) bool, ``anomaly`` (n, 2) temporal and
    spatial score, ``coherence`` and ``agreement`` (n,), ``states`` (n, n_taps) int64, ``confirmed`` (n,)
    bool: a flag of evidence becomes confirmed.
    """

    evidence: FloatArray
    overexposed: BoolArray
    anomaly: FloatArray
    coherence: FloatArray
    agreement: FloatArray
    states: IntArray
    confirmed: BoolArray


def score_rows(
    region_map: RegionMap, rows: list[StatRow], phase: str = "score", progress: Progress = silent
) -> Scores:
    """Run the monitor over all rows."""
    monitor = Monitor(region_map)
    n = len(rows)
    scores = Scores(
        evidence=np.full((n, len(CHANNELS)), np.nan),
        overexposed=np.zeros(n, np.bool_),
        anomaly=np.full((n, 2), np.nan),
        coherence=np.full(n, np.nan),
        agreement=np.full(n, np.nan),
        states=np.full((n, len(region_map.taps)), -1, np.int64),
        confirmed=np.zeros(n, np.bool_),
    )
    before: set[str] = set()
    for i, row in enumerate(rows):
        report = monitor.step(row)
        if report.evidence is not None:
            scores.evidence[i] = report.evidence.score
            scores.overexposed[i] = report.evidence.overexposed
        if report.bands is not None and report.regions is not None:
            scores.states[i] = report.bands.state
            scores.anomaly[i] = (_or_nan(report.bands.score), _or_nan(report.regions.score))
        if report.consistency is not None:
            scores.coherence[i] = _or_nan(report.consistency.coherence)
            scores.agreement[i] = _or_nan(report.consistency.agreement)
        standing = {
            flag.code
            for flag, row in zip(report.flags, FLAGS, strict=True)
            if row.channel is not None and flag.status is FlagStatus.CONFIRMED
        }
        scores.confirmed[i] = bool(standing - before)
        before = standing
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
    finite = [column[np.isfinite(column)] for column in anomaly.T]
    temporal, spatial = (float(np.quantile(f, 0.99)) if f.size else np.inf for f in finite)
    return CrossmodalNull(float(known.mean()) if known.size else 0.0, temporal, spatial, -np.inf)
