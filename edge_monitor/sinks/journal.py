"""The journal: one line per transition, none per frame.

``warning REGION_ABNORMAL inactive->confirmed "density of relu_3 [0, 1, 1] is unusual" frame=812 ratio=1.4``

Level, code, before and after, cause in quotes, then the frame and the values that caused it. Under
systemd the line carries a priority prefix (sd-daemon(3)), so that ``journalctl -p warning`` works.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple, TextIO

from edge_monitor.reports import HealthReport, Transition
from edge_monitor.types import MonitorInput


class Level(NamedTuple):
    """Name of a level, its syslog priority and its number in ``foxglove.Log``."""

    name: str
    syslog: int
    foxglove: int


INFO = Level("info", 6, 2)
WARNING = Level("warning", 4, 3)
ERROR = Level("error", 3, 4)

_LEVELS = {"FAIL": ERROR, "STALE": ERROR, "WARN": WARNING, "confirmed": WARNING}
"""Level by what a flag or the whole health became; everything else is `INFO`."""


def transition_level(transition: Transition) -> Level:
    return _LEVELS.get(transition.after, INFO)


def transition_text(transition: Transition) -> str:
    """One line, without level: code, change, cause, frame and values."""
    words = [transition.code, f"{transition.before}->{transition.after}"]
    if transition.cause:
        words.append(f'"{_one_line(transition.cause)}"')
    words.append(f"frame={transition.frame}")
    words += [f"{_one_line(name)}={value:.6g}" for name, value in transition.values.items()]
    return " ".join(words)


def _one_line(text: str) -> str:
    """Text without line breaks, quotes or control characters: tensor names are not ours to trust."""
    return "".join(c if c.isprintable() else " " for c in text).replace('"', "'")


class JournalSink:
    """Writes transitions to a text stream; may block, so it is used through `queued.QueuedSink`.

    Parameters
    ----------
    stream : text stream, optional
        Standard error when not given.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._prefix = _is_journal(self._stream)

    def write(self, item: MonitorInput, report: HealthReport) -> None:  # noqa: ARG002 - every sink gets both
        """Write one line for each transition of the report."""
        for transition in report.transitions:
            self._say(transition_level(transition), transition_text(transition))

    def lost(self, count: int) -> None:
        """Say that ``count`` reports, and their transitions, are missing."""
        self._say(WARNING, f"JOURNAL reports_lost={count}")

    def close(self) -> None:
        """Leave the stream to its owner."""

    def _say(self, level: Level, text: str) -> None:
        prefix = f"<{level.syslog}>" if self._prefix else ""
        self._stream.write(f"{prefix}{level.name} {text}\n")
        self._stream.flush()


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream ends in the journal: systemd names its device and inode in JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):  # no file behind it
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
