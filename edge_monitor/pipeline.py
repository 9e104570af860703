"""One row in, one health report out: the only place where the order of the stages is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_monitor.config import MonitorSettings
from edge_monitor.connectivity import ConnectivityTracker
from edge_monitor.crossmodal import ConsistencyTracker
from edge_monitor.eeg import EegTracker
from edge_monitor.errors import InputError
from edge_monitor.evidence import EvidenceTracker
from edge_monitor.fault_head import FaultHeadTracker
from edge_monitor.findings import Findings, Limits
from edge_monitor.flag_table import FLAGS
from edge_monitor.flags import FlagTracker
from edge_monitor.fmri import FmriTracker
from edge_monitor.kernels.goertzel import GAP_LIMIT
from edge_monitor.map_file import load_region_map
from edge_monitor.region_map import RegionMap
from edge_monitor.reports import HealthReport, HealthState, Scores, Transition, Vitals
from edge_monitor.types import BANDS, MonitorInput, ProbeEvent, StatRow, Tick
from edge_monitor.vitals import VitalsTracker

_GAMMA = BANDS.index("gamma")
_BLIND = ("PROBE_DETACHED", "NO_FRAMES")
"""Flags to be told beside any other: what stands now stands because nobody sees whether it has passed."""
_WORDS = {HealthState.NEVER_SEEN: ("no frame yet",), HealthState.WARMING: ("EEG windows are filling",)}
_NO_FRAME_YET = Vitals(0, 0, 0, 0, None, 0, 0, None, None)


class Monitor:
    """Health monitor of one network.

    It has no clock and no side effects: the same inputs give the same reports. It is not to be called by two
    threads at once: whoever ticks from another thread than the model's holds a lock around every call.

    Parameters
    ----------
    region_map : RegionMap
        What calibration learned about the network.
    settings : MonitorSettings, optional
        Limits of this installation.

    Raises
    ------
    InputError
        ``region_map`` is none.

    Attributes
    ----------
    report : HealthReport
        The latest report; NEVER_SEEN before the first input.
    """

    def __init__(self, region_map: RegionMap, settings: MonitorSettings | None = None) -> None:
        if not isinstance(region_map, RegionMap):
            kind = type(region_map).__name__  # type: ignore[unreachable]  # callers have no types
            raise InputError("region_map", f"is a {kind}; Monitor.load takes the path of one")
        settings = settings or MonitorSettings()
        rate_hz = region_map.provenance.frame_rate_hz
        period_ns = 1e9 / rate_hz
        deadline_ms = settings.deadline_ms
        self.region_map = region_map
        self._limits = Limits(
            rate_hz=rate_hz,
            deadline_ns=int(period_ns if deadline_ms is None else deadline_ms * 1e6),
            silence_ns=int(settings.silence_frames * period_ns),
            repeats_by_nature=settings.repeats_by_nature,
            dead_rows=region_map.fmri.dead_rows,
            least_agreement=region_map.crossmodal.least_agreement,
        )
        self._vitals = VitalsTracker(rate_hz, region_map.taps[0])
        self._eeg = EegTracker(region_map.eeg, len(region_map.taps), rate_hz)
        self._fmri = FmriTracker(region_map.taps, region_map.fmri, region_map.theta)
        self._connectivity = ConnectivityTracker(region_map.taps, region_map.residual, region_map.tracts)
        self._crossmodal = ConsistencyTracker(region_map.crossmodal)
        self._fault_head = FaultHeadTracker(region_map.faults, region_map.taps)
        self._evidence = EvidenceTracker(region_map.evidence)
        self._flags = FlagTracker()
        self._light = settings.light
        self.reset()

    @classmethod
    def load(cls, path: str | Path, settings: MonitorSettings | None = None) -> Monitor:
        """Monitor with the region map at ``path``.

        Raises
        ------
        MapError
            The map is missing, damaged or of another format.
        """
        return cls(load_region_map(path), settings)

    def reset(self) -> None:
        """Forget everything but the region map."""
        for stage in (
            *(self._vitals, self._eeg, self._fmri, self._connectivity),
            *(self._crossmodal, self._fault_head, self._evidence, self._flags),
        ):
            stage.reset()
        self.report = HealthReport(
            frame=-1,
            t_ns=0,
            state=HealthState.NEVER_SEEN,
            reasons=_WORDS[HealthState.NEVER_SEEN],
            vitals=_NO_FRAME_YET,
            flags=self._flags.states,
            transitions=(),
        )

    def feed(self, item: MonitorInput) -> HealthReport:
        """Take in any input; see `step`, `tick`, `event`."""
        if isinstance(item, StatRow):
            return self.step(item)
        if isinstance(item, Tick):
            return self.tick(item.t_ns)
        return self.event(item)

    def step(self, row: StatRow) -> HealthReport:
        """Take in one frame's row."""
        vitals = self._vitals.update(row)
        if vitals.missing > GAP_LIMIT:  # the EEG restarts its windows by itself
            for stage in (
                *(self._fmri, self._connectivity, self._crossmodal),
                *(self._fault_head, self._evidence),
            ):
                stage.reset()
        good = np.logical_not(row.nonfinite)
        bands = self._eeg.update(row.signals, good, vitals.missing)
        regions = self._fmri.update(row.spatial, good)
        connectivity = consistency = guess = None
        if not self._light:
            connectivity = self._connectivity.update(row.spatial, row.picture, good)
            consistency = self._crossmodal.update(
                bands.power[:, _GAMMA], bands.score, regions.severity, regions.score
            )
            guess = self._fault_head.update(connectivity, bands, vitals)
        evidence = self._evidence.update(
            Scores(
                residual=connectivity.residual_score if connectivity else None,
                shift=connectivity.shift_score if connectivity else None,
                line=bands.line_score,
                faults=guess.score if guess else None,
                stall=vitals.stall,
                jump=vitals.jump,
                input=regions.input_score,
                spatial=regions.score,
                temporal=bands.score,
                output=vitals.entropy,
                tracts=connectivity.tract_score if connectivity else None,
            ),
            regions.bright,
        )
        findings = Findings(
            limits=self._limits,
            taps=self.region_map.taps,
            vitals=vitals,
            row=row,
            bands=bands,
            regions=regions,
            connectivity=connectivity,
            consistency=consistency,
            evidence=evidence,
            guess=guess,
        )
        state, reasons, transitions = self._conclude(row.frame, row.t_ns, findings)
        self.report = HealthReport(
            frame=row.frame,
            t_ns=row.t_ns,
            state=state,
            reasons=reasons,
            vitals=vitals,
            flags=self._flags.states,
            transitions=transitions,
            bands=bands,
            regions=regions,
            connectivity=connectivity,
            consistency=consistency,
            evidence=evidence,
            guess=guess,
        )
        return self.report

    def tick(self, t_ns: int) -> HealthReport:
        """Note that time passed without a frame."""
        return self._without_frame(t_ns, None)

    def event(self, event: ProbeEvent) -> HealthReport:
        """Take in something that happened to the probe itself."""
        return self._without_frame(event.t_ns, event)

    def release(self, code: str) -> None:
        """Release a latched flag: it heals as soon as its own evidence passes."""
        self._flags.release(code)

    def _without_frame(self, t_ns: int, event: ProbeEvent | None) -> HealthReport:
        vitals = self._vitals.tick(t_ns)
        findings = Findings(self._limits, self.region_map.taps, vitals, event=event)
        frame = self.report.frame
        state, reasons, transitions = self._conclude(frame, t_ns, findings)
        self.report = HealthReport(
            frame=frame,
            t_ns=t_ns,
            state=state,
            reasons=reasons,
            vitals=vitals or _NO_FRAME_YET,
            flags=self._flags.states,
            transitions=transitions,
        )
        return self.report

    def _conclude(
        self, frame: int, t_ns: int, findings: Findings
    ) -> tuple[HealthState, tuple[str, ...], tuple[Transition, ...]]:
        """Step the flags; worst state, its reasons and those of `_BLIND`, and what changed."""
        transitions = self._flags.update(frame, t_ns, findings)
        states, confirmed = self._flags.states, self._flags.confirmed
        standing = [FLAGS[i].severity for i in confirmed]
        if frame < 0:
            standing.append(HealthState.NEVER_SEEN)
        elif not self._eeg.warm:
            standing.append(HealthState.WARMING)
        state = max(standing, default=HealthState.OK)
        told = [states[i] for i in confirmed if FLAGS[i].severity is state or FLAGS[i].code in _BLIND]
        reasons = (*[f"{flag.code}: {flag.cause}" for flag in told], *_WORDS.get(state, ()))
        before = self.report.state
        if state is not before:
            change = Transition(frame, t_ns, "HEALTH", before.name, state.name, "; ".join(reasons))
            transitions = (*transitions, change)
        return state, reasons, transitions
