"""A recording: everything the monitor was fed, and what it said, in one MCAP file.

``/row``, ``/tick``, ``/event`` hold every input exactly, so that a replay rebuilds it bit for bit;
``/digest`` follows each of them with the digest of its report; ``/lost`` counts inputs that did not
reach the recording. These are all that a replay needs, together with the region map (attachment)
and the metadata.

The other channels are for people: ``/health`` at every change and at 5 Hz, ``/taps/<tap>/bands``,
``/regions`` and ``/connectivity`` at 5 Hz, ``/log`` at every transition. More of them would only make the
file larger: a replay gives every frame again.

``recording_messages.py`` says what each message holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from mcap.writer import CompressionType, Writer

from edge_monitor.digest import report_digest
from edge_monitor.errors import InputError
from edge_monitor.reports import HealthReport, HealthState
from edge_monitor.sinks import recording_messages as messages
from edge_monitor.types import MonitorInput, StatRow, Tick

FORMAT = "1"
CHUNK_BYTES = 128 * 1024
CHUNK_NS = 5 * 10**9
"""A chunk is closed and forced to disk at this size or age: what a power cut can take."""
VIEW_NS = 200 * 10**6
"""Pause between messages that are only looked at (5 Hz)."""


class RecordingSink:
    """Writes an MCAP file; slow, so it is used through `queued.QueuedSink`.

    Parameters
    ----------
    path : path
        File to create; an existing one is never overwritten.
    region_map_bytes : bytes
        The region map's file, so that a replay needs nothing else; empty when there is none yet.
    metadata : mapping of str to str
        Device, model, hashes and versions.
    tap_names : sequence of str
        Names of the taps, the input first.

    Raises
    ------
    InputError
        The file exists or cannot be written; nothing is left behind. Later, from `write`: the disk
        failed, the recording has ended and keeps what it had.
    """

    def __init__(
        self, path: str | Path, region_map_bytes: bytes, metadata: Mapping[str, str], tap_names: Sequence[str]
    ) -> None:
        self._path = Path(path)
        self._tap_names = tuple(tap_names)
        self._channels: dict[str, int] = {}
        self._items = 0
        self._missing = 0
        self._unsaved = 0
        self._saved_ns: int | None = None
        self._viewed_ns: int | None = None
        self._state: HealthState | None = None
        self._ended = "recording is closed"
        try:
            self._file = self._path.open("xb")
        except FileExistsError as error:
            raise InputError(path, "exists already; a recording is never overwritten") from error
        except OSError as error:
            raise InputError(path, f"cannot record there: {error.strerror}") from error
        # Chunks are closed by `_save` alone, between items: an input is never cut from its digest.
        self._writer = Writer(self._file, chunk_size=1 << 30, compression=CompressionType.ZSTD)
        try:
            self._writer.start(library="edge_monitor")
            self._writer.add_metadata("edge_monitor", {**metadata, "recording_format": FORMAT})
            if region_map_bytes:
                media_type = "application/octet-stream"
                self._writer.add_attachment(0, 0, "region_map.npz", media_type, region_map_bytes)
            self._save()
        except OSError as error:
            self._end(error)
            self._path.unlink()
            raise InputError(path, self._ended) from error

    def write(self, item: MonitorInput, report: HealthReport) -> None:
        """Record one input, its report's digest, and now and then the report itself."""
        if self._file.closed:
            raise InputError(self._path, self._ended)
        t_ns, digest = item.t_ns, report_digest(report)
        if self._missing:
            self._add("/lost", messages.LOST, t_ns, {"count": self._missing})
            self._missing = 0
        if isinstance(item, StatRow):
            self._add("/row", messages.ROW, t_ns, messages.row_message(item))
        elif isinstance(item, Tick):
            self._add("/tick", messages.TICK, t_ns, msgspec.structs.asdict(item))
        else:
            self._add("/event", messages.EVENT, t_ns, msgspec.structs.asdict(item))
        self._add("/digest", messages.DIGEST, t_ns, {"digest": digest})
        self._view(report)
        self._items += 1
        if self._saved_ns is None:
            self._saved_ns = t_ns
        if self._unsaved >= CHUNK_BYTES or abs(t_ns - self._saved_ns) >= CHUNK_NS:
            self._saved_ns = t_ns
            try:
                self._save()
            except OSError as error:
                self._end(error)
                raise InputError(self._path, self._ended) from error

    def lost(self, count: int) -> None:
        """Record that ``count`` inputs before the next one are missing."""
        self._missing += count

    def close(self) -> None:
        """Finish the file."""
        if self._file.closed:
            return
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self._end(error)
            raise InputError(self._path, self._ended) from error

    def _view(self, report: HealthReport) -> None:
        """Record what people look at."""
        due = self._viewed_ns is None or abs(report.t_ns - self._viewed_ns) >= VIEW_NS
        if due:
            self._viewed_ns = report.t_ns
        if due or report.transitions or report.state is not self._state:
            self._state = report.state
            kind = messages.health_kind(report)
            self._add("/health", kind, report.t_ns, messages.health_message(report))
        if due and report.bands is not None:
            for tap, name in enumerate(self._tap_names):
                topic = f"/taps/{name.strip('/')}/bands"
                self._add(topic, messages.TAP_BANDS, report.t_ns, messages.bands_message(report.bands, tap))
        if due and report.regions is not None:
            self._add("/regions", messages.REGIONS, report.t_ns, messages.regions_message(report.regions))
        if due and report.connectivity is not None:
            message = messages.connectivity_message(report.connectivity)
            self._add("/connectivity", messages.CONNECTIVITY, report.t_ns, message)
        for transition in report.transitions:
            self._add("/log", messages.LOG, report.t_ns, messages.log_message(transition))

    def _add(self, topic: str, kind: messages.Kind, t_ns: int, message: messages.Message) -> None:
        """Add one message; its channel is made at the first."""
        channel = self._channels.get(topic)
        if channel is None:
            schema = self._writer.register_schema(kind.title, "jsonschema", kind.schema())
            channel = self._channels[topic] = self._writer.register_channel(topic, "json", schema)
        data = msgspec.json.encode(message)
        self._writer.add_message(channel, t_ns, data, t_ns, self._items)
        self._unsaved += len(data)

    def _save(self) -> None:
        """Close the chunk and force it to disk."""
        self._writer.flush()  # type: ignore[no-untyped-call]
        os.fsync(self._file.fileno())
        self._unsaved = 0

    def _end(self, error: OSError) -> None:
        """Stop for good: behind a half-written chunk nothing could be read any more."""
        self._ended = f"recording ended: {error.strerror}"
        with contextlib.suppress(OSError):
            self._file.close()
