"""What the channels of a recording hold: messages and their JSON Schemas.

The schemas are flat, as Foxglove, Lichtblick and PlotJuggler read them: what is missing is left out,
and no number is ever NaN or infinite. A float array that holds such values has 0 in their place, and
their indices in ``<array>_nan``, ``<array>_inf`` and ``<array>_ninf``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edge_monitor.reports import (
    CHANNELS,
    STATES,
    BandPowers,
    Connectivity,
    FlagStatus,
    HealthReport,
    HealthState,
    RegionScores,
    Transition,
)
from edge_monitor.sinks.journal import transition_level, transition_text
from edge_monitor.types import BANDS, FloatArray, StatRow

Message = dict[str, Any]


class Kind(NamedTuple):
    """Title and properties of one JSON Schema."""

    title: str
    properties: Message

    def schema(self) -> bytes:
        """Return the JSON Schema."""
        return msgspec.json.encode({"type": "object", "title": self.title, "properties": self.properties})


def _several(kind: Message) -> Message:
    return {"type": "array", "items": kind}


_NUMBER: Message = {"type": "number"}
_INTEGER: Message = {"type": "integer"}
_BOOLEAN: Message = {"type": "boolean"}
_STRING: Message = {"type": "string"}
_LOG_LEVELS = ("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL")


def _floats(*names: str) -> Message:
    """Properties of arrays written by `_put`."""
    indices = {f"{name}_{kind}": _several(_INTEGER) for name in names for kind in ("nan", "inf", "ninf")}
    return {name: _several(_NUMBER) for name in names} | indices


def _choice(names: Sequence[str]) -> Message:
    """Return a numeric enumeration; this form is the only one that the viewers understand."""
    return {"type": "integer", "oneOf": [{"title": name, "const": i} for i, name in enumerate(names)]}


ROW = Kind(
    "edge_monitor.Row",
    {
        "frame": _INTEGER,
        "t_ns": _INTEGER,
        "latency_ns": _INTEGER,
        "fingerprint": _INTEGER,
        "t_capture_ns": _INTEGER,
        "nonfinite": _several(_INTEGER),
        "spatial_frames": _INTEGER,
        "spatial_taps": _several(_BOOLEAN),
        "output_top1": _INTEGER,
        "output_nonfinite": _INTEGER,
        "output_confidence": _NUMBER,
        "output_entropy": _NUMBER,
        "context_names": _several(_STRING),
        **_floats("signals", "voxels", "channels", "context_values", "picture"),
    },
)
TAP_BANDS = Kind(
    "edge_monitor.Bands",
    {
        **{f"{kind}{band}": _NUMBER for kind in ("", "z_") for band in BANDS},
        "state": _choice(STATES),
        "held": _INTEGER,
    },
)
REGIONS = Kind(
    "edge_monitor.Regions",
    {
        **_floats("density", "z", "tap_score"),
        **dict.fromkeys(("score", "input_score", "severity"), _NUMBER),
        "worst": _INTEGER,
    },
)
CONNECTIVITY = Kind(
    "edge_monitor.Connectivity",
    {
        **_floats("residual"),
        **dict.fromkeys(("residual_score", "tract_score"), _NUMBER),
        **dict.fromkeys(("root", "weakest_source", "weakest_target"), _INTEGER),
        **dict.fromkeys(("alarming", "under"), _several(_INTEGER)),
    },
)
_SCORES = (
    *("temporal_score", "spatial_score", "input_score", "consistency", "agreement"),
    *("rate_hz", "latency_ms", "silence_s", "entropy", "confidence"),
    *(f"evidence_{channel}" for channel in CHANNELS),
)
_HEALTH = {
    "frame": _INTEGER,
    "state": _choice([state.name for state in HealthState]),
    "reasons": _several(_STRING),
    "missing": _INTEGER,
    "nonfinite": _INTEGER,
    **dict.fromkeys(_SCORES, _NUMBER),
}
LOG = Kind(
    "foxglove.Log",
    {
        "timestamp": {"type": "object", "title": "time", "properties": {"sec": _INTEGER, "nsec": _INTEGER}},
        "level": _choice(_LOG_LEVELS),
        "message": _STRING,
        "name": _STRING,
        "file": _STRING,
        "line": _INTEGER,
    },
)
TICK = Kind("edge_monitor.Tick", {"t_ns": _INTEGER})
EVENT = Kind("edge_monitor.Event", {"t_ns": _INTEGER, "code": _STRING, "detail": _STRING})
DIGEST = Kind("edge_monitor.Digest", {"digest": _STRING})
LOST = Kind("edge_monitor.Lost", {"count": _INTEGER})


def health_kind(report: HealthReport) -> Kind:
    """Return the schema of `health_message`: one boolean for each flag."""
    return Kind("edge_monitor.Health", _HEALTH | {_flag_key(flag.code): _BOOLEAN for flag in report.flags})


def _put(message: Message, name: str, array: FloatArray) -> None:
    """Add a float array, with the places of what JSON has no numbers for."""
    array = array.ravel()
    finite = np.isfinite(array)
    if not finite.all():
        for kind, there in (("nan", np.isnan(array)), ("inf", array == np.inf), ("ninf", array == -np.inf)):
            if there.any():
                message[f"{name}_{kind}"] = np.flatnonzero(there).tolist()
        array = np.where(finite, array, 0.0)
    message[name] = array.tolist()


def _known(numbers: Mapping[str, float | None]) -> Message:
    """Only what is known: no None, no NaN."""
    return {name: value for name, value in numbers.items() if value is not None and isfinite(value)}


def row_message(row: StatRow) -> Message:
    """Everything of a row; `sources.recording` builds it again."""
    message: Message = {
        "frame": row.frame,
        "t_ns": row.t_ns,
        "latency_ns": row.latency_ns,
        "fingerprint": row.fingerprint,
        "nonfinite": row.nonfinite.tolist(),
    }
    _put(message, "signals", row.signals)
    if row.t_capture_ns is not None:
        message["t_capture_ns"] = row.t_capture_ns
    if row.spatial is not None:
        message["spatial_frames"] = row.spatial.frames
        message["spatial_taps"] = row.spatial.taps.tolist()
        _put(message, "voxels", row.spatial.voxels)
        _put(message, "channels", row.spatial.channels)
    if row.output is not None:
        output = row.output
        message |= {"output_top1": output.top1, "output_nonfinite": output.nonfinite}
        message |= _known({"output_confidence": output.confidence, "output_entropy": output.entropy})
    if row.picture is not None:
        _put(message, "picture", row.picture)
    if row.context:
        message["context_names"] = list(row.context)
        _put(message, "context_values", np.array(list(row.context.values()), np.float64))
    return message


def _flag_key(code: str) -> str:
    return f"flag_{code}"


def health_message(report: HealthReport) -> Message:
    bands, regions, consistency, vitals = report.bands, report.regions, report.consistency, report.vitals
    scores = {
        "temporal_score": bands.score if bands else None,
        "spatial_score": regions.score if regions else None,
        "input_score": regions.input_score if regions else None,
        "consistency": consistency.score if consistency else None,
        "agreement": consistency.agreement if consistency else None,
        "rate_hz": vitals.rate_hz,
        "latency_ms": vitals.latency_ns / 1e6,
        "silence_s": vitals.silence_ns / 1e9,
        "entropy": vitals.entropy,
        "confidence": vitals.confidence,
    }
    if report.evidence is not None:
        ratios = zip(CHANNELS, report.evidence.ratio.tolist(), strict=True)
        scores |= {f"evidence_{channel}": ratio for channel, ratio in ratios}
    return {
        "frame": report.frame,
        "state": int(report.state),
        "reasons": list(report.reasons),
        "missing": vitals.missing,
        "nonfinite": vitals.nonfinite,
        **{_flag_key(flag.code): flag.status is FlagStatus.CONFIRMED for flag in report.flags},
        **_known(scores),
    }


def bands_message(bands: BandPowers, tap: int) -> Message:
    powers = dict(zip(BANDS, bands.power[tap].tolist(), strict=True))
    scores = {f"z_{band}": z for band, z in zip(BANDS, bands.z[tap].tolist(), strict=True)}
    message = _known(powers | scores) | {"held": int(bands.held[tap])}
    if bands.state[tap] >= 0:
        message["state"] = int(bands.state[tap])
    return message


def regions_message(regions: RegionScores) -> Message:
    message = _known(
        {"score": regions.score, "input_score": regions.input_score, "severity": regions.severity}
    )
    if regions.worst is not None:
        message["worst"] = regions.worst
    _put(message, "density", regions.density)
    _put(message, "z", regions.z)
    _put(message, "tap_score", regions.tap_score)
    return message


def connectivity_message(connectivity: Connectivity) -> Message:
    """Voxels by their number over all taps; the z of the tracts is left to a replay."""
    c = connectivity
    message = _known({"residual_score": c.residual_score, "tract_score": c.tract_score})
    if c.root is not None:
        message["root"] = c.root
    if c.weakest is not None:
        message["weakest_source"], message["weakest_target"] = c.weakest
    message |= {name: np.flatnonzero(getattr(c, name)).tolist() for name in ("alarming", "under")}
    _put(message, "residual", c.residual)
    return message


def log_message(transition: Transition) -> Message:
    return {
        "timestamp": {"sec": transition.t_ns // 10**9, "nsec": transition.t_ns % 10**9},
        "level": transition_level(transition).foxglove,
        "message": transition_text(transition),
        "name": transition.code,
        "file": "",
        "line": 0,
    }
