"""Replay a recording through a fresh monitor (design section 5)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_monitor.config import MonitorSettings
from edge_monitor.digest import report_digest
from edge_monitor.errors import RecordingError
from edge_monitor.map_file import from_bytes
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.pipeline import Monitor
from edge_monitor.sources.recording import RecordingReader


class Replayed(msgspec.Struct, frozen=True):
    """Outcome of a replay: reports compared, how many were identical to the bit, what happened.

    ``lost``: inputs that never reached the recording; reports after a loss cannot be reproduced.
    """

    compared: int
    identical: int
    truncated: bool
    lost: int
    transitions: tuple[str, ...]


def replay(path: Path, progress: Progress = silent) -> Replayed:
    """Feed every recorded input to a monitor made from the recorded map.

    Raises
    ------
    RecordingError
        The file is missing, no recording, holds no input, or was made under settings unknown here.
    MapError
        The embedded region map is damaged.
    """
    reader = RecordingReader(path)
    region_map = from_bytes(reader.region_map_bytes(), f"{path}: region map")
    try:
        settings = msgspec.json.decode(reader.metadata.get("monitor_settings", "{}"), type=MonitorSettings)
    except msgspec.MsgspecError as error:
        raise RecordingError(path, f"monitor_settings cannot be used ({error})") from error
    monitor = Monitor(region_map, settings)
    compared = identical = 0
    transitions: list[str] = []
    for item, digest in reader.items():
        report = monitor.feed(item)
        compared += 1
        identical += report_digest(report) == digest
        transitions += [
            f"frame {t.frame}: {t.code} {t.before}->{t.after} {t.cause}".rstrip() for t in report.transitions
        ]
        if compared % 500 == 0:
            progress("replay", compared, None)
    progress("replay", compared, compared)
    return Replayed(compared, identical, reader.truncated, reader.lost, tuple(transitions))
