"""A slow sink behind a bounded queue and a thread of its own.

A sink takes every input of the monitor together with the report on it. ``write`` is called in the
monitor's loop, so it never blocks and never raises.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Protocol

from edge_monitor.reports import HealthReport
from edge_monitor.types import MonitorInput


class Sink(Protocol):
    """Where reports go."""

    def write(self, item: MonitorInput, report: HealthReport) -> None: ...

    def close(self) -> None: ...


class SlowSink(Sink, Protocol):
    """A sink that may block or raise, and is therefore used through `QueuedSink`."""

    def lost(self, count: int) -> None:
        """Learn that ``count`` inputs between the last write and the next one are missing."""


class QueuedSink:
    """Makes a sink of a slow sink: what finds the queue full is dropped and counted.

    Every error of the slow sink is noted and the next input is tried again; a sink that cannot go
    on says so by raising again.

    Parameters
    ----------
    sink : SlowSink
        Used, and closed, in the queue's own thread only.
    capacity : int
        Inputs that may wait.

    Attributes
    ----------
    dropped : int
        Inputs that found the queue full, or came after `close`.
    failed : int
        Calls of the slow sink that raised.
    error : str or None
        Text of the last error.
    """

    def __init__(self, sink: SlowSink, capacity: int = 256) -> None:
        self.dropped = 0
        self.failed = 0
        self.error: str | None = None
        self._sink = sink
        self._capacity = capacity
        self._lost = 0
        self._closed = False
        # A SimpleQueue's put never waits, not even for the lock of a consumer.
        self._queue: SimpleQueue[tuple[MonitorInput, HealthReport, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=type(sink).__name__, daemon=True)
        self._thread.start()

    def write(self, item: MonitorInput, report: HealthReport) -> None:
        """Hand one input and its report over, or drop them."""
        if self._closed or self._queue.qsize() >= self._capacity:
            self._lost += 1
            self.dropped += 1
            return
        self._queue.put((item, report, self._lost))
        self._lost = 0

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the queue drain and the slow sink close, and wait no longer than ``timeout_s``."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.error = f"not done {timeout_s:g} s after closing, {self._queue.qsize() - 1} inputs waiting"

    def _work(self) -> None:
        missing = 0
        while (entry := self._queue.get()) is not None:
            item, report, lost = entry
            missing += lost
            try:
                if missing:
                    self._sink.lost(missing)
                    missing = 0
                self._sink.write(item, report)
            except Exception as error:  # noqa: BLE001 - the monitor outlives any sink
                missing += 1
                self._note(error)
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.failed += 1
        self.error = str(error) or type(error).__name__
