"""Publishes reports to the fleet's broker (design section 7, convention EM/1)."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Mapping

import msgspec

from edge_monitor.config import MqttSettings
from edge_monitor.reports import FlagStatus, HealthReport
from edge_monitor.sinks.metric_window import WindowBuilder
from edge_monitor.sinks.mqtt_link import LinkLostError, MqttLink
from edge_monitor.sinks.send_queue import SendQueue
from edge_monitor.sinks.telemetry import (
    Author,
    FlagStateMessage,
    Message,
    MetricMessage,
    StatusMessage,
    encode,
)
from edge_monitor.types import MonitorInput, ProbeEvent

METRIC_EXPIRY_S = 3600
"""A broker keeps metrics this long for a subscriber that is away; flags and events never expire."""
MAX_REPORTS = 1024
"""Reports kept while the thread waits for a connection attempt; beyond it the oldest are skipped."""
BACKOFF_S = (0.5, 60.0)
"""Full jitter: wait for a random time below ``first * 2**attempt``, at most below the second."""
STABLE_S = 10.0
"""A connection that lasted this long starts the back-off anew; a shorter one counts as a failure."""
FLUSH_S, FAREWELL_S = 2.0, 1.0
"""Time that `close` gives the queue, and then the farewell."""


class MqttSink:
    """Sends flags, events and metrics; ``write`` never waits for the broker and never raises.

    Flag transitions and probe events are queued as they come, reports are folded into windows of
    ``settings.window_s``. One thread owns the connection. Everything queued and unacknowledged is
    sent again on the next connection, so a receiver may see a message twice. The queue is in
    memory: what is undelivered when the process ends is lost, and numbers start at 0 at every boot.

    Parameters
    ----------
    settings : MqttSettings
        Broker, identity and bounds.
    versions, hashes : Mapping[str, str]
        Told in the birth message: software versions; hashes of model, config and map.

    Attributes
    ----------
    connected : bool
        The broker accepted the present connection.
    error : str or None
        Why there is no connection, or what was refused last, as one line.

    Raises
    ------
    ConfigError
        A certificate, key or password file cannot be read.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        versions: Mapping[str, str] | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        settings.require_files()
        self.connected = False
        self.error: str | None = None
        self._settings = settings
        self._author = Author(
            settings.fleet, settings.vehicle, settings.monitor, versions or {}, hashes or {}
        )
        self._queue = SendQueue(settings.queue_messages)
        self._queue.put(self._author.start())
        self._reports: deque[tuple[MonitorInput, HealthReport]] = deque(maxlen=MAX_REPORTS)
        self._skipped = 0
        self._window = WindowBuilder()
        self._window_end = 0.0
        self._flags: dict[str, tuple[FlagStatus, int]] = {}
        self._flagstates: dict[str, FlagStateMessage] = {}
        self._states: dict[str, StatusMessage | FlagStateMessage] = {}
        self._attempt = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt-sink", daemon=True)
        self._thread.start()

    @property
    def boot(self) -> str:
        """Identity of this run, as in every message."""
        return self._author.boot

    @property
    def dropped(self) -> int:
        """Messages that will never arrive: the queue was full, or the broker refused them."""
        return self._queue.dropped

    def write(self, item: MonitorInput, report: HealthReport) -> None:
        """Queue one report; returns at once, whatever the broker does."""
        if self._closing.is_set():
            return
        for transition in report.transitions:
            self._queue.put(self._author.flag(transition))
        if isinstance(item, ProbeEvent):
            self._queue.put(self._author.probe(item))
        if len(self._reports) == MAX_REPORTS:
            self._skipped += 1
        self._reports.append((item, report))

    def close(self) -> None:
        """Send what is queued and the farewell, within a bounded time, and end the thread.

        A thread that still waits for a name server or a connection is left to end on its own.
        """
        self._closing.set()
        self._thread.join(FLUSH_S + FAREWELL_S + 1.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._session()
            except Exception as error:  # noqa: BLE001 - whatever the network raises, the next attempt follows
                self.error = self._line(error)
            self._attempt += 1
            first, cap = BACKOFF_S
            # Jitter spreads a fleet that lost its broker; it is no secret.
            delay = random.uniform(0.0, min(cap, first * 2.0 ** min(self._attempt, 30)))  # noqa: S311
            until = time.monotonic() + delay
            while time.monotonic() < until and not self._closing.wait(0.1):
                self._digest()

    def _session(self) -> None:
        """Hold one connection until it is lost or the sink closes."""
        will = self._author.status("lost")
        link = MqttLink(self._settings, (self._author.topic(will), encode(will)))
        try:
            link.open()
            while not link.accepted:
                if self._closing.is_set():
                    return
                link.turn()
                self._digest()
            self._greet()
            old = self._queue.next_numbers()
            born = time.monotonic()
            while not self._closing.is_set():
                self._digest()
                self._send(link, old)
                link.turn()
                if time.monotonic() - born > STABLE_S:
                    self._attempt = 0
            self._farewell(link, old)
        finally:
            self.connected = False
            link.close()
            unsent = link.unacknowledged.values()
            self._queue.give_back([m for m in unsent if not isinstance(m, (StatusMessage, FlagStateMessage))])

    def _greet(self) -> None:
        """Tell every state first: a broker that was restarted has forgotten them."""
        states: list[StatusMessage | FlagStateMessage] = [self._author.status("online")]
        states += self._flagstates.values()
        self._states = {self._author.topic(state): state for state in states}
        self.connected, self.error = True, None

    def _digest(self, flush: bool = False) -> None:
        """Fold waiting reports into the window and note changed flags."""
        while self._reports:
            item, report = self._reports.popleft()
            if self._window.t_first_ns is None:
                self._window_end = time.monotonic() + self._settings.window_s
            self._window.update(item, report)
            for flag in report.flags:
                if self._flags.get(flag.code) != (flag.status, flag.occurrences):
                    self._flags[flag.code] = (flag.status, flag.occurrences)
                    state = self._author.flagstate(flag)
                    self._flagstates[flag.code] = self._states[self._author.topic(state)] = state
        if flush or time.monotonic() >= self._window_end:
            window = self._window.build(self._skipped)
            if window is not None:
                self._queue.put(self._author.metric(window))

    def _send(self, link: MqttLink, old: Mapping[str, int]) -> None:
        """Hand over what the broker takes: states, then flags, events and metrics."""
        while (gap := self._queue.next_gap()) is not None:
            self._queue.put(self._author.dropped(gap))
        while link.has_room and (message := self._next()) is not None:
            self._publish(link, message, old)
        for message, reason in link.refused:
            self.error = self._line(LinkLostError(f"{self._author.topic(message)} refused: {reason}"))
            if not isinstance(message, (StatusMessage, FlagStateMessage)):
                self._queue.drop(message, reason)
        link.refused.clear()

    def _next(self) -> Message | None:
        if self._states:
            return self._states.pop(next(iter(self._states)))
        return self._queue.take()

    def _publish(self, link: MqttLink, message: Message, old: Mapping[str, int]) -> None:
        is_old = message.seq is not None and message.seq < old[message.stream]
        link.publish(
            message,
            self._author.topic(message),
            encode(msgspec.structs.replace(message, hist=is_old)),
            retain=isinstance(message, (StatusMessage, FlagStateMessage)),
            expiry_s=METRIC_EXPIRY_S if isinstance(message, MetricMessage) else None,
        )

    def _farewell(self, link: MqttLink, old: Mapping[str, int]) -> None:
        """Empty the queue, then say offline; what does not leave in time stays unsaid."""
        self._digest(flush=True)
        until = time.monotonic() + FLUSH_S
        while time.monotonic() < until and (self._states or len(self._queue) or link.unacknowledged):
            self._send(link, old)
            link.turn()
        until = time.monotonic() + FAREWELL_S
        while time.monotonic() < until and not link.has_room:
            link.turn()
        if not link.has_room:
            return  # without a goodbye the broker publishes the last will
        self._publish(link, self._author.status("offline"), old)
        while time.monotonic() < until and link.unacknowledged:
            link.turn()
        link.leave()

    def _line(self, error: Exception) -> str:
        text = str(error)
        if isinstance(error, OSError) and error.strerror is not None:
            text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        elif not isinstance(error, (OSError, LinkLostError)):
            text = f"{type(error).__name__}: {error}"
        return f"mqtt {self._settings.host}:{self._settings.port}: {' '.join(text.split())}"
