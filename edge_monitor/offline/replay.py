"""Replay a recording through a fresh monitor (design section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_monitor.config import MonitorSettings
from edge_monitor.digest import report_digest
from edge_monitor.errors import RecordingError
from edge_monitor.map_file import from_bytes
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.pipeline import Monitor
from edge_monitor.reports import HealthReport
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


class Replay:
    """A recording, and a fresh monitor made from the recorded map and settings.

    Attributes
    ----------
    region_map : RegionMap
    metadata : dict of str to str
    compared, identical : int
        Reports compared with the recorded ones, and how many were the same to the bit, as far as
        `reports` has come.

    Raises
    ------
    RecordingError
        The file is missing, no recording, holds no input, or was made under settings unknown here.
    MapError
        The embedded region map is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._reader = RecordingReader(path)
        self.metadata = self._reader.metadata
        self.region_map = from_bytes(self._reader.region_map_bytes(), f"{path}: region map")
        try:
            text = self.metadata.get("monitor_settings", "{}")
            settings = msgspec.json.decode(text, type=MonitorSettings)
        except msgspec.MsgspecError as error:
            raise RecordingError(path, f"monitor_settings cannot be used ({error})") from error
        self._monitor = Monitor(self.region_map, settings)
        self.compared = self.identical = 0

    @property
    def truncated(self) -> bool:
        return self._reader.truncated

    @property
    def lost(self) -> int:
        return self._reader.lost

    def reports(self, progress: Progress = silent) -> Iterator[HealthReport]:
        """Feed every recorded input, and yield what the monitor says."""
        for item, digest in self._reader.items():
            report = self._monitor.feed(item)
            self.compared += 1
            self.identical += report_digest(report) == digest
            if self.compared % 500 == 0:
                progress("replay", self.compared, None)
            yield report
        progress("replay", self.compared, self.compared)


def replay(path: Path, progress: Progress = silent) -> Replayed:
    """Replay a whole recording; for what is raised see `Replay`."""
    again = Replay(path)
    transitions = [
        f"frame {t.frame}: {t.code} {t.before}->{t.after} {t.cause}".rstrip()
        for report in again.reports(progress)
        for t in report.transitions
    ]
    return Replayed(again.compared, again.identical, again.truncated, again.lost, tuple(transitions))
