"""EM/1: what a monitor tells its fleet, as message types, topics and JSON (design section 7).

One message is an envelope with one kind of data. ``flag``, ``event`` and ``metric`` are streams:
their messages are numbered without a gap from 0 at every boot, and what could not be delivered is
declared in a ``dropped`` event. ``status`` and ``flagstate`` are retained states: the newest wins,
so they carry no number. JSON has no NaN: a number that is not finite becomes null.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edge_monitor.config import check_topic_segment
from edge_monitor.errors import InputError
from edge_monitor.reports import FlagState, Transition
from edge_monitor.sinks.metric_window import Window
from edge_monitor.types import ProbeEvent

STREAMS = ("flag", "event", "metric")
"""The numbered streams, most important first; the position is the priority on the wire."""


class Status(msgspec.Struct, frozen=True):
    """Is the monitor there? ``versions`` of software, ``hashes`` of model, config and map."""

    state: Literal["online", "offline", "lost"]
    versions: Mapping[str, str] = {}
    hashes: Mapping[str, str] = {}


class Flag(msgspec.Struct, frozen=True):
    """One transition of a flag, or of the whole health state (code ``HEALTH``)."""

    code: str
    frame: int
    before: str
    after: str
    cause: str
    values: Mapping[str, float | None]


class FlagValue(msgspec.Struct, frozen=True):
    """Where a flag stands; ``since_ns`` on the monitor's monotonic clock."""

    code: str
    status: str
    occurrences: int
    since_ns: int
    cause: str
    values: Mapping[str, float | None]


class Dropped(msgspec.Struct, frozen=True, rename={"first": "from", "last": "to"}):
    """Messages ``first`` ... ``last`` of ``stream`` will never arrive."""

    stream: str
    first: int
    last: int
    reason: str


class Probe(msgspec.Struct, frozen=True):
    """Something that happened to the probe; see `ProbeEvent`."""

    code: str
    detail: str


class Envelope(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every message carries.

    ``id`` is the same when a message is sent again; (``dev``, ``mon``, ``boot``, ``stream``,
    ``seq``) tells duplicates apart. ``boot`` is new at every start. ``t_wall``: UTC when the message
    was made; ``t_mono_ns``: CLOCK_MONOTONIC of what it tells. ``clock_synced``: whether the wall
    clock is known to be set, None if nobody knows. ``hist``: queued before the connection that
    carries it. ``prio``: 0 is the highest.
    """

    v: Literal[1] = 1
    id: str
    dev: str
    mon: str
    boot: str
    stream: str
    seq: int | None = None
    t_wall: datetime
    t_mono_ns: int
    clock_synced: bool | None
    hist: bool = False
    prio: int


class StatusMessage(Envelope, frozen=True, kw_only=True, tag="status"):
    """Retained birth, last will or farewell."""

    data: Status


class FlagMessage(Envelope, frozen=True, kw_only=True, tag="flag"):
    """A transition with its cause and values."""

    data: Flag


class FlagStateMessage(Envelope, frozen=True, kw_only=True, tag="flagstate"):
    """Retained last value of one flag."""

    data: FlagValue


class StartMessage(Envelope, frozen=True, kw_only=True, tag="start"):
    """A new boot began: event number 0."""

    data: Status


class ProbeMessage(Envelope, frozen=True, kw_only=True, tag="probe"):
    """An event of the probe."""

    data: Probe


class DroppedMessage(Envelope, frozen=True, kw_only=True, tag="dropped"):
    """A declared gap."""

    data: Dropped


class MetricMessage(Envelope, frozen=True, kw_only=True, tag="metric"):
    """One batched window."""

    data: Window


Numbered = FlagMessage | StartMessage | ProbeMessage | DroppedMessage | MetricMessage
Message = StatusMessage | FlagStateMessage | Numbered


class Author:
    """Writes the messages of one monitor during one boot.

    Parameters
    ----------
    fleet, vehicle, monitor : str
        Topic levels; see `check_topic_segment` for what is refused.
    versions, hashes : Mapping[str, str]
        What runs here; part of birth and start.
    """

    def __init__(
        self, fleet: str, vehicle: str, monitor: str, versions: Mapping[str, str], hashes: Mapping[str, str]
    ) -> None:
        for what, text in (("fleet", fleet), ("vehicle", vehicle), ("monitor", monitor)):
            check_topic_segment(what, text)
        self.root = f"em/v1/{fleet}/{vehicle}/{monitor}"
        self.boot = str(uuid.uuid4())
        self._vehicle, self._monitor = vehicle, monitor
        self._versions, self._hashes = dict(versions), dict(hashes)

    def topic(self, message: Message) -> str:
        """Topic of a message."""
        if isinstance(message, FlagStateMessage):
            return f"{self.root}/flagstate/{message.data.code}"
        return f"{self.root}/{message.stream}"

    def status(self, state: Literal["online", "offline", "lost"]) -> StatusMessage:
        """Birth, farewell or last will; only the birth says what runs here."""
        data = Status(state, self._versions, self._hashes) if state == "online" else Status(state)
        return StatusMessage(**self._envelope("status", 0), data=data)

    def flag(self, transition: Transition) -> FlagMessage:
        t = transition
        data = Flag(t.code, t.frame, t.before, t.after, t.cause, t.values)
        return FlagMessage(**self._envelope("flag", t.t_ns), data=data)

    def flagstate(self, flag: FlagState) -> FlagStateMessage:
        data = FlagValue(
            flag.code, flag.status.value, flag.occurrences, flag.since_ns, flag.cause, flag.values
        )
        return FlagStateMessage(**self._envelope("flagstate", flag.since_ns), data=data)

    def start(self) -> StartMessage:
        data = Status("online", self._versions, self._hashes)
        return StartMessage(**self._envelope("event", time.monotonic_ns()), data=data)

    def probe(self, event: ProbeEvent) -> ProbeMessage:
        return ProbeMessage(**self._envelope("event", event.t_ns), data=Probe(event.code, event.detail))

    def dropped(self, gap: Dropped) -> DroppedMessage:
        return DroppedMessage(**self._envelope("event", time.monotonic_ns()), data=gap)

    def metric(self, window: Window) -> MetricMessage:
        return MetricMessage(**self._envelope("metric", window.t_last_ns), data=window)

    def _envelope(self, stream: str, t_mono_ns: int) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid4()),
            "dev": self._vehicle,
            "mon": self._monitor,
            "boot": self.boot,
            "stream": stream,
            "t_wall": datetime.now(timezone.utc),
            "t_mono_ns": t_mono_ns,
            "clock_synced": _clock_synced(),
            "prio": STREAMS.index(stream) if stream in STREAMS else 0,
        }


def encode(message: Message) -> bytes:
    """Return the message as JSON."""
    return msgspec.json.encode(message, enc_hook=_numpy_scalar)


def decode(payload: bytes) -> Message:
    """Read one message; unknown fields are ignored, so that newer senders stay readable.

    Raises
    ------
    InputError
        The payload is no EM/1 message; the error names the field.
    """
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError("EM/1 message", str(error)) from error


_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_SYNCED = Path("/run/systemd/timesync/synchronized")


def _clock_synced() -> bool | None:
    """Ask systemd-timesyncd's stamp; without it nobody can tell.

    Not adjtimex(2): under the service's system call filter it would kill the process.
    """
    try:
        return True if _SYNCED.exists() else None
    except OSError:  # nor can who may not look
        return None


def _numpy_scalar(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in a message")
